"""The results of `bench.unclip` as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.captioned_page import protocol_lines, settings_table, training_table, verdicts
from bench.page import table

Row = Mapping[str, Any]


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
        protocol_lines(protocol),
        training_table(results["training"]),
        "`text-8` has about as many operations in training as the prior and the decoder together. The CLIP's come on "
        "top: it can be shared by other models, as the upsampler is.",
        settings_table(results["settings"]),
        "`alone` is `text-8` with the upsampler of `dalle`. Both draw with the guidance scale of the row, the first "
        "with as many steps as cost about what the other costs. At scales below 1 `text-8` follows its captions less, "
        "so that both can be equally aligned. The last row has the model's own plan.",
        "`dalle without the prior` has the embedding of the text itself in place of the one that the prior draws of it "
        "(Ramesh et al. 2022, §5.1). The decoder was trained on embeddings of images alone.",
        "The CLIP score and R-precision are of the CLIP by whose embeddings `dalle` draws, so they favour `dalle`. R@1 "
        "and R@5 know no CLIP.",
        "## The prior",
        _prior(results["prior"]),
        f"Of {protocol['embeddings']} captions of each split: the cosine of the embedding that is drawn of a caption "
        "to that of its picture; beside it the cosines of the caption's own embedding and of a "
        "random training picture's. R@1 and R@5: whether the picture is the nearest, or among the nearest five, of all "
        "real ones by the drawn embedding. In brackets: 95 % intervals. The "
        "prior has not seen the validation captions.",
        "## As files",
        *_deployed(results["deployed"]),
        *verdicts(results["claims"]),
    ]
    return "\n\n".join(parts) + "\n"


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


def _deployed(found: Row) -> list[str]:
    times = found["times"]
    seconds = times["seconds_per_image"]
    return [
        table(
            ["`deploy/dalle/`", "MB", "largest difference from torch"],
            ([f"`{row['name']}`", f"{row['megabytes']:.1f}", f"{row['difference']:.1e}"] for row in found["files"]),
        ),
        "Differences are of what a file draws or embeds, on the same noise, over a few steps; data are in [−1, 1].",
        f"An image takes {seconds['ONNX']:.2f} s of one thread in onnxruntime and {seconds['torch']:.2f} s in torch, a "
        f"ratio of {times['ratio']:.2f}: medians of {times['rounds']} paired rounds of {times['images']} images, in "
        "CPU time, with the model's own plans.",
    ]
