"""The results of `bench.latent` as a page of Markdown, and its picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.page import comparisons, number, table
from ddpm.evaluation.pictures import grid

Row = Mapping[str, Any]

FIDS = {"fid": "FID", "fid_of_loss": "FID in the features of the loss"}


def markdown(results: Mapping[str, Any]) -> str:
    """What `latent.json` holds, for readers."""
    parts = [
        "# Latent diffusion against diffusion in pixels",
        "`python -m bench.latent` measures it in the project of `make demo-latent` and in one of Fashion-MNIST, and "
        "writes this page, its picture and `bench/results/latent.json`.",
        "![Samples](latents.png)",
        "Real training images, the same after the autoencoder, and samples of both models at equal operations an "
        "image: not chosen, the first of their seed.",
        *(part for study in results["studies"] for part in _study(study)),
        "## How small the latents can be",
        "Autoencoders of emoji as `autoencoder-emoji`, each with one thing changed, trained for equally many steps, "
        "fewer than that preset has. f2, f4 and f8 have latents of a half, a quarter and an eighth of the side, with 4 "
        "channels each.",
        _autoencoders(results["autoencoders"]),
        "rFID is between the validation images and the same after the autoencoder, in features that no loss has seen. "
        "PSNR is in dB. The KL is of a whole latent to the standard normal, in nats. A channel is dead if less than a "
        "hundredth of its variance tells one image from another.",
    ]
    return "\n\n".join(parts) + "\n"


def _study(study: Row) -> list[str]:
    """The part of one data set."""
    title = f"## {study['data']}"
    if "left_out" in study:
        return [title, f"Left out: {study['left_out']}. `python -m bench.latent --help` says what it takes."]
    return [
        title,
        _protocol(study),
        table(
            ["draws", "steps", "GFLOP an image", *FIDS.values()],
            (
                [row["space"], str(row["steps"]), f"{row['gflops_per_image']:.2f}", *_fids(row)]
                for row in study["settings"]
            ),
        ),
        _floors(study),
        "The autoencoder:",
        _autoencoders([study["autoencoder"]]),
        table(["claim", *(f"by {name}" for name in FIDS.values())], _verdicts(study["claims"])),
        *(f"By {FIDS[name]}: {comparisons(row)}" for name, rows in study["claims"].items() for row in rows),
    ]


def _protocol(study: Row) -> str:
    protocol, cost = study["protocol"], study["training"]
    extractor, reference, validation = protocol["extractor"], protocol["reference"], protocol["validation"]
    names, steps, (first, second) = protocol["models"], protocol["steps"], protocol["seeds"]
    latents = cost["latents"] + cost["autoencoder"] + cost["encoding"]
    credit = f" {protocol['attribution']}" if protocol["attribution"] else ""
    trained = ", ".join(f"`{name}` ({steps[name]} steps)" for name in names.values())
    lines = [
        f"{'×'.join(map(str, protocol['shape']))}.{credit}",
        f"Models, each trained once, without a condition: {trained}.",
        f"Training: {cost['latents']:.1f} TFLOP for `{names['latents']}`, {cost['autoencoder']:.1f} for its "
        f"autoencoder with the discriminator and the perceptual loss, {cost['encoding']:.1f} for the latents of all "
        f"images: together {latents:.1f}. `{names['pixels']}` has {cost['pixels']:.1f}: the latents take "
        f"{latents / cost['pixels']:.0%} of that, and {cost['latents'] / cost['pixels']:.0%} without the autoencoder, "
        "which other models can share.",
        f"{protocol['samples']} samples a row, by {' and '.join(dict.fromkeys(protocol['samplers']))}. The table is of "
        f"seed {first}; where a claim is about the best setting, it is chosen there and compared on samples of seed "
        f"{second}. GFLOP an image include the decoder.",
        f"FID: features of an extractor as the pipeline's own, fitted with another seed ({extractor['kind']}, SHA-256 "
        f"{extractor['sha256'][:12]}…), against {reference['images']} training images. The {validation['images']} real "
        f"validation images score {validation['fid']:.2f}. It does not compare with a FID under InceptionV3.",
        "The features of the project's own extractor are those of the autoencoder's perceptual loss. FID in them is "
        "in the last column: it may flatter what the autoencoder has decoded. rFID is in the others. Where the two "
        "disagree, the claim depends on the features.",
        f"±: standard error by the jackknife over {protocol['groups']} groups of images. A margin counts where 0 is "
        "outside its 95 % interval. How much another training of the same model would differ is not in it.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _verdicts(claims: Mapping[str, Sequence[Row]]) -> Iterable[list[str]]:
    """A row a claim: the verdicts by each FID."""
    for rows in zip(*(claims[name] for name in FIDS), strict=True):
        yield [rows[0]["claim"], *(f"**{row['verdict']}**" for row in rows)]


def _fids(row: Row) -> list[str]:
    return [number(row[name], 2) for name in FIDS]


def _floors(study: Row) -> str:
    floors, count = study["floors"], study["protocol"]["samples"]
    rows = {f"{count} training images": floors["real"], "the same after the autoencoder": floors["decoded"]}
    heads = ["what a model can reach at best", *FIDS.values()]
    return table(heads, ([name, *_fids(row)] for name, row in rows.items()))


def _autoencoders(rows: Sequence[Row]) -> str:
    def cells(row: Row) -> list[str]:
        figures, std = row["figures"], row["std"]
        return [
            f"`{row['name']}`",
            "×".join(map(str, row["latent"])),
            f"{row['kl']:g}",
            str(row["steps"]),
            f"{row['training_tflops']:.1f}",
            f"{figures['rfid']:.2f}",
            f"{figures['psnr']:.1f}",
            f"{figures['ssim']:.3f}",
            f"{figures['latent_kl']:.0f}",
            f"{min(std):.2f} to {max(std):.2f}",
            f"{figures['dead_channels']:.0%}",
        ]

    head = ["", "latent", "KL weight", "steps", "TFLOP", "rFID", "PSNR", "SSIM", "KL", "std of a channel", "dead"]
    return table(head, map(cells, rows))


def picture(rows: Sequence[tuple[str, NDArray[np.uint8]]]) -> Image.Image:
    """Rows of images [N, H, W, C] under each other with their names; smaller ones get a white margin, grey ones three
    channels."""
    side, channels = (max(images.shape[axis] for _, images in rows) for axis in (1, 3))

    def alike(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        before = (side - images.shape[1]) // 2
        margin = (before, side - images.shape[1] - before)
        padded = np.pad(images, ((0, 0), margin, margin, (0, 0)), constant_values=255)
        return np.broadcast_to(padded, (*padded.shape[:3], channels))

    images = np.concatenate([alike(images) for _, images in rows])
    return grid(images, len(rows[0][1]), names=[name for name, _ in rows], longest_name=24)
