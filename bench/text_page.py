"""The results of `bench.text` as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.captioned_page import settings_table, verdicts

Row = Mapping[str, Any]

NAMES = {
    "fid": "FID",
    "precision": "precision",
    "recall": "recall",
    "retrieval_1_pixels": "R@1",
    "retrieval_5_pixels": "R@5",
    "retrieval_5_features": "R@5 in features",
    "held_out_retrieval_5_pixels": "R@5, held-out captions",
}
FILLED = {"known_error": "largest error of a known pixel", "rmse": "RMSE of the others", "fid": "FID"}


def markdown(results: Mapping[str, Any]) -> str:
    """What `text.json` holds, for readers."""
    parts = [
        "# Text to image, cascades and inpainting on emoji",
        "`python -m bench.text` measures it in the project of `make demo-text`, and writes this page and "
        "`bench/results/text.json`.",
        _protocol(results["protocol"]),
        "## Guidance, one stage or two, with captions or without",
        settings_table(results["settings"], NAMES),
        "`glide` is the cascade of `text-8` and `text-32`. `text-emoji` is one stage with captions and `emoji` one "
        "stage without, each trained with as many operations as the two stages together; with 5 and 10 steps an image "
        "of theirs costs as much as one of the cascade's.",
        "## A part of an image drawn again",
        settings_table(results["inpainting"], FILLED, 2),
        "Errors are in levels of 255. `trained` is `inpaint-emoji`; `replace` and `repaint` draw with `emoji`, which "
        "was not trained for it.",
        *verdicts(results["claims"]),
    ]
    return "\n\n".join(parts) + "\n"


def _protocol(protocol: Row) -> str:
    extractor, reference, validation = protocol["extractor"], protocol["reference"], protocol["validation"]
    (first, second), steps = protocol["seeds"], protocol["steps"]
    trained = ", ".join(f"`{name}` ({count} steps)" for name, count in steps.items())
    lines = [
        f"{'×'.join(map(str, protocol['shape']))} emoji. {protocol['attribution']}",
        f"Models, each trained once: those of `make demo-text`, and {trained}.",
        f"{protocol['samples']} samples a setting with captions drawn from the training captions, and "
        f"{protocol['held_out']} of combinations of gesture and skin tone that training has not seen. The table is of "
        f"seed {first}. A best setting is the one with the lowest FID in the table; the claims compare samples of seed "
        f"{second}, by which nothing was chosen.",
        "R@5: the share of samples for which a picture with the asked caption is among the 5 nearest of all real "
        "pictures, by distance in pixels, or in the extractor's features.",
        f"FID, precision and recall: features of the pipeline's own extractor ({extractor['kind']}, SHA-256 "
        f"{extractor['sha256'][:12]}…), against {reference['images']} training images. The {validation['images']} real "
        f"validation images score FID {validation['fid']:.2f}. It does not compare with a FID under InceptionV3.",
        f"Inpainting: {protocol['filled']} validation images, each with a mask of boxes or of a stroke as in training.",
        f"±: standard error by the jackknife over {protocol['groups']} groups of images. A margin counts where 0 is "
        "outside its 95 % interval. How much another training of the same model would differ is not in it.",
    ]
    return "\n".join(f"- {line}" for line in lines)
