"""The results of `bench.unclip` as a page of Markdown."""

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


def markdown(results: Mapping[str, Any]) -> str:
    """What `unclip.json` holds, for readers."""
    protocol = results["protocol"]
    parts = [
        "# A prior and a decoder against a model of captions, on emoji",
        "`python -m bench.unclip` measures it in the project of `make demo-unclip`, and writes this page, its picture "
        "and `bench/results/unclip.json`.",
        "![Variations, interpolations and differences of texts](unclip.png)",
        "First the given picture, then what `dalle` draws of its embedding: above, variations, each of other noise; "
        "then what is between two pictures, and a picture changed by the difference of two texts, of one noise each. "
        "Not chosen: the first samples of seed "
        f"{protocol['seeds'][0]}. {protocol['attribution']}",
        "## Captions alone, or by way of embeddings",
        _protocol(protocol),
        _training(results["training"]),
        _settings(results["settings"]),
        "`alone` is `text-8` with the upsampler of `dalle`. Both draw with the guidance scale of the row, the first "
        "with as many steps as cost about what the other costs; the last row has the model's own plan. Spread is the "
        "mean distance between samples of the same caption.",
        "The CLIP score and R-precision are of the CLIP by whose embeddings `dalle` draws: they flatter it. R@1 and "
        "R@5 know no CLIP.",
        "## The prior",
        _prior(results["prior"]),
        f"Of {protocol['embeddings']} captions of each split: the cosine of the embedding that is drawn of a caption "
        "to that of its picture; beside it the cosines of the caption's own embedding and of a "
        "random training picture's. R@1 and R@5: whether the picture is the nearest, or among the nearest five, of all "
        "real ones by the drawn embedding. In brackets: 95 % intervals. The "
        "prior has not seen the validation captions.",
        "## What holds",
        table(["claim", "verdict"], ([row["claim"], f"**{row['verdict']}**"] for row in results["claims"])),
        "Comparison by comparison, with the margin by which the inequality is true:",
        *(comparisons(row) for row in results["claims"]),
        "Not measured: CLIP guidance against classifier-free guidance (Nichol et al. 2022, GLIDE).",
    ]
    return "\n\n".join(parts) + "\n"


def _protocol(protocol: Row) -> str:
    extractor, reference, validation = protocol["extractor"], protocol["reference"], protocol["validation"]
    first, second = protocol["seeds"]
    lines = [
        f"{'×'.join(map(str, protocol['shape']))} emoji. {protocol['attribution']}",
        f"{protocol['each']} samples of each of {protocol['captions']} training captions at even distances, and "
        f"{protocol['held_out']} samples of combinations of gesture and skin tone that training has not seen. The "
        f"table is of seed {first}. What is best in the table is compared on samples of seed {second}.",
        "R@1 and R@5: the share of samples for which a picture with the asked caption is the nearest, or among the 5 "
        "nearest, of all real pictures, by distance in pixels. Settings whose R@5 differs within the noise are equally "
        "aligned.",
        f"CLIP score: the cosine of an image to its caption in the space of `{protocol['clip']['name']}` (SHA-256 "
        f"{protocol['clip']['sha256'][:12]}…). R-precision: the share of samples for which none of the "
        f"{protocol['captions']} captions is nearer than the asked one.",
        f"FID, precision and recall: features of the pipeline's own extractor ({extractor['kind']}, SHA-256 "
        f"{extractor['sha256'][:12]}…), against {reference['images']} training images. The {validation['images']} real "
        f"validation images score FID {validation['fid']:.2f}. It does not compare with a FID under InceptionV3.",
        f"±: standard error by the jackknife over {protocol['groups']} groups of captions. A margin counts where 0 is "
        "outside its 95 % interval. How much another training of the same model would differ is not in it.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _training(training: Mapping[str, Row]) -> str:
    body = (
        [f"`{name}`", f"{row['steps']} of {row['batch_size']}", f"{row['teraflops']:.1f}"]
        for name, row in training.items()
    )
    note = (
        "`text-8` has about as many operations in training as the prior and the decoder together. The CLIP's come on "
        "top: it can be shared by other models, as the upsampler is. Steps are those of the project: fewer, perhaps, "
        "than the presets have."
    )
    return f"{table(['trained once', 'steps', 'TFLOP'], body)}\n\n{note}"


def _settings(rows: Sequence[Row]) -> str:
    def cells(row: Row) -> Iterable[str]:
        return (number(row["figures"][name], 3) for name in NAMES)

    return table(
        ["", "GFLOP an image", *NAMES.values()],
        ([row["setting"], f"{row['gflops_per_image']:.2f}", *cells(row)] for row in rows),
    )


def _prior(rows: Sequence[Row]) -> str:
    def cells(row: Row, split: str) -> list[str]:
        def within(key: str) -> str:
            value, low, high = (row[f"{split}{key}{end}"] for end in ("", "_low", "_high"))
            return f"{value:.3f} ({low:.3f} to {high:.3f})"

        others = [f"{row[f'{split}{key}']:.3f}" for key in ("cosine_text", "cosine_random", "r_5_chance")]
        return [str(row["candidates"]), *map(within, ("cosine", "r_1", "r_5")), *others]

    return table(
        [
            "captions",
            "candidates",
            "cosine",
            "R@1",
            "R@5",
            "cosine of the text",
            "of a random picture",
            "R@5 by chance",
        ],
        ([name, *cells(row, split)] for split, name in (("", "validation"), ("train_", "training")) for row in rows),
    )
