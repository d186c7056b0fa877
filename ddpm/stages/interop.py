"""`ddpm import` and `ddpm export-diffusers`: models from elsewhere, and to elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

from ddpm.config import NetworkConfig, ObjectiveConfig, VariantConfig
from ddpm.data.kinds import data_kind
from ddpm.errors import UserError
from ddpm.files import atomic_directory, sha256_of
from ddpm.interop import diffusers, openai
from ddpm.interop.openai import Flags
from ddpm.interop.published import Published
from ddpm.model import DataFacts, Model, ModelCard, TrainingFacts, build_network, load, save
from ddpm.stages.train import write_curve


def import_model(source: Path, out: Path, flags: Flags, *, data_name: str | None = None) -> str:
    """Write the model directory `out` from a `.pt` file or a diffusers directory.

    The card's facts of data and training stay empty but for the name, since no such checkpoint tells them; the
    fingerprint is the SHA-256 of the file of weights, and loss.csv has no rows.

    Args:
        flags: what a `.pt` file does not tell; of a directory, only the image size is looked at.
        data_name: what the model was trained on; by default the name of `out`.

    Returns:
        A line on what was made.

    Raises:
        UserError: the source is damaged, of another network or lacks something, or `out` is there already.
    """
    _must_be_new(out)
    if source.is_dir():
        published, weights = diffusers.read(source, flags.image_size), diffusers.weights_file(source)
    else:
        published, weights = openai.read(source, flags), source
    name = data_name or "-".join(re.findall(r"[a-z0-9]+", out.resolve().name.lower())) or "imported"
    model = assemble(published, variant=out.resolve().name, data_name=name, fingerprint=sha256_of(weights))
    with atomic_directory(out) as temporary:
        save(model, temporary)
        write_curve([], temporary / "loss.csv")
    return (
        f"{out}: {model.card.parameters / 1e6:.2f} M parameters, {published.image_size}×{published.image_size}, "
        f"{published.process.schedule} schedule of {published.process.timesteps} steps. To evaluate and export it, "
        f"name {model.card.variant} under `models` in params.yaml, with the `sampling` it shall have"
    )


def assemble(published: Published, *, variant: str, data_name: str, fingerprint: str) -> Model:
    """The model of a published network, with its card."""
    config = VariantConfig(
        network=published.network,
        process=published.process,
        objective=ObjectiveConfig(loss="hybrid" if published.process.variance == "learned_range" else "simple"),
        sampling=published.sampling,
    )
    shape = (published.image_size, published.image_size, published.channels)
    network = build_network(config, data_kind("images", shape))
    network.load_state_dict(published.weights)
    card = ModelCard(
        variant=variant,
        config=config,
        data=DataFacts(name=data_name, shape=shape, classes=None),
        training=TrainingFacts(fingerprint=fingerprint, weights="imported"),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
    )
    return Model(network.eval().requires_grad_(False), card)


def export_diffusers(model_directory: Path, out: Path) -> None:
    """Write the directory `out` for diffusers' `DDPMPipeline.from_pretrained` from a model directory.

    Raises:
        UserError: there is no model, it uses what UNet2DModel lacks, or `out` is there already.
    """
    _must_be_new(out)
    model = load(model_directory)
    height, _, channels = model.shape
    config = model.card.config
    if not isinstance(config.network, NetworkConfig):
        raise UserError(f"{model_directory}: diffusers' UNet2DModel is no {config.network.kind} network")
    published = Published(
        config.network, config.process, config.sampling, height, channels, dict(model.network.state_dict())
    )
    with atomic_directory(out) as temporary:
        diffusers.write(published, temporary)


def _must_be_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or name another directory")
