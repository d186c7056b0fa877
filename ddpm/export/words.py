"""The tokenizer `words` in standard ONNX operators: the numbers of any text are those of `tokenizers.Words`.

A text is split at one separator after the other. Only pieces that have a word are kept, and of these the first L, since
each has at least one of the words that count. So no text, however long, makes more than L · (its length + 1) pieces.
"""

from __future__ import annotations

import re

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto
from onnx.helper import make_graph, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array

from ddpm.conditioning.tokenizers import SEPARATORS, Words

# The operators for texts and for labels are of two domains.
OPSETS = (make_opsetid("", 20), make_opsetid("ai.onnx.ml", 4))

# With the flag s, a point is any sign, line feeds too.
_HAS_WORD = f"(?s).*[^{re.escape(SEPARATORS)}].*"


def tokenize(texts: str, ids: str, words: Words) -> NodeProto:
    """The node from `texts`, string [N], to `ids`, int64 [N, L], where N is at least 1."""
    return make_node("Scan", [texts], [ids], body=_one_text(words), num_scan_inputs=1)


def _one_text(words: Words) -> GraphProto:
    """`text`, a scalar → `ids` [L]."""
    # In the locale C, which lowers A to Z alone: others need not be installed where a model runs.
    nodes = [
        make_node("Reshape", ["text", "flat"], ["whole"]),
        make_node("StringNormalizer", ["whole"], ["pieces"], case_change_action="LOWER", locale="C"),
    ]
    for number, sign in enumerate(SEPARATORS):
        nodes += _split(nodes[-1].output[0], sign, f"{number}.")
    lookup = {
        "keys_strings": words.words or ("",),  # no piece is empty, but a table may not be
        "values_int64s": range(2, max(words.size, 3)),
        "default_int64": words.unknown,
    }
    nodes += [
        make_node("LabelEncoder", [nodes[-1].output[0]], ["found"], domain="ai.onnx.ml", **lookup),
        make_node("Concat", ["found", "padding"], ["padded"], axis=0),
        make_node("Slice", ["padded", "start", "length"], ["ids"]),
    ]
    constants = {
        "flat": [-1],
        "start": [0],
        "length": [words.length],
        "padding": [words.padding] * words.length,
    }
    return make_graph(
        nodes,
        "text",
        inputs=[make_tensor_value_info("text", TensorProto.STRING, [])],
        outputs=[make_tensor_value_info("ids", TensorProto.INT64, [words.length])],
        initializer=[from_array(np.array(values, np.int64), name) for name, values in constants.items()],
    )


def _split(pieces: str, sign: str, prefix: str) -> list[NodeProto]:
    """Pieces [P] → of what is between the signs, the first that have a word: [at most L]."""
    split, count, flat, has_word, kept, first = (
        prefix + name for name in ("split", "count", "flat", "has_word", "kept", "first")
    )
    return [
        make_node("StringSplit", [pieces], [split, count], delimiter=sign),
        make_node("Reshape", [split, "flat"], [flat]),
        make_node("RegexFullMatch", [flat], [has_word], pattern=_HAS_WORD),
        make_node("Compress", [flat, has_word], [kept], axis=0),
        make_node("Slice", [kept, "start", "length"], [first]),
    ]
