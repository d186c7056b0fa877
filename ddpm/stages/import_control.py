"""`ddpm import SOURCE --base MODEL --hint HINT`: a ControlNetModel of diffusers as a model directory, with its base."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from ddpm.conditioning.network import ConditionalNetwork
from ddpm.config.base import validate
from ddpm.config.condition import ConditionConfig
from ddpm.config.model import ModelConfig
from ddpm.errors import UserError
from ddpm.files import atomic_directory, read_json, sha256_of
from ddpm.interop import diffusers
from ddpm.interop.diffusers.control import Found, convert, for_one_channel
from ddpm.interop.saved import read_saved, tensors_alone
from ddpm.model import Model, save
from ddpm.model.card import ModelCard, TrainingFacts
from ddpm.model.network import build_network, columns_for
from ddpm.model.weights import refuse_not_finite_weights
from ddpm.nets.controlled import Controlled
from ddpm.stages.train import write_curve
from ddpm.training.configured import parameter_count
from ddpm.training.control import load_base
from ddpm.training.start import facts_of, opened

HINTS = ("edges", "silhouette", "given")  # given: a colour picture, of whatever the control was trained on
BLACK_AND_WHITE = ("edges", "silhouette")


def import_control(source: Path, out: Path, *, base: str, hint: str, root: Path = Path()) -> str:
    """Write the model directory `out`: the weights of a base and those of a control that was trained on it.

    Args:
        source: a directory of diffusers' ControlNetModel.
        base: a model directory with the U-Net that is controlled.
        hint: one of `HINTS`, what the control was trained on.

    Returns:
        A line on what was made.

    Raises:
        UserError: the source is damaged or of another network than the base, or `out` is there already.
        NotFiniteError: the weights hold NaN or infinite values.
    """
    if out.exists():
        raise UserError(f"--out {out}: it is there already")
    model = opened(base, "--base", root)
    files = [path for path in diffusers.find(source).weights if path.suffix != ".json"]
    weights: dict[str, Tensor] = {}
    for path in files:
        weights |= tensors_alone(read_saved(path), str(path))
    try:
        config = read_json(source / "config.json")
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{source / 'config.json'}: missing or damaged: {error}") from None
    found = convert(config, weights, model.codec.network_shape[1], str(source))
    refuse_not_finite_weights(found.weights, str(source))
    if hint in BLACK_AND_WHITE:
        found = for_one_channel(found)
    made = _assembled(model, found, out.resolve().name, base, hint, " ".join(map(sha256_of, files)))
    with atomic_directory(out) as directory:
        save(made, directory)
        write_curve([], directory / "loss.csv")
    return (
        f"{out}: {made.card.parameters / 1e6:.2f} M parameters, those of {base} among them. To draw: ddpm sample {out} "
        "--control FILE"
    )


@torch.no_grad()
def _assembled(base: Model, found: Found, variant: str, of: str, hint: str, mark: str) -> Model:
    card, side = base.card, base.codec.network_shape[1] * found.hint.shrink
    control = {"of": of, "hint": hint, "widths": found.hint.widths, "shrink": found.hint.shrink}
    condition = {**card.config.condition.model_dump(), "control": control}
    config = card.config.model_copy(
        update={"condition": validate(ConditionConfig, condition, "--hint"), "network": found.network}
    )
    _check_fit(config, base, of)
    given = (side, side, found.hint.channels) if hint == "given" else None
    data = card.data.model_copy(update={"hint_shape": given})
    columns = columns_for(config, data, variant)
    network = cast(ConditionalNetwork, build_network(config, base.codec, variant, columns))
    load_base(network, base.network, of)
    cast(Controlled, network.network).controls[0].load_state_dict(found.weights)
    training = TrainingFacts(
        fingerprint=hashlib.sha256(f"{base.fingerprint} {mark}".encode()).hexdigest(),
        weights="imported",
        control_of=facts_of(base),
    )
    made = ModelCard(
        variant=variant,
        config=ModelConfig.model_validate(config.model_dump(exclude={"objective", "training"})),
        data=data,
        training=training,
        parameters=parameter_count(network),
        own_plan=card.own_plan,
    )
    return Model(network.eval().requires_grad_(False), made, autoencoder=base.autoencoder)


def _check_fit(config: ModelConfig, base: Model, of: str) -> None:
    """
    Raises:
        UserError: the base is of another network; names the key.
    """
    try:
        config.check_controls(base.card.config, of)
    except ValueError as error:
        raise UserError(f"--base {of} has another network than the control was trained on: {error}") from None
