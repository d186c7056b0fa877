"""Deploy directories made by hand: denoisers that onnxruntime runs in no time, or in as much as a test wants."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

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
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "denoiser", inputs, [out], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


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
