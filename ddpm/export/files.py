"""From a model directory to ONNX: the network alone, and with the loop around it."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import GraphProto, ModelProto
from torch import Tensor

from ddpm.conditioning.columns import blank
from ddpm.conditioning.network import bind, columns_in
from ddpm.deploy.facts import FORMAT
from ddpm.diffusion.plans import COLUMNS, SamplingPlan
from ddpm.export.half import in_half_precision
from ddpm.export.loop import sampler_model
from ddpm.files import sha256_of, write_json
from ddpm.model import Model

# The newest whose operators onnxruntime 1.31 all has kernels for on the CPU: docs/onnx.md.
OPSET = 20
# A file may hold 2 GiB, protobuf's limit; this leaves room for all that is not weights.
MOST_WEIGHTS = 2**31 - 2**24

# Plans that sampler.onnx tells the tables of, beside the model's own: from the most steps to the fewest.
NAMED_PLANS: dict[str, dict[str, Any]] = {
    "ddim-50": {"sampler": "ddim", "steps": 50, "eta": 0.0},
    "dpmpp_2m-20": {"sampler": "dpmpp_2m", "steps": 20},
    "unipc-10": {"sampler": "unipc", "steps": 10},
}


def export_denoiser(model: Model, path: Path) -> None:
    """Write one evaluation of the network as ONNX: (x float32 [N, C, ...], t int64 [N], columns) → out [N, C, ...].

    The columns are inputs by their names, such as `label` int64 [N]; an unconditional model has none. N is free. The
    file's bytes depend on the model alone.
    """
    network = _Flat(copy.deepcopy(model.network).to("cpu").eval())
    given = [torch.from_numpy(values) for values in blank(model.columns, 2).values()]
    example = (torch.zeros(2, *model.codec.network_shape), torch.zeros(2, dtype=torch.int64), *given)
    names = ["x", "t", *(column.name for column in model.columns)]
    batch = torch.export.Dim("N", min=1)
    # The exporter reports its progress and torch's own deprecations; neither is the user's business.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=["out"],
            dynamic_shapes=({0: batch}, {0: batch}, *([tuple({0: batch} for _ in given)] if given else [])),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _drop_provenance(proto)
    _set_metadata(proto, facts(model))
    write(proto, path)


class _Flat(torch.nn.Module):
    """A network whose columns are arguments, not a mapping."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, *values: Tensor) -> Tensor:
        given = dict(zip((column.name for column in columns_in(self.network)), values, strict=True))
        return bind(self.network, given)(x, t)


def export_half(denoiser: Path, path: Path) -> None:
    """Write the same denoiser in fp16: float32 outside, so that it takes the other's place."""
    write(in_half_precision(onnx.load(denoiser)), path)


def export_sampler(model: Model, denoiser: Path, path: Path) -> None:
    """Write the loop around a denoiser as one file, see `deploy.loop`. Weights that the denoiser has in a file beside
    it stay there and serve both.

    Its metadata holds what a caller must know, as JSON but for plain strings: `facts`, the model's choices `sampling`,
    the `columns` of a plan, and `plans`, a table and timesteps of each name; `default` is the model's own.
    """
    loop = sampler_model(onnx.load(denoiser, load_external_data=False), model.codec, model.columns)
    timesteps = len(model.schedule)
    named = {name: plan for name, plan in NAMED_PLANS.items() if plan["steps"] <= timesteps}
    plans = {name: _as_json(model.plan(**choices)) for name, choices in {"default": {}, **named}.items()}
    sampling = model.card.config.sampling.model_dump(mode="json")
    _set_metadata(loop, {**facts(model), "sampling": sampling, "columns": COLUMNS, "plans": plans})
    write(loop, path)


def facts(model: Model) -> dict[str, Any]:
    """What the files say of themselves: what the numbers mean, and where they come from."""
    card = model.card
    return {
        "format": FORMAT,
        "name": f"ddpm-{card.data.name}",
        "variant": card.variant,
        "shape": list(card.data.shape),
        "process": card.config.process.model_dump(mode="json"),
        "condition": card.config.condition.model_dump(mode="json"),
        "data": card.data.model_dump(mode="json"),
        "training": card.training.model_dump(mode="json"),
        "opset": OPSET,
    }


def describe_sampler(model: Model, directory: Path) -> None:
    """Write sampler.json: what the runtime needs beside the ONNX files."""
    denoiser = directory / "denoiser.onnx"
    write_json(
        directory / "sampler.json",
        {
            **facts(model),
            "sampling": model.card.config.sampling.model_dump(mode="json"),
            # Guidance evaluates a datum twice at once.
            "activation_bytes": activation_bytes(onnx.load(denoiser, load_external_data=False).graph)
            * (2 if model.guidable else 1),
            "denoiser_sha256": sha256_of(denoiser),
        },
    )


def activation_bytes(graph: GraphProto) -> int:
    """What one datum takes on its way through the network: the values that are alive together, where they are most."""
    sizes = {value.name: _bytes(value.type.tensor_type) for value in [*graph.input, *graph.value_info, *graph.output]}
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    alive = {value.name: sizes[value.name] for value in graph.input}
    peak = 0
    for index, node in enumerate(graph.node):
        alive |= {name: sizes.get(name, 0) for name in node.output}
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last_use.get(name, -1) > index}
    return peak


def _bytes(tensor: Any) -> int:
    """Of a tensor whose free axis, N, is 1."""
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return width * math.prod(axis.dim_value or 1 for axis in tensor.shape.dim)


def _as_json(plan: SamplingPlan) -> dict[str, Any]:
    """A plan in the digits that float32 has."""
    table = [[float(f"{number:.9g}") for number in row] for row in plan.table.tolist()]
    return {"timesteps": plan.timesteps.tolist(), "table": table}


def _set_metadata(proto: ModelProto, values: dict[str, Any]) -> None:
    """Strings as they are, all else as JSON."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    onnx.helper.set_model_props(proto, texts)


def write(proto: ModelProto, path: Path, *, most_weights: int = MOST_WEIGHTS) -> None:
    """Save, and hold against ONNX's own rules, shapes included.

    Args:
        most_weights: bytes; more than these go to a file beside it, `path` with `.data` appended.
    """
    if sum(tensor.ByteSize() for tensor in proto.graph.initializer) > most_weights:
        onnx.save_model(proto, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(proto, path)
    onnx.checker.check_model(str(path), full_check=True)


def _drop_provenance(proto: ModelProto) -> None:
    """Remove where in which source file each node came from: paths differ between machines, the model does not."""
    graphs: list[Any] = [proto.graph, *proto.functions]
    for graph in graphs:
        del graph.metadata_props[:]
        graph.doc_string = ""
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in getattr(graph, "value_info", []):
            del value.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        del value.metadata_props[:]
