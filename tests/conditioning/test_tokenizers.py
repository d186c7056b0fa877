"""Tokenizers: what they learn, how they cut, and the same pairs from an algorithm written out."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.conditioning.text_limits import MOST_CHARACTERS, check_text
from ddpm.conditioning.tokenizers import (
    TOKENIZERS,
    BytePairs,
    Tokenizer,
    Words,
    fit_tokenizer,
    tokenizer_of,
)
from ddpm.errors import UserError

CAPTIONS = (
    "red heart",
    "blue heart",
    "Grinning cat with smiling eyes",
    "cat with tears of joy, laughing",
    "woman's hat",
    "waving hand: dark skin tone",
    "waving hand: light skin tone",
)
OPTIONS = {
    "words": {"tokenizer": "words", "length": 6},
    "bpe": {"tokenizer": "bpe", "length": 12, "vocabulary_size": 560},
}
# What people may type; all of it is taken.
PROMPTS = {
    "empty": "",
    "blanks": " \t\n ",
    "emoji": "👩🏽‍🚀 in 🚀",
    "Chinese": "一隻紅色的貓",
    "right to left": "قلب أحمر \u200fלב אדום",
    "SQL": "'; DROP TABLE captions; --",
    "HTML": "<script>alert('heart')</script>",
    "a token": "<|endoftext|> </w> <unk>",
    "as long as can be": "heart " * (MOST_CHARACTERS // 6),
    "one word": "h" * MOST_CHARACTERS,
    "combining marks": "e\u0301" * 50,
}

texts = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=40)
prose = st.lists(
    st.sampled_from(["red", "Heart", "HAT", "cat's", "é", "猫", "a-b", ",", " ", "\n", "x"]), max_size=12
).map("".join)


@cache
def fitted(kind: str) -> Tokenizer:
    return fit_tokenizer(CAPTIONS, OPTIONS[kind])


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return fitted(request.param)


@pytest.mark.parametrize("kind", TOKENIZERS)
@given(found=st.lists(texts | prose, max_size=4))
@settings(max_examples=60)
def test_numbers_mask_and_what_is_cut(kind: str, found: list[str]):
    tokenizer = fitted(kind)
    ids, mask = tokenizer.encode(found)
    assert (ids.shape, ids.dtype) == ((len(found), tokenizer.length), np.int64)
    assert (mask.shape, mask.dtype) == (ids.shape, np.bool_)
    assert ((ids >= 0) & (ids < tokenizer.size)).all()
    np.testing.assert_array_equal(mask, ids != tokenizer.padding)
    assert not (~mask[:, :-1] & mask[:, 1:]).any()  # padding is at the end
    for text, row, inside, cut in zip(found, ids, mask, tokenizer.cut(found), strict=True):
        whole = tokenizer.ids(text)
        assert tokenizer.padding not in whole
        assert row[inside].tolist() == whole[: tokenizer.length]
        assert inside.sum() + cut == len(whole)


def test_they_come_back_from_json(tokenizer: Tokenizer):
    again = tokenizer_of(json.loads(json.dumps(tokenizer.as_json())))
    assert again == tokenizer
    for one, other in zip(again.encode(PROMPTS.values()), tokenizer.encode(PROMPTS.values()), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS.keys())
def test_any_prompt_becomes_tokens(tokenizer: Tokenizer, prompt: str):
    assert check_text(prompt) == prompt
    mask = tokenizer.encode([prompt])[1]
    assert mask.any() == bool(prompt.strip())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x" * 10_000, r"expected at most 4,096 characters, found 10,000"),
        ("heart\0", r"a control character, U\+0000, in 'heart"),
        ("\x1b[31mred", r"a control character, U\+001B"),
        ("a\x85b", r"a control character, U\+0085"),
        ("\ud83d", r"half a character, U\+D83D"),
    ],
)
def test_what_is_no_text_is_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=reason) as error:
        check_text(text)
    assert str(error.value).isprintable()


def test_the_empty_text_is_padding_alone(tokenizer: Tokenizer):
    ids, mask = tokenizer.encode(["", "  "])
    assert (ids == tokenizer.padding).all()
    assert not mask.any()


# --- words -----------------------------------------------------------------------------------------------------------


def test_words_are_learned_by_their_frequency():
    words = fit_tokenizer(CAPTIONS, OPTIONS["words"])
    assert isinstance(words, Words)
    assert words.words[:7] == ("cat", "hand", "heart", "skin", "tone", "waving", "with")
    assert words.size == 2 + len(set(words.words)) == 2 + len(words.words)
    assert (
        words.ids("Red HEART!") == words.ids("red-heart") == [words.words.index(each) + 2 for each in ("red", "heart")]
    )
    assert words.ids("a purple heart") == [words.unknown, words.unknown, *words.ids("heart")]
    rarer = fit_tokenizer(CAPTIONS, {**OPTIONS["words"], "minimum_count": 2})
    assert rarer.words == words.words[:7]  # twice each


@given(st.lists(prose, min_size=1, max_size=6), st.randoms())
def test_words_do_not_depend_on_the_order_of_the_captions(captions: list[str], random):
    first = Words.fit(captions, OPTIONS["words"])
    random.shuffle(captions)
    assert Words.fit(captions, OPTIONS["words"]) == first


# --- bpe -------------------------------------------------------------------------------------------------------------


def pairs_by_hand(captions: list[str], merges: int) -> list[str]:
    """Byte pair encoding of words in lower-case ASCII, as Sennrich et al. 2016 print it, with CLIP's ends of words; of
    pairs that are as frequent the one of lower numbers comes first."""
    letters = [chr(code) for code in range(33, 127)]
    alphabet = sorted(
        [*letters, *map(chr, range(0xA1, 0xAD)), *map(chr, range(0xAE, 0x100)), *map(chr, range(0x100, 0x144))]
    )
    number = {token: place for place, token in enumerate([*alphabet, *(letter + "</w>" for letter in alphabet)])}
    counts = Counter(word for caption in captions for word in caption.split())
    spelled = {word: [*word[:-1], word[-1] + "</w>"] for word in counts}
    found = []
    while len(found) < merges:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, tokens in spelled.items():
            for pair in itertools.pairwise(tokens):
                pairs[pair] += counts[word]
        frequent = [pair for pair, count in pairs.items() if count >= 2]
        if not frequent:
            break
        best = min(frequent, key=lambda pair: (-pairs[pair], number[pair[0]], number[pair[1]]))
        found.append(" ".join(best))
        number.setdefault("".join(best), len(number))
        for tokens in spelled.values():
            place = 0
            while place < len(tokens) - 1:
                if tuple(tokens[place : place + 2]) == best:
                    tokens[place : place + 2] = ["".join(best)]
                place += 1
    return found


@given(st.lists(st.text("abc ", max_size=12), min_size=1, max_size=8), st.integers(0, 20))
@settings(max_examples=40)
def test_pairs_are_those_of_the_algorithm_written_out(captions: list[str], merges: int):
    learned = BytePairs.fit(captions, {"length": 4, "vocabulary_size": 513 + merges})
    assert list(learned.merges) == pairs_by_hand(captions, merges)
    assert learned.size <= 513 + merges


def test_pairs_are_the_same_in_every_process():
    """The library numbers what it meets in the order of a hash table, which is another one in each process."""
    program = (
        "import json, sys; from ddpm.conditioning.tokenizers import BytePairs; "
        "captions = [''.join(chr(97 + (i * j) % 26) for j in range(1, 9)) for i in range(200)]; "
        "print(json.dumps(BytePairs.fit(captions, {'length': 4, 'vocabulary_size': 900}).as_json()))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "RAYON_NUM_THREADS": threads},
            capture_output=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(found) == 1


@given(texts)
@settings(max_examples=100)
def test_pairs_lose_nothing_but_case_and_blanks(text: str):
    """Of the tokens' bytes comes the text, composed and in lower case."""
    tokenizer = fitted("bpe")
    assert isinstance(tokenizer, BytePairs)
    signs = "".join(tokenizer.vocabulary[number].removesuffix("</w>") for number in tokenizer.ids(text))
    byte_of = dict(zip(sorted(map(chr, _codes())), _bytes_in_order(), strict=True))
    written = bytes(byte_of[sign] for sign in signs).decode()
    expected = "".join(letter.lower() for letter in unicodedata.normalize("NFC", text) if not letter.isspace())
    assert written.replace("\u0307", "") == expected.replace("\u0307", "")  # Rust lowers İ to i and a dot too


def _codes() -> list[int]:
    """The signs that stand for bytes in GPT-2's and CLIP's files."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return own + [256 + number for number in range(256 - len(own))]


def _bytes_in_order() -> list[int]:
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return own + [byte for byte in range(256) if byte not in own]


def clip_files(directory: Path, tokenizer: BytePairs) -> Path:
    """As CLIP's: with a token for the start, and numbers in another order."""
    directory.mkdir(exist_ok=True)
    tokens = [*tokenizer.vocabulary[:-1], "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (directory / "vocab.json").write_text(json.dumps(dict(reversed(vocabulary.items()))), encoding="utf-8")
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *tokenizer.merges, ""]), encoding="utf-8")
    return directory


def test_a_given_vocabulary_keeps_its_numbers(tmp_path: Path):
    own = fitted("bpe")
    assert isinstance(own, BytePairs)
    clip_files(tmp_path / "clip", own)
    given_one = fit_tokenizer((), {"tokenizer": "bpe", "length": 12, "vocabulary": "clip"}, tmp_path)
    assert given_one.size == own.size + 1
    assert given_one.padding == own.size
    for prompt in (*CAPTIONS, *PROMPTS.values()):
        assert given_one.ids(prompt) == own.ids(prompt)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.json", None),
        ("merges.txt", None),
        ("vocab.json", "{"),
        ("vocab.json", "[1]"),
        ("vocab.json", '{"a": 0, "b": 2, "<|endoftext|>": 3}'),
        ("vocab.json", '{"a": 0, "b": 1}'),
        ("vocab.json", '{"a": "x", "b": 1}'),
        ("merges.txt", "a\n"),
        ("merges.txt", "a b c\n"),
        ("merges.txt", "notthere alone\n"),
        ("merges.txt", b"\xff\xfe"),
    ],
)
def test_files_that_are_no_vocabulary(tmp_path: Path, name: str, content: str | bytes | None):
    own = fitted("bpe")
    assert isinstance(own, BytePairs)
    clip_files(tmp_path, own)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(
        UserError, match=r"condition\.prompt\.vocabulary: .*expected CLIP's vocab\.json and merg"
    ) as error:
        BytePairs.read(tmp_path, 12)
    assert "\n" not in str(error.value)


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch):
    facts = fitted("bpe").as_json()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for attempt in (lambda: fit_tokenizer(CAPTIONS, OPTIONS["bpe"]), lambda: tokenizer_of(facts)):
        with pytest.raises(UserError, match=r"pip install 'ddpm\[bpe\]'"):
            attempt()
    assert tokenizer_of(fitted("words").as_json()) == fitted("words")  # which needs none


# --- What a damaged model may say ------------------------------------------------------------------------------------

WORDS, PAIRS = ({"kind": "words", "length": 4, "words": "a b"}, {"kind": "bpe", "length": 4, "merges": "a b"})
PAIRS["vocabulary"] = "a b ab <|endoftext|>"


@pytest.mark.parametrize(
    "facts",
    [
        None,
        {},
        [],
        {"kind": "other"},
        {"kind": ["words"]},
        {"kind": "words"},
        WORDS | {"length": 0},
        WORDS | {"length": 10**9},
        WORDS | {"length": True},
        WORDS | {"length": "4"},
        WORDS | {"words": "a a"},
        WORDS | {"words": "a  b"},
        WORDS | {"words": ["a"]},
        PAIRS | {"vocabulary": "a b ab"},
        PAIRS | {"vocabulary": "a a b ab <|endoftext|>"},
        PAIRS | {"vocabulary": None},
        PAIRS | {"merges": "a c"},
        PAIRS | {"merges": "a b\n"},
        PAIRS | {"length": None},
    ],
)
def test_what_is_no_tokenizer(facts: object):
    for whole in (WORDS, PAIRS):
        tokenizer_of(whole)
    with pytest.raises(ValueError, match="the tokenizer is damaged") as error:
        tokenizer_of(facts)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
