"""From a caption to a picture in one ONNX file of standard operators, for models with the tokenizer `words`.

The file makes tokens of a text and then runs the loop of sampler.onnx; of a cascade the loops of its links, one after
the other. Its inputs:

- `prompt`: string [N], N at least 1.
- `x`: x_T, float32 [N, C, ...] standard normal.
- one input for each other column, as in sampler.onnx. Those of pictures have a default: no noise in the low image, no
  known pixels. The low image itself has none.
- `plan`, `timesteps`: as in sampler.onnx; by default a plan without noise: the model's own, if it is one.
- `z`: as in sampler.onnx; not needed for a plan without noise.
- `control_plan`, of a model with a control: as in sampler.onnx; one row stands for all. By default the plan's.
- `guidance_scale`: float32 [], of the rows of the plan that are guided, or of all rows if none is; by default the
  plan's. Of models that can be guided without a classifier or a CLIP.

In a cascade the inputs of a link begin with its name, such as `base_x` and `upsampler_x`; only `prompt` and `label` are
common to all links. The outputs are `images` and `x0` as of sampler.onnx; of a cascade those of the last link, and of
the others by their names, such as `base_images` or `prior_points`.

A default is an initializer with the name of an input, so that runtimes do not require that input.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.compose import add_prefix_graph
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info, set_model_props
from onnx.numpy_helper import from_array
from onnxscript import FLOAT, INT64, script
from onnxscript import opset20 as op

from ddpm.conditioning.columns import Column, Derived, PromptColumn
from ddpm.conditioning.control_weights import CONTROL_PLAN
from ddpm.conditioning.hints import HintColumn
from ddpm.conditioning.tokenizers import Words
from ddpm.diffusion.plans import COLUMNS, SamplingPlan
from ddpm.drawer import Drawer
from ddpm.drawer.cascade import Cascade
from ddpm.export.files import MOST_WEIGHTS, initializers, write
from ddpm.export.guidance import WEIGHT, call
from ddpm.export.words import OPSETS, tokenize

SAMPLER = "sampler.onnx"
# The default where a model's own plan adds noise.
QUIET = {"sampler": "dpmpp_2m", "steps": 20, "spacing": "trailing"}


class Link(NamedTuple):
    """A model in the file."""

    loop: ModelProto
    """Its sampler.onnx."""
    columns: Mapping[str, Column]
    """By their names."""
    plan: SamplingPlan
    """The default, without noise."""
    guidable: bool
    """Whether it has the input `guidance_scale`."""
    fed: Mapping[str, str]
    """Columns that are what an earlier link draws, by their names: the link's name and its output's, as
    `base.images`."""
    asked: Mapping[str, Any]
    """Defaults of columns of pictures, by the columns' names. The others have what `Column.draw` gives."""


def link_of(
    drawer: Drawer, sampler: Path, *, fed: Mapping[str, str] | None = None, asked: Mapping[str, Any] | None = None
) -> Link:
    """A trained or exported model as a link.

    Args:
        sampler: its sampler.onnx.
        fed: as of `Link`.
        asked: as of `Link`.

    Raises:
        ValueError: its tokenizer is not `words`; the message is the reason, in one line.
    """
    columns = {column.name: column for column in drawer.columns}
    for column in columns.values():
        if isinstance(column, PromptColumn) and not isinstance(column.tokenizer, Words):
            raise ValueError(f"standard ONNX has no operators for the tokenizer {column.tokenizer.kind}")
    loop = onnx.load(sampler, load_external_data=False)
    guidable = drawer.guidable and not drawer.by_classifier
    return Link(loop, columns, quiet_plan(drawer), guidable, fed or {}, asked or {})


def links_of(cascade: Cascade, deploy: Path) -> dict[str, Link]:
    """The links of a cascade.

    Args:
        deploy: holds the deploy directories of the links, by their names.

    Raises:
        ValueError: as `link_of`.
    """
    return {
        name: link_of(link.drawer, deploy / name / SAMPLER, fed=_outputs(link.fed, cascade), asked=link.fixed)
        for name, link in cascade.wiring.items()
    }


def _outputs(fed: Mapping[str, str], cascade: Cascade) -> dict[str, str]:
    """As of `Link.fed`, of columns that links draw."""
    return {column: f"{link}.{cascade.links[link].codec.name}" for column, link in fed.items()}


def quiet_plan(drawer: Drawer) -> SamplingPlan:
    """A model's own plan, or one without noise where that has some."""
    plan = drawer.plan()
    if not plan.column("to_noise").any():
        return plan
    return drawer.plan(**QUIET | {"steps": min(QUIET["steps"], drawer.choices[0]["timesteps"])})


@script(default_opset=op)
def at_scale(plan: FLOAT, guidance_scale: FLOAT) -> FLOAT:
    """The plan with the weights of another guidance scale; with its own where that is NaN."""
    before, weights, after = op.Split(plan, op.Constant(value_ints=[WEIGHT, 1, len(COLUMNS) - WEIGHT - 1]), axis=1)
    guided = op.Or(op.Not(op.Equal(weights, 0.0)), op.Equal(op.ReduceMax(op.Abs(weights)), 0.0))
    other = op.Where(guided, guidance_scale - 1.0, 0.0)
    return op.Concat(before, op.Where(op.IsNaN(guidance_scale), weights, other), after, axis=1)


@script(default_opset=op)
def for_each_row(z: FLOAT, plan: FLOAT) -> FLOAT:
    """z as it is, or if it has no rows, of no images in each row of the plan."""
    rows = op.Max(op.Shape(z, end=1), op.Shape(plan, end=1))
    return op.Reshape(z, op.Concat(rows, op.Shape(z, start=1), axis=0), allowzero=1)


@script(default_opset=op)
def for_each_image(values: FLOAT, x: FLOAT) -> FLOAT:
    """Values of any type of a column, of each image or one for all."""
    return op.Expand(values, op.Concat(op.Shape(x, end=1), op.Shape(values, start=1), axis=0))


@script(default_opset=op)
def for_each_step(weights: FLOAT, timesteps: INT64) -> FLOAT:
    """Weights of a control of each step, or one row for all."""
    return op.Expand(weights, op.Concat(op.Shape(timesteps), op.Shape(weights, start=1), axis=0))


def beside(sampler: Path) -> Path:
    """Where the file of a sampler.onnx or sampler.fp16.onnx is."""
    return sampler.with_name(sampler.name.replace("sampler", "text_to_image"))


def export_text_to_image(links: Mapping[str, Link], path: Path) -> None:
    """Write the links as one file, in the order in which they run: this module's inputs and outputs. Its metadata are
    those of their sampler.onnx.

    Args:
        links: by their names. The name of a single link is in none of the inputs.

    Raises:
        ValueError: they do not fit into one file; the message is the reason, in one line.
    """
    tensors = [tensor for link in links.values() for tensor in initializers(link.loop.graph)]
    elsewhere = any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors)
    if elsewhere or sum(tensor.ByteSize() for tensor in tensors) > MOST_WEIGHTS:
        raise ValueError("an ONNX file holds at most 2 GiB, and the weights are more")
    write(text_to_image(links), path)


def text_to_image(links: Mapping[str, Link]) -> ModelProto:
    """As `export_text_to_image`, of links that fit."""
    parts = [_Part(name, link, f"{name}_" if len(links) > 1 else "") for name, link in links.items()]
    inputs = {value.name: value for part in parts for value in part.inputs}
    defaults = {name: values for part in parts for name, values in part.defaults.items()}
    last, tensors = parts[-1], [tensor for part in parts for tensor in part.initializers]
    results = [*last.results(""), *(result for part in parts[:-1] for result in part.results(part.prefix))]
    graph = make_graph(
        [*(node for part in parts for node in part.nodes), *(node for node, _ in results)],
        "text_to_image",
        inputs=sorted(inputs.values(), key=lambda value: (value.name in defaults, value.name != PromptColumn.name)),
        outputs=[value for _, value in results],
        initializer=[*tensors, *(from_array(values, name) for name, values in defaults.items())],
    )
    model = make_model(graph, ir_version=last.link.loop.ir_version, opset_imports=OPSETS)
    set_model_props(model, {name: value for part in parts for name, value in part.metadata.items()})
    return model


class _Part:
    """A link's nodes, with those between the inputs of the file and the inputs of its loop."""

    def __init__(self, name: str, link: Link, prefix: str) -> None:
        """
        Args:
            prefix: of the inputs that are this link's alone.
        """
        self.link, self.prefix, self._name = link, prefix, name
        self.inputs: list[ValueInfoProto] = []
        self.nodes: list[NodeProto] = []
        self.defaults: dict[str, NDArray[Any]] = {}
        own = {"x": self._x, "plan": self._plan, "timesteps": self._timesteps, "z": self._z}
        own[CONTROL_PLAN] = self._control_plan
        for value in link.loop.graph.input:
            own.get(value.name, self._column)(value, self.inside(value.name))
        # Of what a nested graph takes from outside, initializers are renamed only where they are named here.
        names = {tensor.name: self.inside(tensor.name) for tensor in initializers(link.loop.graph)}
        loop = add_prefix_graph(link.loop.graph, self.inside(""), name_map=names)
        self.nodes += loop.node
        self.initializers = loop.initializer
        self.metadata = {prefix + entry.key: entry.value for entry in link.loop.metadata_props}

    def inside(self, name: str) -> str:
        """The name that a value of the loop has in the file."""
        return f"{self._name}.{name}"

    def results(self, prefix: str) -> list[tuple[NodeProto, ValueInfoProto]]:
        """What the loop gives as outputs of the file, and the nodes that make them."""
        found = []
        for value in self.link.loop.graph.output:
            output = ValueInfoProto()
            output.CopyFrom(value)
            output.name = prefix + value.name
            found.append((make_node("Identity", [self.inside(value.name)], [output.name]), output))
        return found

    def _input(self, value: ValueInfoProto, default: NDArray[Any] | None = None) -> str:
        """Add an input of this link alone; returns its name."""
        name = self.prefix + value.name
        tensor = value.type.tensor_type
        # N is the same in all inputs. Other free sizes are not, and a default may be for one image.
        same = "N" if default is None else ""
        sizes = [axis.dim_value or axis.dim_param for axis in tensor.shape.dim]
        shape = [f"{name}.{size}" if isinstance(size, str) and size != same else size for size in sizes]
        self.inputs.append(make_tensor_value_info(name, tensor.elem_type, shape))
        if default is not None:
            self.defaults[name] = default
        return name

    def _x(self, value: ValueInfoProto, inside: str) -> None:
        self.nodes.append(make_node("Identity", [self._input(value)], [inside]))

    def _plan(self, value: ValueInfoProto, inside: str) -> None:
        plan = self._input(value, self.link.plan.table.astype(np.float32))
        if self.link.guidable:
            scale = make_tensor_value_info("guidance_scale", TensorProto.FLOAT, [])
            self.nodes += call(at_scale, [plan, self._input(scale, np.array(np.nan, np.float32))], [inside])
        else:
            self.nodes.append(make_node("Identity", [plan], [inside]))

    def _timesteps(self, value: ValueInfoProto, inside: str) -> None:
        self.nodes.append(make_node("Identity", [self._input(value, self.link.plan.told)], [inside]))

    def _z(self, value: ValueInfoProto, inside: str) -> None:
        _, _, *shape = (axis.dim_value for axis in value.type.tensor_type.shape.dim)
        z = self._input(value, np.zeros((0, 0, *shape), np.float32))
        self.nodes += call(for_each_row, [z, f"{self.prefix}plan"], [inside])

    def _control_plan(self, value: ValueInfoProto, inside: str) -> None:
        weights = self.link.plan.control_rows
        same = (weights == weights[:1]).all()
        given = self._input(value, weights[:1] if same else weights)
        self.nodes += call(for_each_step, [given, f"{self.prefix}timesteps"], [inside])

    def _column(self, value: ValueInfoProto, inside: str) -> None:
        """What an earlier link draws; an input that all links share; or an input of this link, if it is of pictures."""
        column = self.link.columns[value.name]
        if column.name in self.link.fed:
            self.nodes.append(make_node("Identity", [self.link.fed[column.name]], [inside]))
        elif isinstance(column, PromptColumn):
            assert isinstance(column.tokenizer, Words)
            self.inputs.append(make_tensor_value_info(column.name, TensorProto.STRING, ["N"]))
            self.nodes.append(tokenize(column.name, inside, column.tokenizer))
        elif isinstance(column, Derived | HintColumn):
            given = self._input(value, _default(column, self.link.asked.get(column.name)))
            self.nodes += call(for_each_image, [given, f"{self.prefix}x"], [inside])
        else:
            self.inputs.append(value)
            self.nodes.append(make_node("Identity", [column.name], [inside]))


def _default(column: Column, asked: Any) -> NDArray[Any] | None:
    """What a column of pictures has for one image where the caller leaves it out; None: it has to be given.

    Args:
        asked: as of `Column.read`; None: what the column draws.
    """
    if asked is not None:
        return column.read(asked, 1)
    try:
        return column.draw(1, seed=0)
    except ValueError:
        return None
