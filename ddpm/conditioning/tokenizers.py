"""Tokenizers: a text becomes the numbers of its words, or of parts of words.

What they have learned is JSON, which a model keeps. `words` needs numpy alone; `bpe` needs the package tokenizers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import UserError, brief

MOST_TOKENS = 4096  # of a text; a model that claims more is damaged

# What ends a word for `words`: blanks, and the punctuation of prose. ONNX's StringSplit takes one such sign at a time.
SEPARATORS = " \t\n\r\u00a0" + "!\"'(),-./:;?[]_{|}" + "’“”–—…"
_UPPER, _LOWER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz"
_NORMAL = str.maketrans(_UPPER + SEPARATORS, _LOWER + " " * len(SEPARATORS))

# CLIP's signs: what a word ends with, and what stands at the end of a text; here the latter fills up short texts.
_END_OF_WORD, _START, _END = "</w>", "<|startoftext|>", "<|endoftext|>"
# How CLIP cuts a text before pairs are merged: endings such as 's, letters, single digits, and runs of anything else.
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer(ABC):
    """A text ↔ numbers 0 .. size − 1, of which `padding` is none of a text.

    Attributes:
        kind: its name in params.yaml and in JSON.
        length: L, how many tokens of a text are kept: the first ones.
    """

    kind: ClassVar[str]
    length: int

    @property
    @abstractmethod
    def size(self) -> int:
        """How many numbers there are, the padding's included."""

    @property
    @abstractmethod
    def padding(self) -> int:
        """The number that fills up a short text; an empty one is nothing else."""

    @property
    def start(self) -> int:
        """The number that an encoder which marks the start of a text puts there: the padding's, if there is no other.
        No text has it."""
        return self.padding

    @classmethod
    @abstractmethod
    def fit(cls, captions: Sequence[str], options: Mapping[str, Any], root: Path) -> Self:
        """Learn from captions.

        Args:
            captions: of the training split.
            options: the section `condition.prompt`, as JSON has it.
            root: where relative paths start.

        Raises:
            UserError: a file that the options name is missing or damaged, or a package is not installed.
        """

    @classmethod
    @abstractmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """What `as_json` gave.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it did not.
            UserError: a package is not installed.
        """

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """All that it has learned."""

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """The numbers of all tokens of a text, however many; none of them is the padding."""

    def encode(self, texts: Iterable[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Texts as the network takes them. Of one with more than L tokens the first L are kept.

        Returns:
            numbers [N, L], and which of them are of the text, [N, L]; the others are padding, at the end.
        """
        kept = [self.ids(text)[: self.length] for text in texts]
        ids = np.full((len(kept), self.length), self.padding, np.int64)
        for row, found in zip(ids, kept, strict=True):
            row[: len(found)] = found
        return ids, ids != self.padding

    def cut(self, texts: Iterable[str]) -> NDArray[np.int64]:
        """How many tokens of each text `encode` leaves out, [N]."""
        return np.array([max(0, len(self.ids(text)) - self.length) for text in texts], np.int64)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that have no token of their own, each once."""
        return []


@dataclass(frozen=True)
class Words(Tokenizer):
    """The words of the training captions: 0 is the padding, 1 any other word, then the words by falling frequency.

    A word is what stands between `SEPARATORS`, with A to Z in lower case. Other letters stay as they are, and nothing
    is composed or decomposed: so ONNX's StringNormalizer, StringSplit and LabelEncoder can do the same, in any locale.
    """

    words: tuple[str, ...]
    length: int
    kind: ClassVar[str] = "words"
    padding: ClassVar[int] = 0
    unknown: ClassVar[int] = 1

    @property
    def size(self) -> int:
        return 2 + len(self.words)

    @classmethod
    def fit(cls, captions: Sequence[str], options: Mapping[str, Any], root: Path = Path()) -> Self:
        """Keep the words that occur at least `minimum_count` times."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        kept = [word for word, count in counts.items() if count >= options.get("minimum_count", 1)]
        return cls(tuple(sorted(kept, key=lambda word: (-counts[word], word))), options["length"])

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        words = tuple(facts["words"].split(" ")) if facts["words"] else ()
        if len({*words, ""}) != len(words) + 1:
            raise ValueError("words that are empty, or the same")
        return cls(words, facts["length"])

    def as_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "length": self.length, "words": " ".join(self.words)}

    @cached_property
    def _number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words, 2)}

    def ids(self, text: str) -> list[int]:
        return [self._number.get(word, self.unknown) for word in split_words(text)]

    def unknown_words(self, text: str) -> list[str]:
        return [word for word in dict.fromkeys(split_words(text)) if word not in self._number]


def split_words(text: str) -> list[str]:
    """The words of a text, as `Words` has them."""
    return [word for word in text.translate(_NORMAL).split(" ") if word]


@dataclass(frozen=True)
class BytePairs(Tokenizer):
    """Bytes, and the pairs of them that were merged, most frequent first (Sennrich et al. 2016), as CLIP and GLIDE have
    them: the text is composed (NFC), in lower case, its blanks are one space each; any text can be written, since every
    byte is a token.

    CLIP's own `ftfy` and HTML entities are not applied, and no start or end is marked (`nets.text.CLIPText` does that):
    an empty text is padding alone.

    Attributes:
        vocabulary: the tokens by their numbers.
        merges: pairs of tokens, each as `a b`, in the order in which they are merged.
    """

    vocabulary: tuple[str, ...]
    merges: tuple[str, ...]
    length: int
    kind: ClassVar[str] = "bpe"

    @property
    def size(self) -> int:
        return len(self.vocabulary)

    @cached_property
    def padding(self) -> int:
        return self.vocabulary.index(_END)

    @cached_property
    def start(self) -> int:
        return self.vocabulary.index(_START) if _START in self.vocabulary else self.padding

    @classmethod
    def fit(cls, captions: Sequence[str], options: Mapping[str, Any], root: Path = Path()) -> Self:
        """Merge pairs until there are `vocabulary_size` numbers, 513 without any; or take the files of `vocabulary`."""
        if options.get("vocabulary") is not None:
            return cls.read(root / Path(options["vocabulary"]).expanduser(), options["length"])
        library, size = _library(), options["vocabulary_size"]
        alphabet = sorted(library.pre_tokenizers.ByteLevel.alphabet())  # in CLIP's order
        known = [*alphabet, *(sign + _END_OF_WORD for sign in alphabet)]
        # The library numbers the ends of words as it meets them, in no order, and of pairs that are as frequent merges
        # that of lower numbers first. Those that are named as special have their numbers before.
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, min_frequency=2, show_progress=False, special_tokens=known, end_of_word_suffix=_END_OF_WORD
        )
        untrained = _pipeline(library, library.models.BPE(end_of_word_suffix=_END_OF_WORD))
        untrained.train_from_iterator(captions, trainer)
        merges = tuple(_pair(pair) for pair in json.loads(untrained.to_str())["model"]["merges"])
        merges = merges[: size - len(known) - 1]
        return cls((*known, *(pair.replace(" ", "") for pair in merges), _END), merges, options["length"])

    @classmethod
    def read(cls, directory: Path, length: int, where: str = "condition.prompt.vocabulary") -> Self:
        """CLIP's files: vocab.json and merges.txt, or where they are not there, tokenizer.json with both.

        Args:
            where: what names the directory, for errors.

        Raises:
            UserError: one is missing, or not of such a tokenizer.
        """
        try:
            numbers, merges = _files_of(directory)
            if not isinstance(numbers, dict):
                raise ValueError("the vocabulary is no object")
            vocabulary = sorted(numbers, key=numbers.__getitem__)
            if [numbers[token] for token in vocabulary] != list(range(len(vocabulary))):
                raise ValueError("the numbers of the vocabulary are not 0, 1, 2, …")
            facts = {"vocabulary": " ".join(vocabulary), "merges": "\n".join(merges), "length": length}
            return cls.from_json(facts)
        except (OSError, LookupError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(
                f"{where}: {directory}: expected CLIP's vocab.json and merges.txt; {brief(error)}"
            ) from None

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        _library()  # a model that cannot read a prompt is not to load
        vocabulary = tuple(facts["vocabulary"].split(" "))
        merges = tuple(facts["merges"].split("\n")) if facts["merges"] else ()
        known = set(vocabulary)
        if len(known) != len(vocabulary) or _END not in known:
            raise ValueError(f"tokens that are the same, or no {_END}")
        for pair in merges:
            if pair.count(" ") != 1 or not known.issuperset((*pair.split(" "), pair.replace(" ", ""))):
                raise ValueError(f"the merge {brief(pair)} is not of the vocabulary")
        return cls(vocabulary, merges, facts["length"])

    def as_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "length": self.length,
            "vocabulary": " ".join(self.vocabulary),
            "merges": "\n".join(self.merges),
        }

    @cached_property
    def _merger(self) -> Any:
        library = _library()
        model = library.models.BPE(
            vocab={token: number for number, token in enumerate(self.vocabulary)},
            merges=[tuple(pair.split(" ")) for pair in self.merges],
            end_of_word_suffix=_END_OF_WORD,
        )
        return _pipeline(library, model)

    def ids(self, text: str) -> list[int]:
        return self._merger.encode(text).ids


def _files_of(directory: Path) -> tuple[Any, list[str]]:
    """The numbers of CLIP's tokens, and the merges."""
    both = directory / "tokenizer.json"
    if both.exists() and not (directory / "vocab.json").exists():
        model = json.loads(both.read_text(encoding="utf-8"))["model"]
        return model["vocab"], [_pair(pair) for pair in model["merges"]]
    lines = (directory / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    return json.loads((directory / "vocab.json").read_text(encoding="utf-8")), merges


def _pair(pair: str | Sequence[str]) -> str:
    return pair if isinstance(pair, str) else " ".join(pair)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise UserError(
            "condition.prompt.tokenizer: bpe needs the package tokenizers: pip install 'ddpm[bpe]'"
        ) from None
    return tokenizers


def _pipeline(library: Any, model: Any) -> Any:
    """A model of byte pairs, with what comes before it in CLIP."""
    normalizers, pieces = library.normalizers, library.pre_tokenizers
    tokenizer = library.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(library.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pieces.Sequence(
        [
            pieces.Split(library.Regex(_PIECES), behavior="removed", invert=True),
            pieces.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


TOKENIZERS: dict[str, type[Tokenizer]] = {each.kind: each for each in (Words, BytePairs)}


def fit_tokenizer(captions: Sequence[str], options: Mapping[str, Any], root: Path = Path()) -> Tokenizer:
    """The tokenizer that the section `condition.prompt` asks for; see `Tokenizer.fit`."""
    return TOKENIZERS[options["tokenizer"]].fit(captions, options, root)


def tokenizer_of(facts: Any) -> Tokenizer:
    """The tokenizer that a model keeps as JSON.

    Raises:
        ValueError: it is not one; the message is one line.
        UserError: a package that it needs is not installed.
    """
    try:
        tokenizer = TOKENIZERS[facts["kind"]].from_json(facts)
        length = tokenizer.length
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the tokenizer is damaged: {type(error).__name__} {brief(error)}") from None
    if type(length) is not int or not 0 < length <= MOST_TOKENS:
        raise ValueError(f"the tokenizer is damaged: expected a length of 1 to {MOST_TOKENS}, found {brief(length)}")
    return tokenizer
