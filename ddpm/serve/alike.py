"""Pictures that a request gives a model, to draw others like them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.conditioning.pictures import ImageColumn
from ddpm.data.given import from_base64
from ddpm.drawer import Drawer
from ddpm.drawer.likeness import STRENGTH, Likeness


class Asked(Protocol):
    """What a request says of pictures alike, as of `schemas.ImageRequest`."""

    n: int
    like: Any
    mix: int | None
    change_from: str | None
    change_to: str | None
    strength: float | None

    @property
    def model_fields_set(self) -> set[str]:
        """The keys that the request has."""
        ...

    @property
    def one_noise(self) -> bool: ...

    @property
    def count(self) -> int: ...


@dataclass(frozen=True)
class LikeColumn(ImageColumn):
    """A picture as the model's encoder takes it, uint8 [H, W, C]."""

    name: ClassVar[str] = "like"


def like_columns(drawer: Drawer) -> tuple[LikeColumn, ...]:
    """`like` of a model that draws pictures of embeddings; of others nothing."""
    return () if drawer.encoder is None else (LikeColumn(drawer.encoder.shape),)


def alike(asked: Asked, drawer: Drawer) -> dict[str, Any]:
    """What a request for pictures like given ones asks of the model's columns; of others nothing.

    Raises:
        ValueError: the model takes no such pictures, one cannot be read or has another size, or the keys do not go
            together.
    """
    change = (asked.change_from, asked.change_to)
    if (change[0] is None) != (change[1] is None):
        raise ValueError("`from` and `to` go together: give both or neither")
    if asked.strength is not None and change[0] is None:
        raise ValueError("strength is how far `from` and `to` change the picture: give them too")
    if asked.like is None:
        if asked.one_noise:
            raise ValueError("mix, from and to need a picture: `like`")
        return {}
    if drawer.encoder is None:
        raise ValueError("like: the model draws no pictures of CLIP embeddings")
    if "n" in asked.model_fields_set and asked.n != asked.count:
        how_many = "`from` and `to` draw one image, or as many as `mix` says" if asked.mix is None else "`mix` says it"
        raise ValueError(f"n is how many images are drawn, and {how_many}; leave `n` out")
    (column,) = like_columns(drawer)
    texts = None if change[0] is None or change[1] is None else (change[0], change[1])
    strength = STRENGTH if asked.strength is None else asked.strength
    likeness = Likeness(from_base64(column, asked.like), asked.mix, texts, strength)
    return {EmbeddingColumn.name: likeness.embeddings(drawer.encoder)}
