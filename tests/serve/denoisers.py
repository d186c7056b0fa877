"""Deploy directories made by hand: denoisers that onnxruntime runs in no time, or in as much as a test wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ddpm.conditioning.tokenizers import Words
from ddpm.drawer.cascade import CascadeFacts, LinkFacts

SIDE = 384  # of the matrices that a busy network multiplies


def network(
    shape: Sequence[int],
    *,
    answer: float = 0.0,
    answers: Sequence[float] = (),
    work: int = 0,
    batch: int | str = "batch",
    nan_below: int = 0,
) -> onnx.ModelProto:
    """A denoiser that answers x with `answer` · x, after `work` products of matrices, each some milliseconds; with NaN
    at timesteps below `nan_below`. With `answers` it takes a label, and answers with `answers[label]` · x.
    """
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])
    t = helper.make_tensor_value_info("t", TensorProto.INT64, [batch])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, *shape])
    constants: dict[str, Any] = {"answer": np.float32(answer), "zero": np.float32(0)}
    nodes = [helper.make_node("Mul", ["x", "answer"], ["answered" if work else "out"])]
    inputs = [x, t]
    if answers:
        inputs.append(helper.make_tensor_value_info("label", TensorProto.INT64, [batch]))
        constants |= {"answers": np.float32(answers), "behind": np.arange(1, 1 + len(shape))}
        nodes[0].input[1] = "own"
        told = [helper.make_node("Gather", ["answers", "label"], ["factor"])]
        nodes = [*told, helper.make_node("Unsqueeze", ["factor", "behind"], ["own"]), *nodes]
    if work:
        constants["matrix"] = np.full((SIDE, SIDE), 1 / SIDE, np.float32)
        # All of it depends on x, else it would be computed once and for all.
        nodes += [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            helper.make_node("Add", ["matrix", "nothing"], ["product0"]),
            *(helper.make_node("MatMul", ["matrix", f"product{i}"], [f"product{i + 1}"]) for i in range(work)),
            helper.make_node("ReduceSum", [f"product{work}"], ["total"], keepdims=0),
            helper.make_node("Mul", ["total", "zero"], ["none"]),
            helper.make_node("Add", ["answered", "none"], ["out"]),
        ]
    if nan_below:
        nodes[-1].output[0] = "number"
        constants |= {"limit": np.int64(nan_below), "nan": np.float32(np.nan)}
        constants["axes"] = np.arange(1, 1 + len(shape))
        nodes += [
            helper.make_node("Less", ["t", "limit"], ["is_below"]),
            helper.make_node("Unsqueeze", ["is_below", "axes"], ["is_nan"]),
            helper.make_node("Where", ["is_nan", "nan", "number"], ["out"]),
        ]
    return _graph(nodes, inputs, out, constants)


def write_deploy(
    directory: Path,
    *,
    shape: Sequence[int] = (4, 4, 1),
    data: dict[str, Any] | None = None,
    condition: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """What `ddpm export` leaves behind, of a process with 20 timesteps; `options` are `network`'s."""
    directory.mkdir(parents=True)
    seen = [shape[-1], *shape[:-1]] if len(shape) == 3 else shape
    onnx.save(network(seen, **options), directory / "denoiser.onnx")
    facts = {
        "name": "ddpm-dots",
        "shape": shape,
        "process": {"timesteps": 20, "schedule": "linear", "prediction": "epsilon", "variance": "fixed_small"},
        "sampling": {"sampler": "ddim", "steps": 5, "eta": 0.0, "spacing": "trailing", "clip": True},
        "data": data or {},
        "condition": condition or {},
        "format": 2,
    }
    (directory / "sampler.json").write_text(json.dumps(facts))
    return directory


CLASSES = ["boot", "sneaker", "1"]


def write_conditional(directory: Path, *, drop: float = 0.1, **options: Any) -> Path:
    """As `write_deploy`, of a model with three classes, the last of which has a number for a name."""
    return write_deploy(
        directory,
        data={"classes": CLASSES, "class_counts": [1, 6, 3]},
        condition={"label": {"drop": drop}},
        answers=[0.0, 0.5, 0.9, *([0.3] if drop else [])],
        **options,
    )


# --- a decoder of a CLIP's embeddings, and a prior of them

NUMBERS = 6  # of an embedding
SEEN = (8, 8, 1)  # a picture as the CLIP takes it
WORDS = Words(("a", "dark", "light", "night", "square"), 4)


def write_decoder(directory: Path) -> Path:
    """A decoder of 4×4 pixels, with its CLIP: what it draws is a picture of the embedding and a little of the noise."""
    text = {"tokenizer": WORDS.as_json()}
    encoder = {"numbers": NUMBERS, "card": {"data": {"shape": SEEN, "text": text}}}
    write_deploy(directory, data={"encoder": encoder}, condition={"embedding": {"drop": 0.1}})
    _expect_x0(directory)
    given = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", NUMBERS])
    shown = [
        helper.make_node("MatMul", ["embedding", "weights"], ["flat"]),
        helper.make_node("Reshape", ["flat", "sides"], ["shown"]),
    ]
    constants = {"weights": _normal(1, NUMBERS, 16), "sides": np.array([-1, 1, 4, 4])}
    onnx.save(_beside_noise((1, 4, 4), given, shown, constants), directory / "denoiser.onnx")
    pixels = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SEEN[2], *SEEN[:2]])
    seen = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["sum"]),
    ]
    constants = {"weights": _normal(2, 64, NUMBERS), "bias": _normal(3, NUMBERS)}
    onnx.save(_encoder(pixels, seen, constants), directory / "image_encoder.onnx")
    onnx.save(_encoder(_tokens(), _READ, {"table": _normal(4, WORDS.size, NUMBERS)}), directory / "text_encoder.onnx")
    return directory


def write_prior(directory: Path, *, candidates: int = 1) -> Path:
    """A prior that draws the embedding of a text beside a little noise."""
    scale = {"mean": [0.0] * NUMBERS, "std": [1.0] * NUMBERS, "unit_norm": True}
    text = {"tokenizer": WORDS.as_json(), "captions": ["a light square", "night"]}
    data = {"embedding": scale, "text": text}
    write_deploy(directory, shape=(NUMBERS,), data=data, condition={"prompt": {"drop": 0}})
    _expect_x0(directory, candidates=candidates)
    table = {"table": _normal(4, WORDS.size, NUMBERS)}
    drawn = [*_READ, helper.make_node("Identity", ["sum"], ["shown"])]
    onnx.save(_beside_noise((NUMBERS,), _tokens(), drawn, table), directory / "denoiser.onnx")
    if candidates > 1:
        onnx.save(_encoder(_tokens(), _READ, table), directory / "text_encoder.onnx")
    return directory


def write_unclip(directory: Path, **prior: Any) -> Path:
    """Both as one model.

    Args:
        prior: of `write_prior`.
    """
    write_prior(directory / "prior", **prior)
    write_decoder(directory / "decoder")
    links = {"prior": LinkFacts("prior", "", ""), "decoder": LinkFacts("decoder", "", "", {"embedding": "prior"})}
    CascadeFacts("unclip", "decoder", links).write(directory)
    return directory


_READ = [
    helper.make_node("Gather", ["table", "prompt"], ["rows"]),
    helper.make_node("ReduceMean", ["rows"], ["sum"], axes=[1], keepdims=0),
]


def _tokens() -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("prompt", TensorProto.INT64, ["batch", WORDS.length])


def _normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _expect_x0(directory: Path, **sampling: Any) -> None:
    facts = json.loads((directory / "sampler.json").read_text())
    facts["process"]["prediction"] = "x0"
    facts["sampling"] |= {"variance": None, "dynamic_threshold": None, **sampling}  # as every export names them
    (directory / "sampler.json").write_text(json.dumps(facts))


def _beside_noise(
    shape: Sequence[int], given: onnx.ValueInfoProto, nodes: Sequence[Any], constants: dict[str, Any]
) -> onnx.ModelProto:
    """A denoiser that answers with `shown`, which the nodes make of what is given, and a quarter of x."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *shape])
    t = helper.make_tensor_value_info("t", TensorProto.INT64, ["batch"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["batch", *shape])
    noise = helper.make_node("Mul", ["x", "quarter"], ["noise"])
    nodes = [*nodes, noise, helper.make_node("Add", ["shown", "noise"], ["out"])]
    return _graph(nodes, [x, t, given], out, {**constants, "quarter": np.float32(0.25)})


def _encoder(given: onnx.ValueInfoProto, nodes: Sequence[Any], constants: dict[str, Any]) -> onnx.ModelProto:
    """What makes vectors of length 1 of the nodes' `sum`."""
    length = helper.make_node("ReduceL2", ["sum"], ["length"], axes=[1], keepdims=1)
    nodes = [*nodes, length, helper.make_node("Div", ["sum", "length"], ["embedded"])]
    out = helper.make_tensor_value_info("embedded", TensorProto.FLOAT, ["batch", NUMBERS])
    return _graph(nodes, [given], out, constants)


def _graph(
    nodes: Sequence[Any], inputs: Sequence[onnx.ValueInfoProto], out: onnx.ValueInfoProto, constants: dict[str, Any]
) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, [out], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
