"""The errors a user can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class UserError(Exception):
    """Wrong input: a key, a file, a request. The message is one line in the user's words.

    It says which key or file it is about, what was found and what is expected. The command line prints it
    without a traceback and leaves with exit code 2; a scheduler must not retry it.
    """

    exit_code = 2


class UpstreamError(Exception):
    """Something outside failed (a download, a server): the same command may well succeed later. Exit code 75."""

    exit_code = 75


class Interrupted(Exception):
    """Stopped on request, with everything needed to continue saved. Exit code 130, as a shell expects of Ctrl-C."""

    exit_code = 130


def first_complaint(errors: Sequence[Mapping[str, Any]]) -> str:
    """The first of what pydantic found wrong, in one line: the key, what is expected, what was found.

    Args:
        errors: of a ValidationError's `errors()`.
    """
    first, *others = errors
    # A part in angle brackets is the name of a union's member, which is not in the input.
    key = ".".join(part for part in map(str, first["loc"]) if not part.startswith("<"))
    if first["type"] == "extra_forbidden":
        text = f"unknown key `{key}`"
    elif first["type"] == "missing":
        text = f"the key `{key}` is missing"
    elif first["type"] == "value_error":
        text = f"{key + ': ' if key else ''}{first['ctx']['error']}"
    else:
        text = f"`{key}`: {first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
    return text + (f" (and {len(others)} more)" if others else "")
