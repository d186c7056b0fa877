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
            tokenizer = tokenizer_of(own["text"]["tokenizer"])
        except (KeyError, TypeError):
            raise ValueError("`data.encoder`: expected the shape and the tokenizer of a CLIP") from None
        self._column, self._texts = PromptColumn(tokenizer, ("",)), ExportedTexts(open_file)
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
        return self.tokens(self._column.read(list(texts), len(texts)))

    def tokens(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embeddings [N, D] of length 1 of texts as tokens, int64 [N, L]."""
        return self._texts.tokens(ids)


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
            raise UserError(f"{path} is missing; `ddpm export` makes it")
        return open_session(path)

    return open_file
