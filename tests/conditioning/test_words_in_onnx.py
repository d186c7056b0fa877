"""Raw texts to the tokenizer's numbers in onnxruntime, equal to those in Python."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from ddpm.conditioning.tokenizers import SEPARATORS, Words
from ddpm.deploy.runtime import import_onnxruntime
from ddpm.export.words import OPSETS, tokenize

WORDS = Words(("heart", "red", "cat", "é", "e\u0301", "猫", "قلب", "👩🏽‍🚀", "<unk>", "İ", "\x1b"), 5)


def session(words: Words) -> Any:
    graph = helper.make_graph(
        [tokenize("text", "ids", words)],
        "words",
        [helper.make_tensor_value_info("text", TensorProto.STRING, ["N"])],
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", words.length])],
    )
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@cache
def fitted() -> Any:
    return session(WORDS)


def numbers(texts: list[str], at: Any = None) -> np.ndarray:
    (ids,) = (at or fitted()).run(None, {"text": np.array(texts, object)})
    return ids


words = st.sampled_from([*WORDS.words, "Red", "HEART", "É", "K", "purple", "ß"])
prose = st.lists(words | st.sampled_from([*SEPARATORS, "\u2003", "\0"]), max_size=30).map("".join)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(st.lists(texts | prose, min_size=1, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_texts(found: list[str]):
    np.testing.assert_array_equal(numbers(found), WORDS.encode(found)[0])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \t\r\n\u00a0",
        "?!;:,." * 50,
        "red " * 2500,
        "r" * 10_000,
        "," * 10_000,
        "a," * 5_000,
        "".join(SEPARATORS) * 300 + "red" + "".join(reversed(SEPARATORS)) * 300 + "HEART",
        "قلب أحمر \u200fלב אדום",
        "👩🏽‍🚀 in 🚀, RED",
        "一隻紅色的貓 猫",
        "red\0heart \x1b[31m \x7f\x85",
        "'; DROP TABLE captions; -- <unk>",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_what_people_may_type(text: str):
    np.testing.assert_array_equal(numbers([text, "red heart"]), WORDS.encode([text, "red heart"])[0])


def test_half_a_character_is_an_error():
    with pytest.raises(UnicodeEncodeError):
        numbers(["\ud83d"])


def test_pieces_do_not_multiply():
    """Were all of them kept, each separator would make 2,000 times as many."""
    text = "".join(f"{sign}a" * 2_000 for sign in SEPARATORS)
    np.testing.assert_array_equal(numbers([text]), WORDS.encode([text])[0])


@pytest.mark.parametrize("words", [Words((), 3), Words(("a",), 1)], ids=["no words", "one token"])
def test_the_smallest_tokenizers(words: Words):
    found = ["", "a", "b a", "a b c d"]
    np.testing.assert_array_equal(numbers(found, session(words)), words.encode(found)[0])
