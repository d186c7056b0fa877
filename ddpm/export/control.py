"""A ControlNet inside the ONNX graph: what belongs to the control alone goes into a branch, and its weights with it, so
that a row of a plan whose weight is 0 skips it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.helper import make_graph, make_node, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxscript import BOOL, FLOAT, INT64, script
from onnxscript import opset20 as op

from ddpm.conditioning.control_weights import WEIGHTS
from ddpm.export.guidance import call

RESIDUAL = "control."  # what the outputs begin with that `branched` takes away
ON, OFF = "on.", "off."  # what names begin with in the two branches


@script(default_opset=op)
def any_weight(weights: FLOAT) -> BOOL:
    """Whether the first of the three weights is not 0 for some datum."""
    return op.Not(op.Equal(op.ReduceMax(op.Abs(op.Gather(weights, 0, axis=1)), keepdims=0), 0.0))


@script(default_opset=op)
def no_residual(x: FLOAT, shape: INT64) -> FLOAT:
    """Zeros of this shape for each datum of x."""
    return op.Expand(0.0, op.Concat(op.Shape(x, end=1), shape, axis=0))


def branched(proto: ModelProto) -> None:
    """Move the control of a network into a branch, in place.

    Args:
        proto: (x, t, columns) → `out`, and each residual that the control adds, in outputs whose names begin with
            `RESIDUAL`. These outputs are taken away.
    """
    graph = proto.graph
    residuals = [value for value in graph.output if value.name.startswith(RESIDUAL)]
    names = {value.name for value in residuals}
    (out,) = (value for value in graph.output if value.name not in names)
    kept = _ancestors(graph.node, [out.name], stop=names)
    own = [node for number, node in enumerate(graph.node) if number not in kept]
    outside = [node for number, node in enumerate(graph.node) if number in kept]
    switch = make_node(
        "If", ["control.any"], sorted(names), then_branch=_on(graph, own, names), else_branch=_off(residuals)
    )
    place = _after(outside, {name for node in own for name in node.input})
    nodes = [*outside[:place], *call(any_weight, [WEIGHTS], ["control.any"]), switch, *outside[place:]]
    _replace(graph, nodes, [out], residuals)


def _ancestors(nodes: Sequence[NodeProto], names: Sequence[str], stop: Collection[str]) -> set[int]:
    """The places of the nodes that these values come of, without those that only the values in `stop` come of."""
    made_by = {name: number for number, node in enumerate(nodes) for name in node.output}
    todo, found = [*names], set[int]()
    while todo:
        name = todo.pop()
        number = made_by.get(name)
        if name in stop or number is None or number in found:
            continue
        found.add(number)
        todo += nodes[number].input
    return found


def _after(nodes: Sequence[NodeProto], names: set[str]) -> int:
    """The first place at which all of these values are there."""
    return 1 + max((number for number, node in enumerate(nodes) if names & {*node.output}), default=-1)


def _on(graph: GraphProto, own: Sequence[NodeProto], residuals: Collection[str]) -> GraphProto:
    """The branch that evaluates the control, with its own weights: onnxruntime does not optimise around those that a
    branch takes from outside."""
    used = {name for node in own for name in node.input}
    made = {name for node in own for name in node.output}
    weights = [_renamed(tensor) for tensor in graph.initializer if tensor.name in used]
    inside = made | {tensor.name.removeprefix(ON) for tensor in weights}
    constants = [node for node in graph.node if node.op_type == "Constant" and {*node.output} & (used - made)]
    inside |= {name for node in constants for name in node.output}
    nodes = []
    for node in [*constants, *own]:
        copied = NodeProto()
        copied.CopyFrom(node)
        copied.name = ON + node.name
        for values in (copied.input, copied.output):
            values[:] = [ON + name if name in inside else name for name in values]
        nodes.append(copied)
    outputs = [make_tensor_value_info(ON + name, TensorProto.FLOAT, None) for name in sorted(residuals)]
    types = [_renamed(value) for value in graph.value_info if value.name in inside]
    return make_graph(nodes, "with_control", inputs=[], outputs=outputs, initializer=weights, value_info=types)


def _off(residuals: Sequence[ValueInfoProto]) -> GraphProto:
    """The branch that adds nothing."""
    nodes, shapes, outputs = [], [], []
    for value in sorted(residuals, key=lambda value: value.name):
        name, sizes = OFF + value.name, [axis.dim_value for axis in value.type.tensor_type.shape.dim[1:]]
        shapes.append(from_array(np.array(sizes, np.int64), f"{name}.shape"))
        nodes += call(no_residual, ["x", f"{name}.shape"], [name])
        outputs.append(make_tensor_value_info(name, TensorProto.FLOAT, None))
    return make_graph(nodes, "without_control", inputs=[], outputs=outputs, initializer=shapes)


def _renamed(value: ValueInfoProto | TensorProto) -> ValueInfoProto | TensorProto:
    changed = type(value)()
    changed.CopyFrom(value)
    changed.name = ON + value.name
    return changed


def _replace(
    graph: GraphProto, nodes: Sequence[NodeProto], outputs: Sequence[ValueInfoProto], typed: Sequence[ValueInfoProto]
) -> None:
    """Give a graph these nodes and outputs, and leave out what none of them uses.

    Args:
        typed: types of values that were outputs.
    """
    used = {name for node in nodes for name in chain(node.input, node.output, *_taken(node))}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    types = [value for value in graph.value_info if value.name in used]
    parts: Mapping[str, Sequence[object]] = {
        "node": nodes, "output": outputs, "initializer": weights, "value_info": [*types, *typed]
    }  # fmt: skip
    for field, values in parts.items():
        copies = [type(value)() for value in values]
        for copied, value in zip(copies, values, strict=True):
            copied.CopyFrom(value)  # type: ignore[attr-defined]
        del getattr(graph, field)[:]
        getattr(graph, field).extend(copies)


def _taken(node: NodeProto) -> list[list[str]]:
    """The inputs of the nodes in a node's branches."""
    return [list(inner.input) for attribute in node.attribute for inner in attribute.g.node]
