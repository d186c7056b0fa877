"""params.yaml, `promotion`: when a new version becomes champion."""

from __future__ import annotations

from typing import Annotated

from pydantic import (
    Field,
)

from ddpm.config.base import Float, Section

Tolerance = Annotated[Float, Field(ge=0)]


class Tolerances(Section):
    """How much worse than the champion a new one may be, as a share of the champion's figure; null: at will."""

    fid: Tolerance | None = Field(0.05, description="higher by, though the intervals overlap")
    wasserstein: Tolerance | None = Field(0.05, description="the same")
    inception_score: Tolerance | None = Field(0.1, description="lower by")
    kid: Tolerance | None = Field(0.25, description="higher by, besides the deviations of both")
    precision: Tolerance | None = Field(0.1, description="lower by")
    recall: Tolerance | None = Field(0.1, description="lower by")
    class_accuracy: Tolerance | None = Field(0.05, description="of conditional models: lower by")
    fid_within_classes: Tolerance | None = Field(0.1, description="of conditional models: higher by")
    retrieval_5_pixels: Tolerance | None = Field(0.1, description="of models with condition.prompt: lower by")
    held_out_retrieval_5_pixels: Tolerance | None = Field(0.25, description="the same, of captions held out")
    clip_score: Tolerance | None = Field(0.05, description="of models measured by evaluation.clip: lower by")
    r_precision: Tolerance | None = Field(0.1, description="the same")
    mmd: Tolerance | None = Field(None, description="higher by")
    nll_validation: Tolerance | None = Field(0.05, description="higher by")
    gflops_per_image: Tolerance | None = Field(None, description="higher by")


class PromotionConfig(Section):
    """When a new version of a model becomes champion."""

    gain: Float = Field(
        0.01,
        ge=0,
        description="where the intervals of the FID overlap: the share by which the NLL or the cost of an image must "
        "be lower, and neither may be higher",
    )
    tolerances: Tolerances = Tolerances()
