"""`ddpm import` and `ddpm export-diffusers`: models from elsewhere, and to elsewhere."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from ddpm.config import DATA_NAME, VARIANT_NAME, ModelConfig, NetworkConfig
from ddpm.data.kinds import ValueKind
from ddpm.errors import UserError
from ddpm.files import atomic_directory, sha256_of
from ddpm.interop import diffusers, lucidrains, openai
from ddpm.interop.published import Flags, Published, in_short, read_saved, shown, tensors_alone
from ddpm.layout import find_model
from ddpm.model import DataFacts, Model, ModelCard, TrainingFacts, build_network, load, refuse_not_finite_weights, save
from ddpm.stages.train import write_curve


def import_model(source: Path, out: Path, flags: Flags, *, data_name: str | None = None) -> str:
    """Write the model directory `out` from a checkpoint file or a diffusers directory.

    The card's facts of data and training stay empty but for the name, since no such checkpoint tells them; the
    fingerprint is the SHA-256 of the file of weights, or of those of all its files, and loss.csv has no rows.

    Args:
        flags: what the source does not tell.
        data_name: what the model was trained on; by default the name of `out`.

    Returns:
        A line on what was made.

    Raises:
        UserError: the source is damaged, of another network, class-conditional or lacks something, a flag does not
            apply to it, `out` is there already or its name cannot be a model's.
        NotFiniteError: the weights hold NaN or infinite values.
    """
    _must_be_new(out)
    variant = out.resolve().name
    _must_be_a_name(variant, VARIANT_NAME, f"--out {out}: its last part becomes the model's name")
    if data_name is not None:
        _must_be_a_name(data_name, DATA_NAME, "--data-name")
    published, weights = _read(source, flags)
    _refuse_classes(published, source)
    refuse_not_finite_weights(published.weights, str(source))
    model = assemble(published, variant=variant, data_name=data_name or variant, fingerprint=_fingerprint(weights))
    with atomic_directory(out) as temporary:
        save(model, temporary)
        write_curve([], temporary / "loss.csv")
    process, shape = published.process, "×".join(map(str, model.shape))
    notes = "".join(f"; {note}" for note in published.notes)
    return (
        f"{out}: {model.card.parameters / 1e6:.2f} M parameters, {model.kind.name} of {shape}, "
        f"{process.schedule} schedule of {process.timesteps} steps{notes}. To evaluate and export it, "
        f"add {model.card.variant} to `models` in params.yaml, with the `sampling` you want"
    )


def _must_be_a_name(name: str, pattern: str, what: str) -> None:
    if not re.fullmatch(pattern, name):
        marks = "., - and _" if pattern == DATA_NAME else "- and _"
        likely = "-".join(re.findall(r"[a-z0-9]+", name.lower())) or "imported"
        raise UserError(
            f"{what}; params.yaml has names of lower-case letters, digits, {marks}; found {shown(name)}, try {likely}"
        )


def _fingerprint(weights: Sequence[Path]) -> str:
    """The SHA-256 of the file of weights; of several files, that of theirs."""
    hashes = [sha256_of(path) for path in weights]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def _read(source: Path, flags: Flags) -> tuple[Published, tuple[Path, ...]]:
    """The model, and the files that have its weights.

    Names and shapes are taken at their word and checked when the whole is put together; what breaks before that is of
    no shape that a reader knows.
    """
    try:
        return _known(source, flags)
    except (ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{source}: not a checkpoint that ddpm knows ({in_short(error)})") from error


def _known(source: Path, flags: Flags) -> tuple[Published, tuple[Path, ...]]:
    """By the reader of its kind."""
    if source.is_dir():
        return diffusers.read(source, flags), diffusers.find(source).weights
    saved, where = read_saved(source), str(source)
    if lucidrains.is_theirs(saved):
        return lucidrains.convert(saved, flags, where), (source,)
    return openai.convert(tensors_alone(saved, where), flags, where), (source,)


def _refuse_classes(published: Published, source: Path) -> None:
    """A network that never saw an image without its class predicts nothing sensible without one."""
    network = published.network
    if isinstance(network, NetworkConfig) and network.num_classes:
        raise UserError(
            f"{source}: it is conditioned on {network.num_classes} classes; ddpm samples without "
            "classes: import an unconditional model"
        )


def assemble(published: Published, *, variant: str, data_name: str, fingerprint: str) -> Model:
    """The model of a published network, with its card."""
    config = ModelConfig(network=published.network, process=published.process, sampling=published.sampling)
    kind = published.kind
    network = build_network(config, kind)
    network.load_state_dict(published.weights)
    low, high = (kind.low, kind.high) if isinstance(kind, ValueKind) else (None, None)
    card = ModelCard(
        variant=variant,
        config=config,
        data=DataFacts(name=data_name, shape=kind.shape, classes=None, kind=kind.name, low=low, high=high),
        training=TrainingFacts(fingerprint=fingerprint, weights="imported"),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        own_plan=True,
    )
    return Model(network.eval().requires_grad_(False), card)


def export_diffusers(model_directory: Path, out: Path) -> None:
    """Write the directory `out` for diffusers' `DDPMPipeline.from_pretrained` from a model directory.

    Raises:
        UserError: there is no model, it uses what UNet2DModel or DDPMScheduler lacks, or `out` is there already.
    """
    _must_be_new(out)
    model = load(find_model(model_directory, exported=False))
    config = model.card.config
    weights = dict(model.network.state_dict())
    published = Published(config.network, config.process, config.sampling, model.kind, weights)
    with atomic_directory(out) as temporary:
        diffusers.write(published, temporary)


def _must_be_new(out: Path) -> None:
    if out.exists():
        raise UserError(f"{out}: exists already; remove it or name another directory")
