"""What the pages of the studies of captions share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.page import comparisons, number, table

Row = Mapping[str, Any]

NAMES = {
    "fid": "FID",
    "precision": "precision",
    "recall": "recall",
    "retrieval_1_pixels": "R@1",
    "retrieval_5_pixels": "R@5",
    "held_out_retrieval_5_pixels": "R@5, held-out captions",
    "clip_score": "CLIP score",
    "r_precision": "R-precision",
    "spread_pixels": "spread in pixels",
    "spread_features": "spread in features",
}


def protocol_lines(protocol: Row) -> str:
    """Data, samples, figures and their errors, as a list."""
    extractor, reference, validation = protocol["extractor"], protocol["reference"], protocol["validation"]
    first, second = protocol["seeds"]
    lines = [
        f"{'×'.join(map(str, protocol['shape']))} emoji. {protocol['attribution']}",
        f"{protocol['each']} samples of each of {protocol['captions']} training captions at even distances, and "
        f"{protocol['held_out']} samples of combinations of gesture and skin tone that training has not seen. The "
        f"table is of seed {first}. What is best in the table is compared on samples of seed {second}.",
        "R@1 and R@5: the share of samples for which a picture with the asked caption is the nearest, or among the 5 "
        "nearest, of all real pictures, by distance in pixels. Settings whose R@5 differs within the noise are equally "
        "aligned; where there are none such, nothing is compared at equal alignment.",
        f"CLIP score: the cosine of an image to its caption in the space of `{protocol['clip']['name']}` (SHA-256 "
        f"{protocol['clip']['sha256'][:12]}…). R-precision: the share of samples for which none of the "
        f"{protocol['captions']} captions is nearer than the asked one.",
        "Spread: the mean distance between samples of the same caption.",
        f"FID, precision and recall: features of the pipeline's own extractor ({extractor['kind']}, SHA-256 "
        f"{extractor['sha256'][:12]}…), against {reference['images']} training images. The {validation['images']} real "
        f"validation images score FID {validation['fid']:.2f}. It does not compare with a FID under InceptionV3.",
        f"±: standard error by the jackknife over {protocol['groups']} groups of captions. A margin counts where 0 is "
        "outside its 95 % interval. How much another training of the same model would differ is not in it.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def training_table(training: Mapping[str, Row]) -> str:
    """What the training of each model took."""
    body = (
        [f"`{name}`", f"{row['steps']} of {row['batch_size']}", f"{row['teraflops']:.1f}"]
        for name, row in training.items()
    )
    return table(["trained once", "steps", "TFLOP"], body)


def settings_table(rows: Sequence[Row], names: Mapping[str, str] = NAMES, digits: int = 3) -> str:
    """The figures of each setting.

    Args:
        names: which figures, with the heads of their columns; one that a setting does not have stays empty.
    """

    def cells(row: Row) -> Iterable[str]:
        figures = row["figures"]
        return (number(figures[name], digits) if name in figures else "" for name in names)

    return table(
        ["", "GFLOP an image", *names.values()],
        ([row["setting"], f"{row['gflops_per_image']:.2f}", *cells(row)] for row in rows),
    )


def verdicts(claims: Sequence[Row]) -> list[str]:
    """What holds, and the comparisons behind it, as parts of a page."""
    return [
        "## What holds",
        table(["claim", "verdict"], ([row["claim"], f"**{row['verdict']}**"] for row in claims)),
        "Comparison by comparison, with the margin by which the inequality is true:",
        *(comparisons(row) for row in claims if row["comparisons"]),
    ]
