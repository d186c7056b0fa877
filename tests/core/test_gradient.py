"""The backward pass written as forward operators in ONNX is torch's, operator by operator and for whole classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from onnx.numpy_helper import from_array
from torch import Tensor

from ddpm.deploy.runtime import import_onnxruntime
from ddpm.export.gradient import add_scale, log_p_gradient

onnxruntime = import_onnxruntime()
CLASSES = 3
Values = dict[str, np.ndarray]


def weights_of(features: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((features, CLASSES)).astype(np.float32)


def classifier(nodes: list[NodeProto], constants: Values, shape: tuple[int, ...], features: int) -> onnx.ModelProto:
    """x → y by the nodes, then logits of all numbers of y."""
    constants = {**constants, "row": np.array([-1, features]), "weights": weights_of(features)}
    nodes = [*nodes, make_node("Reshape", ["y", "row"], ["flat"]), make_node("MatMul", ["flat", "weights"], ["logits"])]
    graph = make_graph(
        nodes,
        "classifier",
        [
            make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape]),
            make_tensor_value_info("t", TensorProto.INT64, ["N"]),
        ],
        [make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES])],
        [from_array(value, name) for name, value in constants.items()],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def run(model: onnx.ModelProto, x: Tensor, t: Tensor, label: Tensor) -> list[np.ndarray]:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()})


def of_torch(logits: Callable[[Tensor], Tensor], x: Tensor, label: Tensor) -> np.ndarray:
    x = x.clone().requires_grad_()
    chosen = F.log_softmax(logits(x), dim=1).gather(1, label[:, None]).sum()
    return torch.autograd.grad(chosen, x)[0].numpy()


def hold(nodes: list[NodeProto], constants: Values, of_x: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    """The nodes' gradient is that of the same in torch, for one datum and several."""
    features = of_x(torch.zeros(1, *shape)).numel()
    model = classifier(nodes, constants, shape, features)
    gradient = log_p_gradient(model)
    weights = torch.from_numpy(weights_of(features))
    for count in (1, 4):
        x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
        label = torch.arange(count) % CLASSES
        (found,) = run(gradient, x, torch.zeros(count, dtype=torch.int64), label)
        expected = of_torch(lambda x: of_x(x).flatten(1) @ weights, x, label)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * max(1, np.abs(expected).max()))


def node(kind: str, *inputs: str, out: str = "y", **attributes: Any) -> NodeProto:
    return make_node(kind, inputs, [out], **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


C, L = 4, 6
OTHER = torch.randn(C, 1, generator=torch.Generator().manual_seed(3))
SIMPLE: dict[str, tuple[list[NodeProto], Values, Callable[[Tensor], Tensor]]] = {
    "used twice": ([node("Add", "x", "x")], {}, lambda x: x + x),
    "product with itself": ([node("Mul", "x", "x")], {}, lambda x: x * x),
    "product with a constant": ([node("Mul", "k", "x")], {"k": OTHER.numpy()}, lambda x: OTHER * x),
    "quotient": ([node("Div", "x", "k")], {"k": OTHER.numpy()}, lambda x: x / OTHER),
    "silu": ([node("Sigmoid", "x", out="s"), node("Mul", "x", "s")], {}, F.silu),
    "reshape": ([node("Reshape", "x", "k")], {"k": ints(-1, 2, C * L // 2)}, lambda x: x.reshape(-1, 2, C * L // 2)),
    "transpose": ([node("Transpose", "x", perm=[0, 2, 1])], {}, lambda x: x.transpose(1, 2)),
    "matmul": (
        [node("Transpose", "x", out="u", perm=[0, 2, 1]), node("MatMul", "x", "u")],
        {},
        lambda x: x @ x.transpose(1, 2),
    ),
    "softmax": ([node("Softmax", "x", axis=-1)], {}, lambda x: x.softmax(-1)),
    "softmax of channels": ([node("Softmax", "x", axis=1)], {}, lambda x: x.softmax(1)),
    "slice": ([node("Slice", "x", "a", "b", "d")], {"a": ints(1), "b": ints(4), "d": ints(2)}, lambda x: x[:, :, 1:4]),
    "slice from the end": (
        [node("Slice", "x", "a", "b", "d", "e")],
        {"a": ints(-2, 0), "b": ints(1000, 3), "d": ints(1, 2), "e": ints(1, 1)},
        lambda x: x[:, -2:, :3],
    ),
    "squeeze": (
        [node("Slice", "x", "a", "b", "d", out="s"), node("Squeeze", "s", "d")],
        {"a": ints(2), "b": ints(3), "d": ints(1)},
        lambda x: x[:, 2],
    ),
    "concatenated with its mean": (
        [node("ReduceMean", "x", "d", out="m", keepdims=1), node("Concat", "m", "x", axis=2)],
        {"d": ints(2)},
        lambda x: torch.cat([x.mean(2, keepdim=True), x], 2),
    ),
    "mean without its axes": (
        [node("ReduceMean", "x", "d", keepdims=0)],
        {"d": ints(-2)},
        lambda x: x.mean(1),
    ),
    "average pool": ([node("AveragePool", "x", kernel_shape=[2], strides=[2])], {}, lambda x: F.avg_pool1d(x, 2)),
    "instance norm": (
        [node("InstanceNormalization", "x", "k", "b", epsilon=1e-3)],
        {"k": OTHER.numpy().ravel(), "b": OTHER.numpy().ravel()},
        lambda x: F.instance_norm(x, weight=OTHER.ravel(), bias=OTHER.ravel(), eps=1e-3),
    ),
}


@pytest.mark.parametrize("name", SIMPLE)
def test_operators(name: str):
    nodes, constants, of_x = SIMPLE[name]
    hold(nodes, constants, of_x, (C, L))


@given(
    sides=st.lists(st.integers(4, 7), min_size=1, max_size=2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    before=st.integers(0, 1),
    after=st.integers(0, 2),
    dilation=st.integers(1, 2),
    group=st.sampled_from([1, 2]),
)
@settings(deadline=None, max_examples=40)
def test_convolutions(sides, kernel, stride, before, after, dilation, group):
    if any(side + before + after < dilation * (kernel - 1) + 1 for side in sides):
        return
    dims = len(sides)
    weight = torch.randn(6, C // group, *[kernel] * dims, generator=torch.Generator().manual_seed(0))
    conv = node(
        "Conv",
        *("x", "k"),
        kernel_shape=[kernel] * dims,
        strides=[stride] * dims,
        dilations=[dilation] * dims,
        pads=[before] * dims + [after] * dims,
        group=group,
    )
    function = F.conv1d if dims == 1 else F.conv2d

    def of_x(x: Tensor) -> Tensor:
        padded = F.pad(x, (before, after) * dims)
        return function(padded, weight, stride=stride, dilation=dilation, groups=group)

    hold([conv], {"k": weight.numpy()}, of_x, (C, *sides))


@pytest.mark.parametrize(
    ("nodes", "constants", "words"),
    [
        ([node("Erf", "x")], {}, "the gradient of the ONNX operator Erf is not known"),
        ([node("Split", "x", out="y", axis=1, num_outputs=1)], {}, "operator Split is not known"),
        ([node("Div", "k", "x")], {"k": OTHER.numpy()}, "gradient of a divisor"),
        ([node("Slice", "x", "a", "b", "d", "e")], {"a": ints(0), "b": ints(6), "d": ints(2), "e": ints(2)}, "steps"),
        ([node("AveragePool", "x", kernel_shape=[2], strides=[1])], {}, "overlap"),
        (
            [node("ReduceMean", "x", "d", out="m", keepdims=1), node("Add", "m", "x")],
            {"d": ints(2)},
            "a broadcast input of Add",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_is_said(nodes, constants, words):
    sides = {"Slice": 3, "AveragePool": 5}.get(nodes[0].op_type, L)
    with pytest.raises(ValueError, match=words):
        log_p_gradient(classifier(nodes, constants, (C, L), C * sides))


def test_the_scale_is_that_of_the_timestep():
    model = log_p_gradient(classifier([node("Mul", "x", "x")], {}, (C, L), C * L))
    scales = np.float32([0.5, -2.0, 3.0])
    add_scale(model, scales)
    t = torch.tensor([2, 0])
    gradient, scale = run(model, torch.ones(2, C, L), t, torch.tensor([0, 1]))
    assert (gradient.shape, scale.shape) == ((2, C, L), (2, 1, 1))
    np.testing.assert_array_equal(scale.ravel(), scales[t.numpy()])
