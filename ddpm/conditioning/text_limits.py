"""What a text may be, as a caption in the data or as a prompt (standard library alone)."""

from __future__ import annotations

import unicodedata

from ddpm.errors import brief

MOST_CHARACTERS = 4096
_SPACES = "\t\n\r"  # control characters that are spaces


def check_text(text: str) -> str:
    """The text, if it can be a caption or a prompt. Any language and any symbol may be in it.

    Raises:
        ValueError: it has more than `MOST_CHARACTERS` characters, a control character other than tab, line feed and
            carriage return, or a lone surrogate, which is half a character. The message is the reason, in one line.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"expected at most {MOST_CHARACTERS:,} characters, found {len(text):,}")
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cs") and character not in _SPACES:
            what = "half a character" if unicodedata.category(character) == "Cs" else "a control character"
            raise ValueError(f"{what}, U+{ord(character):04X}, in {brief(text)}")
    return text
