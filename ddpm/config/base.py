"""What the sections of params.yaml are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from ddpm.errors import UserError, brief, first_complaint


def _whole(value: Any) -> Any:
    """A float without a fraction as an int."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_switch(value: Any) -> Any:
    """Of a choice among numbers, where `true` would equal 1."""
    if isinstance(value, bool):
        raise ValueError(f"expected a number, found {brief(value)}")
    return value


# What a C int holds; what a user writes beyond it is a slip.
LARGEST = 2**31 - 1
# Numbers are numbers: neither `true`, which Python takes for 1, nor text, such as "10". A whole number may be written
# as 1e5, which YAML reads as a float.
Int = Annotated[int, BeforeValidator(_whole), Field(strict=True, le=LARGEST)]
Positive = Annotated[Int, Field(gt=0)]
Seed = Annotated[int, BeforeValidator(_whole), Field(strict=True, ge=0, lt=2**32)]
Float = Annotated[float, Field(strict=True)]
Bool = Annotated[bool, Field(strict=True)]
Channels = Annotated[Literal[1, 3], BeforeValidator(_no_switch)]
Fraction = Annotated[Float, Field(gt=0, lt=1)]
Switch = Bool | Literal["auto"]
Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")
INCIDENTAL = "incidental"
# A knob of speed, memory, logging or recovery. It decides nothing about the weights beyond the rounding of
# floating-point sums, so a training continues with another value of it.
Incidental = Annotated[Value, INCIDENTAL]


LATER = "later"
# A key that was added after models were trained: at its default it decides as if it were not there, so that what is
# recorded of them stays.
Later = Annotated[Value, LATER]


class Section(BaseModel):
    """A block of params.yaml: frozen, and strict about keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _usable_path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path has no NUL character")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no user {Path(text).parts[0][1:]!r}, found {brief(text)}") from None
    return text


FilePath = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_usable_path)]


def decisive(section: Section) -> Iterator[tuple[str, Any]]:
    """The keys of a section that decide the weights, with their values as JSON has them."""
    for key, value in section.model_dump(mode="json").items():
        field = type(section).model_fields[key]
        if INCIDENTAL not in field.metadata and not (LATER in field.metadata and value == field.default):
            yield key, value


def validate(model: type[Model], raw: Any, where: str) -> Model:
    """Validate `raw`, turning pydantic's report into one line about the first wrong key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {first_complaint(error.errors(include_url=False))}") from None
