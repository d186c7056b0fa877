"""Starting a training from another model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.conditioning.columns import Column
from ddpm.conditioning.network import CONDITIONERS, ConditionalNetwork, by_key, columns_in
from ddpm.conditioning.text import Text
from ddpm.config.condition import PromptConfig
from ddpm.errors import UserError
from ddpm.files import combined_sha256, sha256_of
from ddpm.interop import clip
from ddpm.layout import find_model
from ddpm.model import Model, load
from ddpm.model.card import StartFacts
from ddpm.nets.clip import TextTower

# What widens a network's ports: the maps that it takes beside x, and the keys and values of tokens.
MAPS, TOKENS = "network.stem_maps.weight", ".token_kv."


def start_from(
    network: nn.Module, base: Path | str, where: str, *, root: Path = Path(), controlled: StartFacts | None = None
) -> StartFacts:
    """Copy the weights of a model into a freshly initialised network, which may have more conditions than the model.

    Weights for maps that the model does not take become zero. So a network with no other new condition begins as the
    model's function (Nichol et al. 2022, GLIDE, §4.2). Other weights that the model has not stay as they are.

    Args:
        base: the model, as `layout.find_model` takes it.
        where: what names it, for errors.
        root: the project's folder.
        controlled: the model that the network controls, if it is a ControlNet.

    Raises:
        UserError: there is no such model, or it is of another network, other classes or another tokenizer, or controls
            another model.
    """
    model = opened(base, where, root)
    check_columns(columns_in(network), columns_in(model.network), f"{where}: {base}")
    if controlled is not None:
        check_same_base(model.card.training.control_of, controlled, f"{where}: {base}")
    copy(network, model.network, f"{where}: {base}")
    return facts_of(model)


def opened(base: Path | str, where: str, root: Path) -> Model:
    """The model that a training needs; the arguments are those of `start_from`.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return load(find_model(base, exported=False, root=root))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def check_same_base(found: StartFacts | None, expected: StartFacts, where: str) -> None:
    """Check that a ControlNet was trained on a model.

    Args:
        found: the model that it was trained on; None: it is no ControlNet.
        where: what names it, for errors.

    Raises:
        UserError: it was trained on another one, or is none.
    """
    if found is None:
        raise UserError(f"{where} controls no model: it was trained without `condition.control`")
    if found.sha256 != expected.sha256:
        raise UserError(
            f"{where} was trained to control {found.variant} with the SHA-256 {found.sha256[:12]}…, and not "
            f"{expected.variant} with {expected.sha256[:12]}…: a control is of one base alone"
        )


def text_encoder_from(
    network: nn.Module, options: PromptConfig | None, where: str, *, root: Path = Path()
) -> str | None:
    """Load the text encoder that `condition.prompt.weights` names.

    Args:
        options: the section `condition.prompt`.
        where: the section `condition` is described, for errors.
        root: the project's folder.

    Returns:
        What identifies the weights; None: the section names none.

    Raises:
        UserError: the directory is missing or damaged, or holds another encoder than the section describes.
    """
    if options is None or options.weights is None:
        return None
    directory, where = root / Path(options.weights).expanduser(), f"{where}.prompt"
    try:
        published, files = clip.read(directory)
    except UserError as error:
        raise UserError(f"{where}.weights: {error}") from None
    text = network.get_submodule(Text.saved_as)
    assert isinstance(text, Text | TextTower)
    vocabulary = text.encoder.tokens.num_embeddings
    for key, found in published.options.items():
        if getattr(options, key) != found:
            raise UserError(f"{where}.{key} is {getattr(options, key)}, but the encoder in {directory} has {found}")
    if vocabulary != published.vocabulary:
        raise UserError(
            f"{where}: the tokenizer has {vocabulary} ids, but the encoder in {directory} {published.vocabulary}: give "
            "its `vocabulary`"
        )
    text.encoder.load_state_dict(published.weights)
    return combined_sha256(files)


@torch.no_grad()
def copy(network: nn.Module, base: nn.Module, where: str) -> None:
    """`start_from` of two networks.

    Raises:
        UserError: the base is of another network; names what does not fit.
    """
    ours, theirs = _named(network), _named(base)
    our_maps, their_maps = ours.pop(MAPS, None), theirs.pop(MAPS, None)
    new = tuple(f"{CONDITIONERS[key].saved_as}." for key in by_key(columns_in(network)).keys() - _keys(base))
    missing = sorted(name for name in ours.keys() - theirs.keys() if not name.startswith(new) and TOKENS not in name)
    unexpected = sorted(theirs.keys() - ours.keys())
    if not _map_slices(base).keys() <= _map_slices(network).keys():
        unexpected.append(MAPS)
    if missing or unexpected:
        raise UserError(f"{where} is of another network: missing {missing[:3]}, unexpected {unexpected[:3]}")
    for name in theirs:
        if ours[name].shape != theirs[name].shape:
            found, expected = list(theirs[name].shape), list(ours[name].shape)
            raise UserError(f"{where} is of another network: {name} is {found}, expected {expected}")
        ours[name].copy_(theirs[name])
    if our_maps is not None:
        our_maps.zero_()
    if our_maps is not None and their_maps is not None:
        for key, own in _map_slices(base).items():
            our_maps[:, _map_slices(network)[key]] = their_maps[:, own]


def _named(network: nn.Module) -> dict[str, Tensor]:
    """The weights by the names that they have in a network with a condition."""
    prefix = "" if isinstance(network, ConditionalNetwork) else "network."
    return {f"{prefix}{name}": tensor for name, tensor in network.state_dict().items()}


def _keys(network: nn.Module) -> set[str]:
    """The keys of `condition` that a network has."""
    return set(by_key(columns_in(network)))


def _map_slices(network: nn.Module) -> dict[str, slice]:
    """Which of the maps of a network are of which key."""
    slices, first = {}, 0
    for key, columns in by_key(columns_in(network)).items():
        count = CONDITIONERS[key].needs(columns, {}).maps
        if count:
            slices[key] = slice(first, first + count)
            first += count
    return slices


def check_columns(ours: tuple[Column, ...], theirs: tuple[Column, ...], where: str) -> None:
    """Weights of a class or of a token are of no other class or token.

    Raises:
        UserError: the columns have other classes or another tokenizer.
    """
    own: Mapping[str, Any] = {column.name: column for column in ours}
    for column in theirs:
        for what in ("classes", "tokenizer"):
            if column.name in own and getattr(column, what, None) != getattr(own[column.name], what, None):
                raise UserError(f"{where} was trained with {'other' if what == 'classes' else 'another'} {what}")


def facts_of(model: Model) -> StartFacts:
    """What names a model directory."""
    assert model.directory is not None  # it was read
    return StartFacts(
        variant=model.card.variant,
        fingerprint=model.card.training.fingerprint,
        sha256=sha256_of(model.directory / "model.safetensors"),
    )
