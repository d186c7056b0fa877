"""The results of `bench.clip_guidance` as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.captioned_page import protocol_lines, settings_table, training_table, verdicts


def markdown(results: Mapping[str, Any]) -> str:
    """What `clip-guidance.json` holds, for readers."""
    parts = [
        "# CLIP guidance against classifier-free guidance, on emoji",
        "`python -m bench.clip_guidance` measures it in the project of `make demo-unclip`, and writes this page and "
        "`bench/results/clip-guidance.json`.",
        protocol_lines(results["protocol"]),
        training_table(results["training"]),
        "## Both, by scale",
        settings_table(results["settings"]),
        "`text-emoji` is guided away from itself without the caption; at scale 1 it is not guided. `text-emoji by "
        "CLIP` is the same model, guided along the gradient of the dot product of image and caption in the space of "
        "`clip-noised-emoji`, a CLIP that was trained on noisy images. It has as many steps as make an image about as "
        "dear as classifier-free guidance does.",
        "The CLIP score and R-precision are of `clip-emoji`, which was trained on the same pictures and captions as "
        "the CLIP that guides, so they favour `text-emoji by CLIP`. R@1 and R@5 know no CLIP.",
        *verdicts(results["claims"]),
    ]
    return "\n\n".join(parts) + "\n"
