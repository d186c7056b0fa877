"""params.yaml, `extractor`: the network whose features FID and IS are computed in."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
)

from ddpm.config.base import FilePath, Positive, Section


class ExtractorConfig(Section):
    """The network whose features FID and IS are computed in."""

    kind: Literal["auto", "classifier", "rotation", "inception"] = Field(
        "auto",
        description="classifier: a small CNN fitted to the labels; rotation: the same fitted to tell rotations apart, "
        "for data without labels; inception: InceptionV3 as the papers use it; auto: inception for colour images when "
        "its weights are at hand, else classifier when there are labels, else rotation",
    )
    weights: FilePath | None = Field(None, description="InceptionV3 weights file, in torch-fidelity's format")
    steps: Positive = Field(600, description="optimiser steps of the small CNN")
