"""Pictures and texts to embeddings by exported encoders: numpy and onnxruntime alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import PixelCodec
from ddpm.conditioning.columns import PromptColumn
from ddpm.conditioning.tokenizers import tokenizer_of
from ddpm.errors import UserError

IMAGE_ENCODER, TEXT_ENCODER = "image_encoder.onnx", "text_encoder.onnx"
BATCH = 256  # at once
_NEEDED_FOR = {
    IMAGE_ENCODER: "it embeds the pictures that others are drawn like",
    TEXT_ENCODER: "it embeds texts, for pictures that they change and for a prior with several candidates",
}

# Opens a file of a deploy directory by its name.
Open = Callable[[str], Any]


class ExportedTexts:
    """text_encoder.onnx."""

    def __init__(self, open_file: Open) -> None:
        self._open = open_file

    @cached_property
    def _session(self) -> Any:
        return self._open(TEXT_ENCODER)

    def tokens(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings [N, D] of texts as tokens, int64 [N, L]."""
        return in_parts(self._session, PromptColumn.name, ids)

    def try_out(self, length: int, numbers: int) -> None:
        """Embed a text of padding.

        Args:
            length: L, of its tokens.
            numbers: D.

        Raises:
            UserError: the file is missing or damaged, or gives other numbers than embeddings.
        """
        _try_out(TEXT_ENCODER, lambda: self.tokens(np.zeros((1, length), np.int64)), numbers)


class ExportedSpace:
    """The CLIP of an exported decoder, as `drawer.likeness.Encoder`."""

    def __init__(self, open_file: Open, data: Mapping[str, Any]) -> None:
        """
        Args:
            data: of sampler.json, as `model.card.DataFacts` has it.

        Raises:
            ValueError: it does not describe a CLIP.
        """
        try:
            own = data["encoder"]["card"]["data"]
            self.shape: tuple[int, ...] = PixelCodec(tuple(own["shape"])).shape
            self._numbers = int(data["encoder"]["numbers"])
            tokenizer = tokenizer_of(own["text"]["tokenizer"])
        except (KeyError, TypeError):
            raise ValueError(
                "`data.encoder`: expected the shape, the tokenizer and the numbers of a CLIP's embedding"
            ) from None
        self.column, self._texts = PromptColumn(tokenizer, ("",)), ExportedTexts(open_file)
        self._open = open_file

    @cached_property
    def _images(self) -> Any:
        return self._open(IMAGE_ENCODER)

    def images(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pictures [N, H, W, C] → embeddings [N, D] of length 1."""
        x = np.moveaxis(pictures, 3, 1).astype(np.float32) / np.float32(127.5) - np.float32(1)
        return in_parts(self._images, "x", x)

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As of `images`."""
        return self.tokens(self.column.read(list(texts), len(texts)))

    def tokens(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings [N, D] of length 1 of texts as tokens, int64 [N, L]."""
        return self._texts.tokens(ids)

    def try_out(self) -> None:
        """Embed a black picture and a text.

        Raises:
            UserError: a file is missing or damaged, or gives other numbers than embeddings.
        """
        _try_out(IMAGE_ENCODER, lambda: self.images(np.zeros((1, *self.shape), np.uint8)), self._numbers)
        self._texts.try_out(self.column.shape[0], self._numbers)


def _try_out(file: str, embed: Callable[[], NDArray[np.float32]], numbers: int) -> None:
    try:
        found = embed().shape
    except UserError:
        raise
    except Exception as error:  # onnxruntime's own exception types are not public
        raise UserError(f"{file} loads, but embeds nothing: {str(error).splitlines()[0]}") from None
    if found != (1, numbers):
        raise UserError(f"{file}: expected an embedding of {numbers} numbers, found {list(found[1:])}")


def in_parts(session: Any, name: str, values: NDArray[Any]) -> NDArray[np.float32]:
    """What a session makes of its one input, `BATCH` at a time."""
    parts = [values[first : first + BATCH] for first in range(0, len(values), BATCH)]
    return np.concatenate([session.run(None, {name: part})[0] for part in parts])


def opener(directory: Path, open_session: Callable[[Path], Any]) -> Open:
    """
    Args:
        open_session: of a file that is there.
    """

    def open_file(name: str) -> Any:
        path = directory / name
        if not path.is_file():
            raise UserError(f"{path} is missing: {_NEEDED_FOR[name]}; `ddpm export` makes it")
        return open_session(path)

    return open_file
