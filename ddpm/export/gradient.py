"""The gradient of an exported guide as forward operators: ∇_x log p(y | x_t) of a classifier, and of a CLIP that of how
well a noisy image and a caption agree.

`torch.onnx.export` exports no backward pass. So the exported graph itself is differentiated: from the last node to the
first, each operator that depends on x adds the operators of its vector-Jacobian product. Weights are used in place, so
the file grows by no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.helper import (
    get_attribute_value,
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
)
from onnx.numpy_helper import from_array, to_array

_OPSET = 20
_SMALL = 512  # bytes of a tensor, its name included, that may be a shape, an axis or a bound
_LEAST_LENGTH = 1e-12  # that a vector is divided by, as of `torch.nn.functional.normalize`
_ANY_BATCH = 2  # shapes are inferred at this N


def log_p_gradient(classifier: ModelProto) -> ModelProto:
    """(x [N, C, ...], t [N]) → logits [N, K], as (x, t, label int64 [N]) → `gradient` [N, C, ...] of log p(label | x).

    Args:
        classifier: with one output, of opset 20.

    Raises:
        ValueError: x goes through an operator whose gradient is not known.
    """
    made = ModelProto()
    made.CopyFrom(classifier)
    batch = made.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    made.graph.input.append(make_tensor_value_info("label", TensorProto.INT64, [batch]))
    return _differentiated(made, _of_log_softmax)


def agreement_gradient(towers: ModelProto) -> ModelProto:
    """(x [N, C, ...], t [N], ...) → image, text [N, D], as the same inputs → `gradient` [N, C, ...] of
    text · image / ‖image‖.

    Args:
        towers: with two outputs, of which the first alone depends on x; of opset 20.

    Raises:
        ValueError: as `log_p_gradient`.
    """
    made = ModelProto()
    made.CopyFrom(towers)
    return _differentiated(made, _of_agreement)


def _differentiated(made: ModelProto, of_first: Callable[..., str]) -> ModelProto:
    """The model with `gradient` in place of its outputs: that of a function of theirs with respect to x, its first
    input.

    Args:
        made: is changed.
        of_first: (backward pass, the outputs' names) → the function's gradient with respect to the first output.
    """
    graph = made.graph
    x, outputs = graph.input[0], [*graph.output]
    names = [each.name for each in outputs]
    backward = _Backward(graph)
    gradient = backward.to(x.name, names[0], of_first(backward, *names))
    graph.node.extend([*backward.nodes, make_node("Identity", [gradient], ["gradient"])])
    graph.initializer.extend(backward.constants)
    graph.value_info.extend(outputs)
    output = ValueInfoProto()
    output.CopyFrom(x)
    output.name = "gradient"
    del graph.output[:]
    graph.output.append(output)
    return onnx.shape_inference.infer_shapes(made, data_prop=True)


def add_scale(guide: ModelProto, scales: NDArray[np.float32]) -> None:
    """Add to a graph of `gradient` the output `scale` [N, 1, ...]: of each timestep, what `scales` [T] has."""
    graph = guide.graph
    sides = len(graph.output[0].type.tensor_type.shape.dim) - 1
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_param
    graph.initializer.extend([from_array(scales, "scales"), from_array(np.array([-1, *[1] * sides]), "scale.shape")])
    graph.node.extend(
        [
            make_node("Gather", ["scales", "t"], ["scale.of_t"]),
            make_node("Reshape", ["scale.of_t", "scale.shape"], ["scale"]),
        ]
    )
    graph.output.append(make_tensor_value_info("scale", TensorProto.FLOAT, [batch, *[1] * sides]))


class _Backward:
    """A backward pass while it is written down."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self.shapes = _shapes(graph)
        """Of every value, the first axis being `_ANY_BATCH` where it is N or a multiple of it."""
        self._small = {tensor.name: to_array(tensor) for tensor in graph.initializer if _is_small(tensor)}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        name = f"backward.{len(self.nodes)}"
        self.nodes.append(make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, values: NDArray[Any]) -> str:
        """A new initializer's name."""
        name = f"backward.constant.{len(self.constants)}"
        self.constants.append(from_array(values, name))
        return name

    def floats(self, *values: float) -> str:
        return self.constant(np.array(values, np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def value(self, name: str) -> list[int]:
        """Of a small initializer, such as the axes of a reduction."""
        if name not in self._small:
            raise ValueError(f"the value {name} is not a constant")
        return self._small[name].ravel().tolist()

    def reshaped(self, gradient: str, name: str) -> str:
        """In the shape of a value."""
        return self.op("Reshape", gradient, self.ints(-1, *self.shapes[name][1:]))

    def to(self, start: str, end: str, gradient: str) -> str:
        """The gradient with respect to `start`, of that with respect to `end`."""
        nodes = _between(self._graph.node, start)
        depends = {start, *(name for node in nodes for name in node.output)}
        found = {end: gradient}
        for node in reversed(nodes):
            if node.output[0] not in found:  # it leads to no end
                continue
            for place, name in enumerate(node.input):
                if name not in depends:
                    continue
                part = self._through(node, place, found[node.output[0]])
                found[name] = self.op("Add", found[name], part) if name in found else part
        return found[start]

    def _through(self, node: NodeProto, place: int, gradient: str) -> str:
        """The gradient with respect to an input of a node.

        Raises:
            ValueError: it is not known how.
        """
        rule = _RULES.get(node.op_type)
        if rule is None or len(node.output) > 1:
            raise ValueError(f"the gradient of the ONNX operator {node.op_type} is not known")
        return rule(self, node, place, gradient)


def _of_log_softmax(backward: _Backward, logits: str) -> str:
    """The gradient of log softmax(logits)[label]: 1 at the label, less the probabilities."""
    classes = np.arange(backward.shapes[logits][1])
    chosen = backward.op("Equal", backward.op("Unsqueeze", "label", backward.ints(1)), backward.constant(classes))
    return backward.op("Sub", backward.op("Cast", chosen, to=TensorProto.FLOAT), backward.op("Softmax", logits, axis=1))


def _of_agreement(backward: _Backward, image: str, text: str) -> str:
    """The gradient of text · y, with y = image / ‖image‖: (text − y (y · text)) / ‖image‖."""
    axis = backward.ints(1)
    length = backward.op("Max", backward.op("ReduceL2", image, axis, keepdims=1), backward.floats(_LEAST_LENGTH))
    unit = backward.op("Div", image, length)
    product = backward.op("ReduceSum", backward.op("Mul", unit, text), axis, keepdims=1)
    return backward.op("Div", backward.op("Sub", text, backward.op("Mul", unit, product)), length)


# --- vector-Jacobian products: (node, which of its inputs, gradient of its output) → gradient of the input

_Rule = Callable[[_Backward, NodeProto, int, str], str]


def _add(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    _must_not_be_broadcast(backward, node, place)
    return gradient


def _mul(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    _must_not_be_broadcast(backward, node, place)
    return backward.op("Mul", gradient, node.input[1 - place])


def _div(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    _must_not_be_broadcast(backward, node, place)
    if place:
        raise ValueError("the gradient of a divisor is not known")
    return backward.op("Div", gradient, node.input[1])


def _sigmoid(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    (y,) = node.output
    return backward.op("Mul", gradient, backward.op("Mul", y, backward.op("Sub", backward.floats(1.0), y)))


def _reshape(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    return backward.reshaped(gradient, node.input[0])


def _transpose(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    return backward.op("Transpose", gradient, perm=np.argsort(_attributes(node)["perm"]).tolist())


def _matmul(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    left, right = (backward.shapes[name] for name in node.input)
    if left[:-2] != right[:-2]:
        raise ValueError("the gradient of a broadcast MatMul is not known")
    order = [*range(len(left) - 2), len(left) - 1, len(left) - 2]
    other = backward.op("Transpose", node.input[1 - place], perm=order)
    return backward.op("MatMul", *((other, gradient) if place else (gradient, other)))


def _softmax(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    (y,) = node.output
    axis = backward.ints(_attributes(node).get("axis", -1))
    inner = backward.op("ReduceSum", backward.op("Mul", gradient, y), axis, keepdims=1)
    return backward.op("Mul", y, backward.op("Sub", gradient, inner))


def _slice(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    shape = backward.shapes[node.input[0]]
    starts, ends, *more = (backward.value(name) for name in node.input[1:])
    axes = more[0] if more else list(range(len(starts)))
    if any(step != 1 for step in (more[1] if len(more) > 1 else [])):
        raise ValueError("the gradient of a Slice with steps is not known")
    before, after = [0] * len(shape), [0] * len(shape)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        first, last, _ = slice(start, end).indices(shape[axis])
        before[axis], after[axis] = first, shape[axis] - last
    if before[0] or after[0]:
        raise ValueError("the gradient of a Slice over the batch is not known")
    return backward.op("Pad", gradient, backward.ints(*before, *after))


def _concat(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    axis = _attributes(node)["axis"]
    sizes = [backward.shapes[name][axis] for name in node.input]
    first = sum(sizes[:place])
    bounds = (backward.ints(first), backward.ints(first + sizes[place]), backward.ints(axis))
    return backward.op("Slice", gradient, *bounds)


def _mean(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    shape = backward.shapes[node.input[0]]
    axes = [axis % len(shape) for axis in backward.value(node.input[1])]
    count = math.prod(shape[axis] for axis in axes)
    kept = [-1, *(1 if axis in axes else shape[axis] for axis in range(1, len(shape)))]
    each = backward.op("Reshape", backward.op("Div", gradient, backward.floats(count)), backward.ints(*kept))
    return backward.op("Expand", each, backward.ints(1, *shape[1:]))


def _average_pool(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    """Where windows do not overlap, each position has its share of its window's gradient."""
    options = _attributes(node)
    kernel = options["kernel_shape"]
    if options.get("strides") != kernel or any(options.get("pads", ())) or options.get("ceil_mode"):
        raise ValueError("the gradient of an AveragePool with overlap or padding is not known")
    share = backward.op("Div", gradient, backward.floats(math.prod(kernel)))
    scales = backward.floats(1, 1, *kernel)
    return backward.op(
        "Resize", share, "", scales, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


def _instance_norm(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    """s/σ (g − mean g − x̂ mean(g x̂)), with x̂ the normed x, s the scale and means over the positions."""
    x, scale, _ = node.input
    shape = backward.shapes[x]
    axes = backward.ints(*range(2, len(shape)))

    def mean(name: str) -> str:
        return backward.op("ReduceMean", name, axes, keepdims=1)

    centred = backward.op("Sub", x, mean(x))
    variance = mean(backward.op("Mul", centred, centred))
    epsilon = _attributes(node).get("epsilon", 1e-5)
    deviation = backward.op("Sqrt", backward.op("Add", variance, backward.floats(epsilon)))
    normed = backward.op("Div", centred, deviation)
    along = backward.op("Mul", normed, mean(backward.op("Mul", gradient, normed)))
    free = backward.op("Sub", backward.op("Sub", gradient, mean(gradient)), along)
    scales = backward.op("Reshape", scale, backward.ints(-1, *[1] * (len(shape) - 2)))
    return backward.op("Mul", backward.op("Div", free, deviation), scales)


def _conv(backward: _Backward, node: NodeProto, place: int, gradient: str) -> str:
    """The transposed convolution with the same weights."""
    if place:
        raise ValueError("the gradient of a convolution's weights is not known")
    options = _attributes(node)
    x, out, weight = (backward.shapes[name] for name in (node.input[0], node.output[0], node.input[1]))
    kernel, sides = weight[2:], range(len(weight) - 2)
    pads = options.get("pads", [0] * 2 * len(sides))
    strides, dilations = (options.get(name, [1] * len(sides)) for name in ("strides", "dilations"))
    # Positions at the end of a side that a stride leaves out.
    left_out = [
        x[2 + side]
        + pads[side]
        + pads[side + len(sides)]
        - strides[side] * (out[2 + side] - 1)
        - dilations[side] * (kernel[side] - 1)
        - 1
        for side in sides
    ]
    return backward.op(
        "ConvTranspose",
        gradient,
        node.input[1],
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        output_padding=left_out,
        group=options.get("group", 1),
    )


_RULES: Mapping[str, _Rule] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _div,
    "InstanceNormalization": _instance_norm,
    "MatMul": _matmul,
    "Mul": _mul,
    "ReduceMean": _mean,
    "Reshape": _reshape,
    "Sigmoid": _sigmoid,
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _reshape,
    "Transpose": _transpose,
}


def _must_not_be_broadcast(backward: _Backward, node: NodeProto, place: int) -> None:
    if backward.shapes[node.input[place]] != backward.shapes[node.output[0]]:
        raise ValueError(f"the gradient of a broadcast input of {node.op_type} is not known")


# --- the graph


def _between(nodes: Iterable[NodeProto], start: str) -> list[NodeProto]:
    """The nodes whose values depend on `start`, in their order. What only its shape enters is left out."""
    depends, found = {start}, []
    for node in nodes:
        if node.op_type != "Shape" and depends.intersection(node.input):
            found.append(node)
            depends.update(node.output)
    return found


def _shapes(graph: GraphProto) -> dict[str, list[int]]:
    """Of every value, at a batch of `_ANY_BATCH`. Of the weights the inference sees the shapes alone."""
    inputs = [_of_any_batch(value) for value in graph.input]
    small = [tensor for tensor in graph.initializer if _is_small(tensor)]
    weights = [
        make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if not _is_small(tensor)
    ]
    outputs = [_of_any_batch(value) for value in graph.output]
    plain = make_graph(graph.node, "shapes", [*inputs, *weights], outputs, initializer=small)
    model = make_model(plain, opset_imports=[make_opsetid("", _OPSET)])
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*inferred.input, *inferred.value_info, *inferred.output]:
        shapes[value.name] = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    return shapes


def _of_any_batch(value: ValueInfoProto) -> ValueInfoProto:
    changed = ValueInfoProto()
    changed.CopyFrom(value)
    changed.type.tensor_type.shape.dim[0].dim_value = _ANY_BATCH
    return changed


def _is_small(tensor: TensorProto) -> bool:
    return tensor.ByteSize() <= _SMALL


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}
