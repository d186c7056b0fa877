"""What the sections of params.yaml are made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ddpm.errors import UserError, brief, first_complaint

# What a C int holds; what a user writes beyond it is a slip.
LARGEST = 2**31 - 1
Int = Annotated[int, Field(le=LARGEST)]
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Switch = bool | Literal["auto"]
Model = TypeVar("Model", bound=BaseModel)
Value = TypeVar("Value")
INCIDENTAL = "incidental"
# A knob of speed, memory, logging or recovery. It decides nothing about the weights beyond the rounding of
# floating-point sums, so a training continues with another value of it.
Incidental = Annotated[Value, INCIDENTAL]


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
        if INCIDENTAL not in type(section).model_fields[key].metadata:
            yield key, value


def validate(model: type[Model], raw: Any, where: str) -> Model:
    """Validate `raw`, turning pydantic's report into one line about the first wrong key."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {first_complaint(error.errors(include_url=False))}") from None
