"""Beginning a ControlNet: the weights of the model that it controls, frozen, and a copy of them to train."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn

from ddpm.conditioning.network import ConditionalNetwork, columns_in
from ddpm.config.model import VariantConfig
from ddpm.errors import UserError
from ddpm.first_stage import LatentFacts, latents_in_words
from ddpm.model.card import StartFacts
from ddpm.nets.controlled import Controlled
from ddpm.training.start import check_columns, facts_of, opened

BASE = "base."  # what the names of the frozen weights begin with, within the network


def take_control(
    network: nn.Module,
    config: VariantConfig,
    shape: tuple[int, ...],
    where: str,
    *,
    root: Path = Path(),
    latent: LatentFacts | None = None,
) -> StartFacts:
    """Copy the weights of a trained model into a freshly initialised ControlNet, twice: as the base, which is frozen
    with what conditions it, and as the control's.

    Args:
        config: of the ControlNet.
        shape: of the images that it draws, [H, W, C].
        where: what names the model, for errors.
        root: the project's folder.
        latent: the autoencoder whose latents it draws; None: it draws pixels.

    Returns:
        The model that is controlled.

    Raises:
        UserError: there is no such model, or it is of another network, process or condition, or of other latents.
    """
    assert config.condition.control is not None
    of = config.condition.control.of
    model = opened(of, where, root)
    try:
        config.check_controls(model.card.config, of)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    if model.codec.shape != shape:
        theirs, ours = ("×".join(map(str, each)) for each in (model.codec.shape, shape))
        raise UserError(f"{where}: {of} draws images of {theirs}, and the data are of {ours}")
    if model.card.data.latent != latent:
        theirs, ours = map(latents_in_words, (model.card.data.latent, latent))
        raise UserError(f"{where}: {of} draws {theirs}, and this model {ours}: train {of} again")
    check_columns(columns_in(network), columns_in(model.network), f"{where}: {of}")
    load_base(cast(ConditionalNetwork, network), model.network, f"{where}: {of}")
    return facts_of(model)


@torch.no_grad()
def load_base(network: ConditionalNetwork, base: nn.Module, where: str = "the base") -> None:
    """`take_control` of two networks.

    Raises:
        UserError: the base is of another network; names what does not fit.
    """
    controlled = cast(Controlled, network.network)
    parts = {"network.base": controlled.base, **{name: network.get_submodule(name) for name in network.saved_as}}
    theirs = base.state_dict()
    if not isinstance(base, ConditionalNetwork):
        theirs = {f"network.{name}": tensor for name, tensor in theirs.items()}
    for place, module in parts.items():
        prefix = place.removesuffix("." + BASE[:-1]) + "."
        own = {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise UserError(f"{where} is of another network: {str(error).splitlines()[1].strip()}") from None
        module.requires_grad_(False)
    controlled.copy_base()
