"""The caption as a condition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddpm.conditioning.conditioner import Conditioner
from ddpm.nets.clip import CLIP, TextTower
from ddpm.nets.condition import Condition, Ports
from ddpm.nets.text import CLIPText, Marks, TextEncoder, TextTransformer

# Of the encoder, where the section does not say: GLIDE's.
SIZES = {"width": 512, "layers": 16, "heads": 8}


def _clip(vocabulary: int, length: int, tokenizer: Any, options: Mapping[str, Any], **sizes: Any) -> CLIPText:
    end, filler = tokenizer.padding, options.get("filler")
    marks = Marks(tokenizer.start, end, end if filler is None else filler)
    if marks.filler >= vocabulary:
        raise ValueError(f"condition.prompt.filler is {filler}, but the tokenizer has {vocabulary} ids")
    return CLIPText(vocabulary, length, marks=marks, **sizes)


def _glide(vocabulary: int, length: int, tokenizer: Any, options: Mapping[str, Any], **sizes: Any) -> TextTransformer:
    return TextTransformer(vocabulary, length, **sizes)


# By `condition.prompt.encoder`: (number of ids, tokens of a caption, tokenizer, section; sizes, activation) → encoder.
ENCODERS: dict[str, Callable[..., TextEncoder]] = {"glide": _glide, "clip": _clip}
# How many tokens each adds to a caption.
MARKS = {"glide": 0, "clip": 2}


class Text(Conditioner):
    """A caption as tokens that every attention attends to, and, if `pooled`, a vector that joins the timestep's
    embedding: a projection of the encoder's last position (Nichol et al. 2022, GLIDE, §4.1).

    With `embedding` the vector is made of the text's embedding instead, as a CLIP has it: a projection of the position
    that stands for the whole text.

    No caption is the empty one, of padding alone. The tokens have a mask only if `masked`: padding says something too.
    """

    saved_as = "text"
    fills = frozenset({"vector", "tokens"})

    @classmethod
    def needs(cls, columns: Sequence[Any], options: Mapping[str, Any]) -> Ports:
        (length,), marks = columns[0].shape, MARKS[options.get("encoder", "glide")]
        return Ports(tokens=_sizes(options)["width"], length=length + marks)

    def __init__(self, columns: Sequence[Any], width: int, options: Mapping[str, Any]) -> None:
        """
        Args:
            columns: one with `shape` [L] and a `tokenizer` that has `size`, the number of ids, and the id `padding`; of
                the encoder `clip` also the id `start`.
            width: of the vector.
            options: the section `condition.prompt`: `encoder`, its `width`, `layers`, `heads` and `activation`;
                `pooled`; `frozen`; `embedding`, the numbers of the text's embedding; `masked`.

        Raises:
            ValueError: the heads do not divide the width.
        """
        super().__init__()
        (self._column,) = columns
        self.encoder = encoder_of(self._column, options)
        own, numbers = self.encoder.tokens.embedding_dim, options.get("embedding")
        self._masked = options.get("masked", False)
        self.embed = None if numbers is None else nn.Linear(own, numbers, bias=False)
        if self.embed is not None:
            self.embed.requires_grad_(not options.get("frozen", False))
        self.projection = nn.Linear(numbers or own, width) if options.get("pooled", True) else None

    def forward(self, given: Mapping[str, Tensor]) -> Condition:
        """`prompt` [N, L] int64 → the port `tokens`, with `mask` if `masked`, and `vector` if `pooled`."""
        tokens, there = self._encoded(given)
        whole = tokens[:, -1] if self.embed is None else self._embedded(tokens, there)
        return Condition(
            vector=None if self.projection is None else self.projection(whole),
            tokens=tokens,
            mask=self.encoder.mask(there) if self._masked else None,
        )

    @property
    def column(self) -> Any:
        """The prompt's."""
        return self._column

    def embedding(self, given: Mapping[str, Tensor]) -> Tensor:
        """`prompt` [N, L] int64 → the texts' embeddings, [N, numbers], of any length; of a model with `embedding`."""
        return self._embedded(*self._encoded(given))

    def _encoded(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What the encoder makes of the texts, and which ids are of them."""
        ids = given[self._column.name]
        there = ids != self._column.tokenizer.padding
        return self.encoder(ids, there), there

    def _embedded(self, tokens: Tensor, there: Tensor) -> Tensor:
        assert self.embed is not None  # the section has `embedding`
        rows = torch.arange(tokens.shape[0], device=tokens.device)  # len would fix the batch in ONNX
        return self.embed(tokens[rows, self.encoder.last(there)])


def encoder_of(column: Any, options: Mapping[str, Any]) -> TextEncoder:
    """The encoder of a caption, with random weights; the arguments are those of `Text`."""
    (length,), tokenizer = column.shape, column.tokenizer
    make = ENCODERS[options.get("encoder", "glide")]
    activation = options.get("activation", "gelu")
    encoder = make(tokenizer.size, length, tokenizer, options, **_sizes(options), activation=activation)
    return encoder.requires_grad_(not options.get("frozen", False))


def clip_of(image: nn.Module, columns: Sequence[Any], options: Mapping[str, Any], embedding: int) -> CLIP:
    """A CLIP with an encoder of the captions beside an image tower.

    Args:
        image: to [N, D].
        columns: the caption's, as of `Text`.
        options: the section `condition.prompt`.
        embedding: D.
    """
    (column,) = columns
    text = TextTower(encoder_of(column, options), column.tokenizer.padding, embedding)
    return CLIP(image, text, (column,))


def _sizes(options: Mapping[str, Any]) -> dict[str, int]:
    return {name: options.get(name, size) for name, size in SIZES.items()}
