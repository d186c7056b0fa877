"""The errors a user can act on."""

from __future__ import annotations

import errno
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any


class UserError(Exception):
    """Wrong input: a key, a file, a request. The message is one line in the user's words.

    It says which key or file it is about, what was found and what is expected. The command line prints it
    without a traceback and leaves with exit code 2; a scheduler must not retry it.
    """

    exit_code = 2


class NotFiniteError(UserError):
    """A model's weights, or what it draws, hold NaN or infinite values: nothing is drawn, measured or kept of them."""


class DdpmWarning(UserWarning):
    """What a user should know and a command goes on with. The command line prints it in one line."""


class UpstreamError(Exception):
    """Something outside failed (a download, a server): the same command may well succeed later. Exit code 75."""

    exit_code = 75


class Interrupted(Exception):
    """Stopped on request, with everything needed to continue saved. Exit code 130, as a shell expects of Ctrl-C."""

    exit_code = 130


# How torch's allocators and its convolutions, and onnxruntime, say that memory is short.
_SHORT_OF_MEMORY = (
    "can't allocate memory",
    "could not create a primitive",
    "std::bad_alloc",
    "Failed to allocate memory",
    "out of memory",
)


def ran_out(error: BaseException) -> bool:
    """Whether an error means that the memory did not suffice."""
    if isinstance(error, UserError | UpstreamError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    # torch has a class for its GPUs alone, and importing it here would take seconds.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(sign in str(error) for sign in _SHORT_OF_MEMORY)


class _Brief(reprlib.Repr):
    """repr() of a bounded length, whatever the value."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write a number of many thousand digits.
        return repr(x) if x.bit_length() < 100 else f"a number of {x.bit_length()} bits"


def brief(value: Any) -> str:
    """A value as a message quotes it: repr(), in one line of at most some hundred characters."""
    return _Brief().repr(value)


def listed(names: Collection[str], most: int = 12) -> str:
    """Names as a message lists them."""
    rest = len(names) - most
    return ", ".join([*list(names)[:most], *([f"and {rest} more"] if rest > 0 else [])])


def first_complaint(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first of what pydantic found wrong, in one line: the key, what is expected, what was found.

    Args:
        errors: of a ValidationError's `errors()`.
    """
    # An unknown key goes first: it is often the misspelt one of those that are missing.
    first, *others = sorted(errors, key=lambda error: error["type"] != "extra_forbidden")
    # A part in angle brackets is the name of a union's member, which is not in the input.
    key = ".".join(_key(part) for part in first["loc"] if not str(part).startswith("<"))
    if first["type"] == "extra_forbidden":
        text = f"unknown key `{key}`"
    elif first["type"] == "missing":
        text = f"the key `{key}` is missing"
    elif first["type"] in ("dict_type", "model_type"):
        text = f"`{key}`: expected keys below it, found {brief(first['input'])}"
    elif first["type"] == "value_error":
        text = f"{key + ': ' if key else ''}{first['ctx']['error']}"
    else:
        text = f"`{key}`: {first['msg'][0].lower()}{first['msg'][1:]}, found {brief(first['input'])}"
    return text + (f" (and {len(others)} more)" if others else "")


def _key(part: int | str) -> str:
    text = brief(part)
    return text[1:-1] if isinstance(part, str) else text
