"""The column `prompt`: what a user may ask for, what is drawn, and what training is given."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from draws import assert_the_same_in_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.conditioning.columns import LabelColumn, PromptColumn, Values, blank, columns_of, unconditional
from ddpm.conditioning.tokenizers import Words, fit_tokenizer
from ddpm.config.base import validate
from ddpm.config.condition import ConditionConfig
from ddpm.diffusion.noise import ImageNoise
from ddpm.errors import UserError

CAPTIONS = ("red heart", "blue heart", "a cat", "a cat")
TOKENIZER = fit_tokenizer(CAPTIONS, {"tokenizer": "words", "length": 3})
COLUMN = PromptColumn(TOKENIZER, CAPTIONS, droppable=True)
FACTS = {"text": {"tokenizer": TOKENIZER.as_json(), "captions": list(CAPTIONS)}}
seeds = st.integers(0, 2**64 - 1)


def numbers(*texts: str) -> list[list[int]]:
    return TOKENIZER.encode(texts)[0].tolist()


def test_a_text_or_several_in_turn():
    assert COLUMN.read("Red heart", 2).tolist() == numbers("red heart", "red heart")
    for asked in (["a cat", "red"], ("a cat", "red"), np.array(["a cat", "red"]), np.array(["a cat", "red"], object)):
        assert COLUMN.read(asked, 3).tolist() == numbers("a cat", "red", "a cat")
    assert COLUMN.read(["a cat", "red"], 2, first=1).tolist() == numbers("red", "a cat")
    found = COLUMN.read("a red heart that is long", 1)
    assert (found.shape, found.dtype) == ((1, 3), np.int64)
    assert found.tolist() == numbers("a red heart")
    assert TOKENIZER.cut(["a red heart that is long"]).tolist() == [3]


def test_the_words_that_no_caption_had_are_named_once():
    assert TOKENIZER.unknown_words("Red glorp heart, glorp ZIG") == ["glorp", "zig"]
    assert TOKENIZER.unknown_words("red heart") == TOKENIZER.unknown_words("") == []


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (7, "expected text, found 7"),
        (None, "expected text, found None"),
        (["red", 3], "expected text, found 3"),
        ([["red"]], r"expected text, found \['red'\]"),
        ([], "expected at least one text, found none"),
        (np.array([]), "expected at least one text, found none"),
        (b"red", "expected text, found "),
        ("x" * 10_000, "expected at most 4,096 characters, found 10,000"),
        ("red\0", r"a control character, U\+0000"),
        ("\ud83d", "half a character"),
    ],
)
def test_what_is_no_prompt(asked, reason):
    with pytest.raises(ValueError, match=f"^prompt: {reason}") as error:
        COLUMN.read(asked, 2)
    assert str(error.value).isprintable()


def test_the_empty_prompt_is_the_null_condition():
    assert COLUMN.null == TOKENIZER.padding
    empty = COLUMN.read("", 2)
    np.testing.assert_array_equal(empty, blank([COLUMN], 2)["prompt"])
    np.testing.assert_array_equal(empty, unconditional([COLUMN], {"prompt": COLUMN.read("red", 2)})["prompt"])
    assert PromptColumn(TOKENIZER, CAPTIONS).null is None


@given(seeds, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30)
def test_the_caption_of_an_image_does_not_depend_on_its_batch(seed, count, batch_size):
    assert_the_same_in_batches(COLUMN, count, batch_size, seed=seed)


def test_captions_are_drawn_as_often_as_the_data_have_them():
    """The 5-sigma interval of each caption's count in 4,000 draws."""
    count = 4000
    drawn = COLUMN.draw(count, seed=5)
    for text, share in (("red heart", 0.25), ("blue heart", 0.25), ("a cat", 0.5)):
        found = (drawn == numbers(text)[0]).all(1).mean()
        assert abs(found - share) < 5 * np.sqrt(share * (1 - share) / count)


def test_a_caption_says_nothing_about_the_noise_or_the_label():
    """The correlations over 4,000 images are within 5 standard deviations of 0."""
    count = 4000
    cat = (COLUMN.draw(count, seed=11) == numbers("a cat")[0]).all(1)
    label = LabelColumn(("a", "b")).draw(count, seed=11)
    noise = ImageNoise(11, count, (1,)).draw()[:, 0]
    for other in (label, noise):
        assert abs(np.corrcoef(cat, other)[0, 1]) < 5 / np.sqrt(count)


def test_it_is_made_of_what_a_model_keeps():
    (column,) = columns_of({"prompt": {"drop": 0.2}}, FACTS)
    assert column == COLUMN
    assert (column.shape, column.key, column.name) == ((3,), "prompt", "prompt")
    both = columns_of({"prompt": {"drop": 0}, "label": {}}, {**FACTS, "classes": ["a", "b"]})
    assert [each.name for each in both] == ["label", "prompt"]
    assert both[1].null is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, r"condition\.prompt needs data with captions, and these have none"),
        ("x", r"condition\.prompt: expected a tokenizer and captions"),
        ({"tokenizer": TOKENIZER.as_json()}, r"condition\.prompt: expected captions, found None"),
        ({"tokenizer": TOKENIZER.as_json(), "captions": []}, r"condition\.prompt: expected captions"),
        ({"tokenizer": TOKENIZER.as_json(), "captions": "red"}, r"condition\.prompt: expected captions"),
        ({"tokenizer": TOKENIZER.as_json(), "captions": [3]}, r"condition\.prompt: expected captions"),
        ({"tokenizer": {"kind": "x"}, "captions": ["a"]}, "the tokenizer is damaged"),
    ],
)
def test_what_a_damaged_model_keeps(text, reason):
    with pytest.raises(ValueError, match=reason):
        columns_of({"prompt": {}}, {"text": text})


def test_training_gets_the_tokens_of_each_caption():
    data = SimpleNamespace(labels=None, captions=[("red heart",), ("a cat",), ("blue heart",)])
    values = COLUMN.of_data(data)
    assert values.ends is None
    assert values.at(np.array([2, 0])).tolist() == numbers("blue heart", "red heart")


@given(st.lists(st.integers(1, 4), min_size=1, max_size=8), st.integers(0, 10**6), st.data())
def test_of_several_values_a_datum_has_one_of_its_own(counts: list[int], step: int, data):
    owner = np.repeat(np.arange(len(counts)), counts)
    values = Values(owner, np.cumsum(counts))
    indices = np.array(data.draw(st.lists(st.sampled_from(range(len(counts))), max_size=10)), np.int64)
    np.testing.assert_array_equal(values.at(indices, step), indices)
    numbered = Values(np.arange(len(owner)), np.cumsum(counts))
    whole = numbered.at(np.arange(len(counts)), step)
    np.testing.assert_array_equal(numbered.at(indices, step), whole[indices])  # whatever is beside it in a batch


def test_over_the_steps_each_of_several_captions_has_its_share():
    """The 5-sigma intervals of 2,000 steps; no caption goes with another datum's."""
    steps = 2000
    values = Values(np.arange(6), np.array([3, 6]))
    drawn = np.array([values.at(np.array([0, 1]), step) for step in range(steps)])
    for datum in (0, 1):
        shares = np.bincount(drawn[:, datum] - 3 * datum, minlength=3) / steps
        assert np.all(abs(shares - 1 / 3) < 5 * np.sqrt(2 / 9 / steps))
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 5 / np.sqrt(steps)
    assert abs(np.corrcoef(drawn[1:, 0], drawn[:-1, 0])[0, 1]) < 5 / np.sqrt(steps)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ({"tokenizer": "letters"}, "condition: `prompt.tokenizer`"),
        ({"length": 0}, "condition: `prompt.length`"),
        ({"drop": 1}, "condition: `prompt.drop`"),
        ({"vocabulary_size": 900}, r"`vocabulary_size` is for `tokenizer: bpe`, found `tokenizer: words`"),
        ({"vocabulary": "clip"}, r"`vocabulary` is for `tokenizer: bpe`"),
        ({"tokenizer": "bpe", "minimum_count": 2}, r"`minimum_count` is for `tokenizer: words`"),
        ({"tokenizer": "bpe", "vocabulary_size": 512}, "greater than or equal to 513"),
    ],
)
def test_what_params_cannot_ask_for(prompt, reason):
    with pytest.raises(UserError, match=reason):
        validate(ConditionConfig, {"prompt": prompt}, "condition")


def test_words_are_the_default():
    options = ConditionConfig.model_validate({"prompt": {}}).prompt
    assert options is not None
    assert isinstance(fit_tokenizer(CAPTIONS, options.model_dump()), Words)
    assert fit_tokenizer(CAPTIONS, options.model_dump()).length == 16
