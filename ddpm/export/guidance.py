"""Guidance inside the ONNX graph: what a row of a plan does around the network, as `conditioning.guidance` in torch.

Each part adds nodes to the body of the loop, between values of these names: `x`, what the network sees of it
`x.seen`, `t`, `row` and the columns are there from the start; the network reads `denoiser.x`, `denoiser.t` and
`denoiser.label`, and its output is `all.out` and, where it learns the variance, `all.v`; a part makes `out` and `v` of
them, and at the end `next` of the row's x. A row without a weight evaluates the network once and no guide.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.compose import add_prefix_graph
from onnx.helper import make_graph, make_node, make_tensor_value_info
from onnx.numpy_helper import from_array
from onnxscript import BOOL, FLOAT, INT64, OnnxFunction, script
from onnxscript import opset20 as op

from ddpm.conditioning.columns import Column
from ddpm.conditioning.control_weights import UNCONDITIONAL, WEIGHTS
from ddpm.diffusion.plans import COLUMNS

DENOISER, GUIDE = "denoiser.", "guide."  # what the names of a network begin with inside the body
NEXT, SEEN = "next", "x.seen"
WEIGHT, SHIFT, SLOPE = (COLUMNS.index(name) for name in ("guidance", "mean_shift", "log_noise_from_out"))


@script(default_opset=op)
def has_weight(row: FLOAT) -> BOOL:
    return op.Not(op.Equal(op.Gather(row, WEIGHT), 0.0))


@script(default_opset=op)
def doubled(x: FLOAT, t: INT64, row: FLOAT) -> tuple[FLOAT, INT64]:
    weight = op.Gather(row, WEIGHT)
    if weight != 0.0:
        x2, t2 = op.Concat(x, x, axis=0), op.Concat(t, t, axis=0)
    else:
        x2, t2 = op.Identity(x), op.Identity(t)
    return x2, t2


@script(default_opset=op)
def with_null(given: INT64, null: INT64, row: FLOAT) -> INT64:
    weight = op.Gather(row, WEIGHT)
    if weight != 0.0:  # noqa: SIM108  # onnxscript has no conditional expressions
        given2 = op.Concat(given, op.Expand(null, op.Shape(given)), axis=0)
    else:
        given2 = op.Identity(given)
    return given2


@script(default_opset=op)
def twice(given: FLOAT, row: FLOAT) -> FLOAT:
    """Values of any type, of a column without a null value: both halves have the same."""
    weight = op.Gather(row, WEIGHT)
    if weight != 0.0:  # noqa: SIM108  # onnxscript has no conditional expressions
        given2 = op.Concat(given, given, axis=0)
    else:
        given2 = op.Identity(given)
    return given2


@script(default_opset=op)
def with_unconditional(weights: FLOAT, row: FLOAT) -> FLOAT:
    """As `ControlWeightsColumn.unconditional`, of the weights [N, 3] of a control."""
    weight = op.Gather(row, WEIGHT)
    if weight != 0.0:
        other = op.Gather(weights, op.Constant(value_ints=UNCONDITIONAL), axis=1)
        weights2 = op.Concat(weights, other, axis=0)
    else:
        weights2 = op.Identity(weights)
    return weights2


@script(default_opset=op)
def away_from_half(out2: FLOAT, row: FLOAT) -> FLOAT:
    """As `conditioning.guidance.away_from`."""
    weight = op.Gather(row, WEIGHT)
    if weight != 0.0:
        conditional, unconditional = op.Split(out2, num_outputs=2, axis=0)
        out = conditional + weight * (conditional - unconditional)
    else:
        out = op.Identity(out2)
    return out


@script(default_opset=op)
def told_half(v2: FLOAT, row: FLOAT) -> FLOAT:
    weight = op.Gather(row, WEIGHT)
    if weight != 0.0:
        v, _ = op.Split(v2, num_outputs=2, axis=0)
    else:
        v = op.Identity(v2)
    return v


@script(default_opset=op)
def away_from(out: FLOAT, weak: FLOAT, row: FLOAT) -> FLOAT:
    """As `conditioning.guidance.away_from`; of the weaker model's output the first channels."""
    channels = op.Shape(out, start=1, end=2)
    return out + op.Gather(row, WEIGHT) * (out - op.Slice(weak, op.Constant(value_ints=[0]), channels, [1]))


@script(default_opset=op)
def along(out: FLOAT, v: FLOAT, gradient: FLOAT, scale: FLOAT, row: FLOAT) -> tuple[FLOAT, FLOAT]:
    """As `conditioning.guidance.Gradient`: the guided output, and what x moves by. A row that moves x leaves
    the output alone."""
    slope, moves, weight = op.Gather(row, SLOPE), op.Gather(row, SHIFT), op.Gather(row, WEIGHT)
    guided = out + op.Where(op.Equal(moves, 0.0), weight, 0.0) * scale * gradient
    return guided, moves * gradient * op.Exp(2.0 * slope * v)


@script(default_opset=op)
def not_along(out: FLOAT, x: FLOAT) -> tuple[FLOAT, FLOAT]:
    return op.Identity(out), op.Expand(0.0, op.Shape(x))


class Unguided:
    """No guidance; rows with a weight are as rows without. The other parts replace some of this."""

    def __init__(self) -> None:
        self.initializers: list[TensorProto] = []

    def network(self, denoiser: GraphProto, columns: Sequence[Column]) -> GraphProto:
        """The network and what its inputs are made of."""
        return _network_of(denoiser, DENOISER)

    def output(self, learned: bool) -> list[NodeProto]:
        """From `all.out` and `all.v` to `out` and `v`; without a learned variance `v` is there already."""
        return [make_node("Identity", [f"all.{name}"], [name]) for name in _outputs(learned)]

    def moved(self, x: str) -> list[NodeProto]:
        """From what a row makes of x to `next`."""
        return [make_node("Identity", [x], [NEXT])]


class ClassifierFree(Unguided):
    """Both halves, with the columns' values and with their null values, are one batch."""

    def network(self, denoiser: GraphProto, columns: Sequence[Column]) -> GraphProto:
        graph = GraphProto()
        graph.CopyFrom(denoiser)
        nodes = call(doubled, [SEEN, "t", "row"], [f"{DENOISER}x", f"{DENOISER}t"])
        for column in columns:
            null, doubled_values = f"{column.name}.null", [f"{DENOISER}{column.name}"]
            if column.null is None:
                double = with_unconditional if column.name == WEIGHTS else twice
                nodes += call(double, [column.name, "row"], doubled_values)
                continue
            self.initializers.append(from_array(np.array(column.null, column.dtype), null))
            nodes += call(with_null, [column.name, null, "row"], doubled_values)
        # Another N than that of x. Without the shapes onnxruntime leaves out some of its optimisations.
        inputs = [_of_another_batch(value) for value in graph.input]
        values = [_of_another_batch(value) for value in graph.value_info]
        del graph.value_info[:]
        graph.value_info.extend([*values, *inputs])
        graph = add_prefix_graph(graph, DENOISER)
        return _with_nodes(graph, [*nodes, *graph.node])

    def output(self, learned: bool) -> list[NodeProto]:
        functions = {"out": away_from_half, "v": told_half}
        return [node for name in _outputs(learned) for node in call(functions[name], [f"all.{name}", "row"], [name])]


class Autoguidance(Unguided):
    """The output moves away from that of a weaker model, the `guide`: its `out`."""

    def __init__(self, guide: ModelProto) -> None:
        super().__init__()
        self._guide = _network_of(guide.graph, GUIDE)

    def output(self, learned: bool) -> list[NodeProto]:
        guided = call(away_from, ["all.out", f"{GUIDE}out", "row"], ["out.guided"])
        plain = [make_node("Identity", ["all.out"], ["out.plain"])]
        nodes = _if_weight(self._guide, guided, plain, ["out"])
        return [*nodes, *(make_node("Identity", ["all.v"], ["v"]) for name in _outputs(learned) if name == "v")]


class Gradient(Unguided):
    """The output, or x itself, moves along the gradient of a classifier or a CLIP: the `gradient` and `scale` of the
    `guide`."""

    def __init__(self, guide: ModelProto) -> None:
        super().__init__()
        self._guide = _network_of(guide.graph, GUIDE)

    def output(self, learned: bool) -> list[NodeProto]:
        variance = [make_node("Identity", ["all.v"], ["v"]) for name in _outputs(learned) if name == "v"]
        inputs = ["all.out", "v", f"{GUIDE}gradient", f"{GUIDE}scale", "row"]
        guided = call(along, inputs, ["out.guided", "shift.guided"])
        plain = call(not_along, ["all.out", "x"], ["out.plain", "shift.plain"])
        return [*variance, *_if_weight(self._guide, guided, plain, ["out", "shift"])]

    def moved(self, x: str) -> list[NodeProto]:
        return [make_node("Add", [x, "shift"], [NEXT])]


# By what a guide's file gives.
_BY_GUIDE = {("out",): Autoguidance, ("gradient", "scale"): Gradient}


def guidance_of(columns: Sequence[Column], guide: ModelProto | None) -> Unguided:
    """The part of a model.

    Args:
        columns: that the network is conditioned on.
        guide: what `export.files.export_guide` wrote; None: the model guides itself, if a column has a null value.
    """
    if guide is not None:
        return _BY_GUIDE[tuple(output.name for output in guide.graph.output)](guide)
    return ClassifierFree() if any(column.null is not None for column in columns) else Unguided()


def _outputs(learned: bool) -> tuple[str, ...]:
    return ("out", "v") if learned else ("out",)


def _network_of(graph: GraphProto, prefix: str) -> GraphProto:
    """A network whose inputs are the body's values of the same names, and what it sees of x."""
    values = {"x": SEEN}
    inputs = [make_node("Identity", [values.get(each.name, each.name)], [prefix + each.name]) for each in graph.input]
    network = add_prefix_graph(graph, prefix)
    return _with_nodes(network, [*inputs, *network.node])


def _with_nodes(graph: GraphProto, nodes: Sequence[NodeProto]) -> GraphProto:
    changed = GraphProto()
    changed.CopyFrom(graph)
    del changed.node[:]
    changed.node.extend(nodes)
    return changed


def _of_another_batch(value: ValueInfoProto) -> ValueInfoProto:
    """With other names for the sizes that are free."""
    changed = ValueInfoProto()
    changed.CopyFrom(value)
    for axis in changed.type.tensor_type.shape.dim:
        if axis.dim_param:
            axis.dim_param = f"{DENOISER}{axis.dim_param}"
    return changed


def _if_weight(
    guide: GraphProto, guided: Sequence[NodeProto], plain: Sequence[NodeProto], results: Sequence[str]
) -> list[NodeProto]:
    """The guide, and with it its weights, in the branch of rows that have a weight."""
    branches = {
        "then_branch": make_graph(
            [*guide.node, *guided],
            "guided",
            inputs=[],
            outputs=[_untyped(f"{name}.guided") for name in results],
            initializer=guide.initializer,
            value_info=guide.value_info,
        ),
        "else_branch": make_graph(plain, "plain", inputs=[], outputs=[_untyped(f"{name}.plain") for name in results]),
    }
    return [*call(has_weight, ["row"], ["weighed"]), make_node("If", ["weighed"], results, **branches)]


def _untyped(name: str) -> ValueInfoProto:
    return make_tensor_value_info(name, TensorProto.FLOAT, None)


def call(function: OnnxFunction, arguments: Sequence[str], results: Sequence[str]) -> list[NodeProto]:
    """The nodes of a function, between values of these names."""
    prefix = f"{function.name}.{results[0]}."
    graph = add_prefix_graph(function.to_model_proto().graph, prefix)
    taken = [make_node("Identity", [name], [own.name]) for name, own in zip(arguments, graph.input, strict=True)]
    given = [make_node("Identity", [own.name], [name]) for name, own in zip(results, graph.output, strict=True)]
    return [*taken, *graph.node, *given]
