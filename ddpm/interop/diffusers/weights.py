"""The weights of diffusers' U-Nets under our names, and ours under theirs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ddpm.config.network import NetworkConfig
from ddpm.interop.diffusers.names import new_name, their_names
from ddpm.interop.published import refuse_other_keys, shaped_like, swap_halves

_TIME = "time_mlp.0.weight"


def ours_of(
    theirs: Mapping[str, Tensor],
    network: NetworkConfig,
    ours: nn.Module,
    where: str,
    *,
    cosines_first: bool,
    others: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Their weights by our names and in our shapes.

    Args:
        theirs: by the names of any of their versions.
        ours: our network.
        cosines_first: in their embedding of the timestep (`flip_sin_to_cos`).
        others: names that may be among theirs and are not of the network.

    Raises:
        UserError: names are missing or too many, or a shape differs.
    """
    names = their_names(network, ours.state_dict())
    theirs = {new_name(name): tensor for name, tensor in theirs.items()}
    refuse_other_keys(theirs, [*others, *(part for parts in names.values() for part in parts)], where)
    weights = {name: torch.cat([theirs[part] for part in parts]) for name, parts in names.items()}
    if cosines_first:
        weights[_TIME] = swap_halves(weights[_TIME])
    return shaped_like(weights, ours, where)


def theirs_of(weights: Mapping[str, Tensor], network: NetworkConfig, *, cosines_first: bool) -> dict[str, Tensor]:
    """Our weights by their names and in their shapes; the inverse of `ours_of`."""
    weights = {**weights, _TIME: swap_halves(weights[_TIME])} if cosines_first else weights
    theirs = {}
    for name, parts in their_names(network, weights).items():
        for part, tensor in zip(parts, weights[name].chunk(len(parts)), strict=True):
            # Queries, keys and values are linear layers there.
            theirs[part] = (tensor.flatten(1) if ".to_" in part and tensor.ndim > 2 else tensor).contiguous()
    return theirs
