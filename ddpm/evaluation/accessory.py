"""Models that other models are made with or measured by, such as an autoencoder or a CLIP: opened by what params.yaml
calls them, and held against the data."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from ddpm.codecs.scale import Codec
from ddpm.errors import UserError
from ddpm.files import sha256_of
from ddpm.joint_space import JointSpace
from ddpm.layout import find_model
from ddpm.model import Model, load
from ddpm.nets.clip import CLIP

# By network.kind.
_CALLED = {"autoencoder": "an autoencoder", "clip": "a CLIP"}


def open_accessory(
    kind: str, name: str, codec: Codec, where: str, root: Path, device: torch.device
) -> tuple[Model, str]:
    """A trained model of images like the prepared ones, and the hash of its weights.

    Args:
        kind: its network.kind.
        name: the model, as `layout.find_model` takes it.
        codec: of the prepared data.
        where: what names it, for errors.
        root: the project's folder.

    Raises:
        UserError: there is none, or it is of another kind or of other images.
    """
    called = _CALLED[kind]
    try:
        directory = find_model(name, exported=False, root=root)
        model = load(directory, device)
    except UserError as error:
        named = Path(where).name == name  # by the error itself
        raise UserError(str(error) if named else f"{where}: {error}") from None
    found = model.card.config.network.kind
    if found != kind:
        raise UserError(f"{where}: {name} is no {called.partition(' ')[2]} but of network.kind {found}")
    if (model.codec.name, model.shape) != (codec.name, codec.shape):
        of, there = ("×".join(map(str, shape)) for shape in (model.shape, codec.shape))
        raise UserError(
            f"{where}: {name} is {called} of {model.codec.name} of {of}, but the prepared data are {codec.name} of "
            f"{there}"
        )
    return model, sha256_of(directory / "model.safetensors")


def open_space(name: str, codec: Codec, where: str, root: Path, device: torch.device) -> tuple[Model, JointSpace]:
    """A trained CLIP of images like the prepared ones.

    Args:
        name, codec, where, root: as of `open_accessory`.

    Raises:
        UserError: there is no such model, or it is no CLIP, or of other images.
    """
    model, sha256 = open_accessory("clip", name, codec, where, root, device)
    return model, JointSpace(cast(CLIP, model.network), model.codec, model.variant, sha256)
