"""Columns: what accompanies a datum, such as its label (numpy only).

A column has its name, type and shape here and nowhere else: the training batch, the options of `ddpm sample`, the HTTP
fields, the inputs of the ONNX files and MLflow's signature all come from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.hints import NAMES as HINT_NAMES
from ddpm.conditioning.hints import HintColumn, control_columns
from ddpm.conditioning.image_embedding import embedding_columns
from ddpm.conditioning.pictures import (
    ImageColumn,
    LowColumn,
    LowGaussColumn,
    LowNoiseColumn,
    MaskColumn,
    low_columns,
    mask_columns,
    repeated,
)
from ddpm.conditioning.text_limits import check_text
from ddpm.conditioning.tokenizers import Tokenizer, tokenizer_of
from ddpm.conditioning.values import Values
from ddpm.diffusion.noise import stream
from ddpm.errors import brief, listed

if TYPE_CHECKING:
    from torch import Tensor

Given = Mapping[str, NDArray[Any]]


class Accompanied(Protocol):
    """Data with what accompanies them, such as `data.store.Split`."""

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """The class of each datum, [n]."""
        ...

    @property
    def captions(self) -> Sequence[tuple[str, ...]] | None:
        """Of each datum, one or more."""
        ...

    @property
    def hints(self) -> Any:
        """uint8 [n, H, W, C], as an array is indexed; None without hints beside the images."""
        ...

    @property
    def embeddings(self) -> Any:
        """float32 [n, D], as an array is indexed; None without the embeddings of a CLIP."""
        ...


class Column(Protocol):
    """One thing that accompanies every datum."""

    @property
    def name(self) -> str: ...

    @property
    def key(self) -> str:
        """The key of `condition` that asks for it. One key may ask for several columns."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one datum's value."""
        ...

    @property
    def null(self) -> int | None:
        """The value that stands for no condition; None: the model was trained without dropping."""
        ...

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[Any]:
        """What a user asked for, for the data `first` .. `first + count − 1`: [count, *shape]. Of several values datum
        i gets the one at i modulo their number.

        Raises:
            ValueError: it is not a value of the column.
        """
        ...

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[Any]:
        """Values drawn as often as they are in the training data, each by the datum's own seed: [count, *shape]."""
        ...


@runtime_checkable
class Stored(Column, Protocol):
    """A column that the prepared data hold."""

    def of_data(self, data: Accompanied) -> Values:
        """What the data have of the column, which the model fits."""
        ...


@runtime_checkable
class Derived(Protocol):
    """What a column has besides, if nothing of the prepared data holds it: in training its values come from the data
    themselves."""

    @property
    def draws(self) -> int:
        """How many random numbers `derive` needs of each datum."""
        ...

    def derive(self, x0: Tensor, uniform: Tensor) -> Tensor:
        """The values of training data, [N, *shape].

        Args:
            x0: [N, C, ...] in about [−1, 1], mirrored if training does so.
            uniform: [N, draws] in [0, 1), a function of the seed and the step.
        """
        ...


@dataclass(frozen=True)
class LabelColumn:
    """The class of a datum, int64.

    Attributes:
        classes: the names, in the order of the numbers.
        counts: how many of the training data each class has; None: unknown, and all classes are drawn equally often.
        droppable: whether training replaced labels by the null class, whose number is len(classes).
    """

    classes: tuple[str, ...]
    counts: tuple[int, ...] | None = None
    droppable: bool = False
    name: ClassVar[str] = "label"
    key: ClassVar[str] = "label"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.int64)
    shape: ClassVar[tuple[int, ...]] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Self, ...]:
        """As the entries of `COLUMNS`."""
        classes, counts = data.get("classes"), data.get("class_counts")
        if not classes:
            raise ValueError("condition.label needs data with classes, and these have none")
        if counts is not None and (len(counts) != len(classes) or min(counts) < 0 or not any(counts)):
            raise ValueError(
                f"condition.label: expected a count for each of {len(classes)} classes, found {brief(counts)}"
            )
        return (cls(tuple(classes), None if counts is None else tuple(counts), options.get("drop", 0) > 0),)

    @property
    def null(self) -> int | None:
        return len(self.classes) if self.droppable else None

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.int64]:
        """As of `Column`.

        Args:
            asked: a name or a number of a class, or a sequence or array of them. Text is a name, or else a number.
        """
        if isinstance(asked, np.ndarray):
            asked = asked.tolist()
        values = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
        if not values:
            raise ValueError("label: expected at least one class, found none")
        numbers = np.array([self._number(value) for value in values], np.int64)
        return repeated(numbers, count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.int64]:
        weights = np.asarray(self.counts or [1] * len(self.classes), np.float64)
        ends = np.cumsum(weights / weights.sum())
        uniform = [stream(seed, first + index, purpose=1).random() for index in range(count)]
        return np.searchsorted(ends[:-1], uniform, side="right").astype(np.int64)

    def of_data(self, data: Accompanied) -> Values:
        assert data.labels is not None  # the model fits the data
        return Values(data.labels)

    def _number(self, value: Any) -> int:
        if isinstance(value, str) and value in self.classes:
            return self.classes.index(value)
        number = int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 10 else value
        if isinstance(number, int | np.integer) and not isinstance(number, bool) and 0 <= number < len(self.classes):
            return int(number)
        raise ValueError(f"label: no class {brief(value)}; there are: {listed(self.classes)}")


@dataclass(frozen=True)
class PromptColumn:
    """A text that describes a datum, as the int64 numbers [L] of its tokens: those that are not of the text are the
    tokenizer's padding, at the end. Users give the text.

    Attributes:
        captions: of the training data, from which are drawn what nobody asks for.
        droppable: whether training replaced captions by the empty one, which is padding alone.
    """

    tokenizer: Tokenizer
    captions: tuple[str, ...]
    droppable: bool = False
    name: ClassVar[str] = "prompt"
    key: ClassVar[str] = "prompt"
    dtype: ClassVar[np.dtype[Any]] = np.dtype(np.int64)

    @classmethod
    def of(cls, options: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Self, ...]:
        """As the entries of `COLUMNS`."""
        text = data.get("text")
        if text is None:
            raise ValueError("condition.prompt needs data with captions, and these have none")
        if not isinstance(text, Mapping):
            raise ValueError(f"condition.prompt: expected a tokenizer and captions, found {brief(text)}")
        captions = text.get("captions")
        if not (isinstance(captions, list | tuple) and captions and all(isinstance(each, str) for each in captions)):
            raise ValueError(f"condition.prompt: expected captions, found {brief(captions)}")
        return (cls(tokenizer_of(text.get("tokenizer")), tuple(captions), options.get("drop", 0) > 0),)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.tokenizer.length,)

    @property
    def null(self) -> int | None:
        return self.tokenizer.padding if self.droppable else None

    def read(self, asked: Any, count: int, *, first: int = 0) -> NDArray[np.int64]:
        """As of `Column`.

        Args:
            asked: a text, or a sequence or array of them. Of one with more than L tokens the first L are kept;
                `Tokenizer.cut` says how many are not. The empty text is no condition, if the model was trained with it.
        """
        if isinstance(asked, np.ndarray):
            asked = asked.tolist()
        texts = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
        if not texts:
            raise ValueError("prompt: expected at least one text, found none")
        ids, _ = self.tokenizer.encode([_prompt(text) for text in texts])
        return repeated(ids, count, first)

    def draw(self, count: int, *, seed: int, first: int = 0) -> NDArray[np.int64]:
        rows = [int(stream(seed, first + i, purpose=2).integers(len(self.captions))) for i in range(count)]
        return self.tokenizer.encode(self.captions[row] for row in rows)[0]

    def of_data(self, data: Accompanied) -> Values:
        assert data.captions is not None  # the model fits the data
        ids, _ = self.tokenizer.encode(text for texts in data.captions for text in texts)
        ends = np.cumsum([len(texts) for texts in data.captions], dtype=np.int64)
        return Values(ids, None if len(ids) == len(ends) else ends)


def _prompt(text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"prompt: expected text, found {brief(text)}")
    try:
        return check_text(text)
    except ValueError as error:
        raise ValueError(f"prompt: {error}") from None


# What each key of `condition` asks for: (its section, the facts of the data) → columns, a ValueError if the data have
# none. Both are as JSON has them. `conditioning.network.CONDITIONERS` has the other half: how a network is conditioned.
COLUMNS: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[Column, ...]]] = {
    "label": LabelColumn.of,
    "prompt": PromptColumn.of,
    "embedding": embedding_columns,
    "mask": mask_columns,
    "low": low_columns,
    "control": control_columns,
}

# The names that columns have, of any model: what one is asked for beside its sampling plan.
NAMES = (LabelColumn.name, PromptColumn.name, LowNoiseColumn.name)
# Those that are asked for by pictures.
PICTURE_NAMES = (LowColumn.name, ImageColumn.name, MaskColumn.name, *HINT_NAMES)
# All of pictures, with their keys.
PICTURES = {
    column.name: column.key for column in (ImageColumn, MaskColumn, LowColumn, LowNoiseColumn, LowGaussColumn)
} | dict.fromkeys(HINT_NAMES, HintColumn.key)


def columns_of(condition: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[Column, ...]:
    """The columns of a model, in the order of `COLUMNS`.

    Args:
        condition: the section `condition` of params.yaml, as JSON has it.
        data: what a model knows of its training data (`model.card.DataFacts`), as JSON has it: `classes` in the order
            of their numbers, `class_counts`; `text`, the tokenizer and the captions; `encoder`, the CLIP that made the
            embeddings.

    Raises:
        ValueError: the data do not have what is asked for.
    """
    asked = {key: options for key, options in condition.items() if options is not None}
    if unknown := sorted(asked.keys() - COLUMNS.keys()):
        raise ValueError(f"condition.{unknown[0]}: there are no such columns")
    return tuple(column for key in COLUMNS if key in asked for column in COLUMNS[key](asked[key], data))


def united(guiding: Sequence[Column], own: Sequence[Column]) -> tuple[Column, ...]:
    """The columns of a guide and of the network that it guides, each name once: the network's."""
    return tuple(({column.name: column for column in guiding} | {column.name: column for column in own}).values())


def stored(columns: Sequence[Column]) -> list[Stored]:
    """Those of which the prepared data have the values."""
    return [column for column in columns if isinstance(column, Stored)]


def needed(columns: Sequence[Column]) -> list[Column]:
    """Those that have to be asked for, since nothing is drawn without them: the low image of an upsampler, a hint."""
    return [column for column in columns if getattr(column, "needed", False)]


def derived_draws(columns: Sequence[Column]) -> int:
    """How many random numbers `derived` needs of each datum."""
    return sum(column.draws for column in columns if isinstance(column, Derived))


def derived(columns: Sequence[Column], x0: Tensor, uniform: Tensor) -> dict[str, Tensor]:
    """The values of the derived columns among these.

    Args:
        x0: as of `Derived`.
        uniform: [N, derived_draws(columns)].
    """
    values, first = {}, 0
    for column in columns:
        if isinstance(column, Derived):
            values[column.name] = column.derive(x0, uniform[:, first : first + column.draws])
            first += column.draws
    return values


def blank(columns: Sequence[Column], count: int) -> dict[str, NDArray[Any]]:
    """The null value of each column, `count` times; of a column without one its `blank`, or 0."""
    return {
        column.name: np.full((count, *column.shape), column.null or getattr(column, "blank", 0), column.dtype)
        for column in columns
    }


def unconditional(columns: Sequence[Column], given: Given) -> dict[str, NDArray[Any]]:
    """The given values, with the null value in place of each column that has one: what guidance moves away from."""
    return {column.name: unconditional_values(column, given[column.name], np.full_like) for column in columns}


def unconditional_values(column: Column, values: Any, full_like: Callable[[Any, int], Any]) -> Any:
    """What `unconditional` puts in place of the values of a column.

    Args:
        full_like: of numpy or of torch.
    """
    if hasattr(column, "unconditional"):
        return column.unconditional(values)
    return values if column.null is None else full_like(values, column.null)
