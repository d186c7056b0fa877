"""From a model directory to ONNX: the network and what guides it alone, and with the loop around them."""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto
from torch import Tensor

from ddpm.conditioning.columns import Column, blank
from ddpm.conditioning.guidance import from_score
from ddpm.conditioning.network import ConditionalNetwork, answered_by, bind, columns_in
from ddpm.deploy.facts import FORMAT
from ddpm.diffusion.plans import COLUMNS, SamplingPlan
from ddpm.errors import UserError
from ddpm.export.control import RESIDUAL, branched
from ddpm.export.gradient import add_scale, agreement_gradient, log_p_gradient
from ddpm.export.half import in_half_precision
from ddpm.export.loop import sampler_model
from ddpm.files import combined_sha256, write_json
from ddpm.model import Model
from ddpm.nets.autoencoder import AutoencoderKL
from ddpm.nets.clip import CLIP
from ddpm.nets.controlled import Control, Controlled

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
    """Write one evaluation of the network as ONNX: (x float32 [N, C, ...], t [N], columns) → out [N, C, ...].

    t is int64, or float32 of a process in continuous time.

    The columns are inputs by their names, such as `label` int64 [N]; an unconditional model has none. N is free. The
    file's bytes depend on the model alone.
    """
    proto = _exported(model)
    set_metadata(proto, facts(model))
    write(proto, path)


def export_guide(model: Model, denoiser: Path, path: Path) -> None:
    """Write what guides a model: a weaker model as `export_denoiser` does; a classifier as (x float32 [N, C, ...], t
    int64 [N], label int64 [N]) → `gradient` [N, C, ...], ∇_x log p(label | x_t), and `scale` [N, 1, ...]: at guidance
    weight w the model's output moves by w · scale · gradient. A CLIP takes the caption's tokens, prompt int64 [N, L],
    and its gradient is that of the embeddings' dot product, times its scale.

    Args:
        denoiser: the model's own file, with whose weights these have to fit into one sampler.onnx.

    Raises:
        UserError: the gradient of one of the operators of the classifier or the CLIP is not known.
    """
    assert model.guide is not None
    if model.by_classifier:
        try:
            proto = _GRADIENTS[model.guide.card.config.network.kind](model.guide)
        except ValueError as error:
            raise UserError(f"{model.guide.card.variant} cannot be exported as a guide: {error}") from None
        add_scale(proto, _scales(model))
    else:
        proto = _exported(model.guide)
    set_metadata(proto, {**facts(model.guide), "guides": model.card.variant})
    write(proto, path, most_weights=MOST_WEIGHTS - denoiser.stat().st_size)


def export_decoder(model: Model, denoiser: Path, path: Path) -> None:
    """Write the decoder of a model of latents: z float32 [N, Z, h, w] → `decoded` [N, C, H, W] in about [−1, 1]. z is x
    without the scale.

    Args:
        denoiser: as for `export_guide`.
    """
    assert model.autoencoder is not None
    network = _Decoder(copy.deepcopy(model.autoencoder.network).to("cpu"))
    example = (torch.zeros(2, *model.codec.network_shape),)
    proto = to_onnx(network, example, ["z"], ["decoded"], ({0: torch.export.Dim("N", min=1)},))
    set_metadata(proto, facts(model))
    write(proto, path, most_weights=MOST_WEIGHTS - denoiser.stat().st_size)


class _Decoder(torch.nn.Module):
    """The decoder alone."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, z: Tensor) -> Tensor:
        return self.autoencoder.decode(z)


def _exported(model: Model) -> ModelProto:
    """The network as ONNX: (x, t, columns) → out; of a classifier its logits."""
    network = _flat(copy.deepcopy(model.network).to("cpu").eval())
    proto = _of_noisy_data(model, network, columns_in(model.network), ["out", *network.residuals])
    if network.residuals:
        branched(proto)
    return proto


def _of_noisy_data(
    model: Model, network: torch.nn.Module, columns: Sequence[Column], outputs: Sequence[str]
) -> ModelProto:
    """A module of (x, t, columns) as ONNX.

    Args:
        model: whose data and whose times they are.
    """
    given = [torch.from_numpy(values) for values in blank(columns, 2).values()]
    time = torch.float32 if model.schedule.coordinates.continuous else torch.int64
    example = (torch.zeros(2, *model.codec.network_shape), torch.zeros(2, dtype=time), *given)
    names = ["x", "t", *(column.name for column in columns)]
    batch = torch.export.Dim("N", min=1)
    shapes = ({0: batch}, {0: batch}, *([tuple({0: batch} for _ in given)] if given else []))
    return to_onnx(network, example, names, [*outputs], shapes)


def to_onnx(
    network: torch.nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    shapes: tuple[Any, ...],
) -> ModelProto:
    """A module as ONNX.

    Args:
        shapes: of each input, which of its axes is free.
    """
    # The exporter reports its progress and torch's own deprecations; neither is the user's business.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _drop_provenance(proto)
    return proto


class _Towers(torch.nn.Module):
    """A CLIP's two towers: of images the embedding, of texts the unit vector times the scale."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, x: Tensor, t: Tensor, *ids: Tensor) -> tuple[Tensor, Tensor]:
        return self.clip.image(x, t), self.clip.scale * self.clip.texts(*ids)


def _classifier_gradient(guide: Model) -> ModelProto:
    return log_p_gradient(_exported(guide))


def _clip_gradient(guide: Model) -> ModelProto:
    towers = _Towers(copy.deepcopy(cast(CLIP, guide.network)).to("cpu").eval())
    return agreement_gradient(_of_noisy_data(guide, towers, answered_by(guide.network), ["image", "text"]))


# By the guide's network.kind, as `conditioning.guidance.GRADIENTS`.
_GRADIENTS = {"classifier": _classifier_gradient, "clip": _clip_gradient}


def _scales(model: Model) -> NDArray[np.float32]:
    """By which the model's output moves along a guide's gradient at weight 1, [T]: as of
    `conditioning.guidance.Gradient`."""
    return from_score(model.process()).cpu().numpy()


class _Flat(torch.nn.Module):
    """A network whose columns are arguments, not a mapping."""

    residuals: tuple[str, ...] = ()
    """The names of its further outputs."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def given(self, values: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return dict(zip((column.name for column in columns_in(self.network)), values, strict=True))

    def forward(self, x: Tensor, t: Tensor, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        return bind(self.network, self.given(values))(x, t)


class _FlatControlled(_Flat):
    """The same of a network with controls; what they add are outputs too."""

    def __init__(self, network: ConditionalNetwork) -> None:
        super().__init__(network)
        self.controlled = cast(Controlled, network.network)
        first = cast(Control, self.controlled.controls[0])
        self.residuals = tuple(f"{RESIDUAL}{number}" for number in range(len(first.zero)))

    def forward(self, x: Tensor, t: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        c = cast(ConditionalNetwork, self.network).condition(self.given(values))
        residuals = self.controlled.residuals(x, t, c)
        return self.controlled.base(x, t, self.controlled.with_residuals(c, residuals)), *residuals


def _flat(network: torch.nn.Module) -> _Flat:
    if isinstance(network, ConditionalNetwork) and isinstance(network.network, Controlled):
        return _FlatControlled(network)
    return _Flat(network)


def export_half(network: Path, path: Path) -> None:
    """Write the same denoiser or guide in fp16: float32 outside, so that it takes the other's place."""
    write(in_half_precision(onnx.load(network)), path)


def export_sampler(
    model: Model, denoiser: Path, path: Path, guide: Path | None = None, decoder: Path | None = None
) -> None:
    """Write the loop around a denoiser, and around what guides it, as one file, see `export.loop`; of a model of
    latents it ends with the decoder. Weights that these have in a file beside them stay there and serve both.

    Its metadata holds what a caller must know, as JSON but for plain strings: `facts`, the model's choices `sampling`,
    the `columns` of a plan, and `plans`, a table and timesteps of each name; `default` is the model's own.
    """
    files = (denoiser, guide, decoder)
    networks = [None if file is None else onnx.load(file, load_external_data=False) for file in files]
    loop = sampler_model(networks[0], model.codec, model.columns, *networks[1:])
    timesteps = len(model.schedule)
    named = {name: plan for name, plan in NAMED_PLANS.items() if plan["steps"] <= timesteps}
    plans = {name: _as_json(model.plan(**choices)) for name, choices in {"default": {}, **named}.items()}
    sampling = model.card.config.sampling.model_dump(mode="json")
    set_metadata(loop, {**facts(model), "sampling": sampling, "columns": COLUMNS, "plans": plans})
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
        # Of any length; sampler.json has them.
        "data": card.data.model_dump(mode="json", exclude={"text": True, "encoder": {"card"}}),
        "training": card.training.model_dump(mode="json"),
        "opset": OPSET,
        **({} if model.guide is None else {"guide": {**_guide_facts(model.guide), "mark": model.guide_mark}}),
    }


def _guide_facts(guide: Model) -> dict[str, Any]:
    """What the files say of the model that guides: `kind` is `classifier`, `clip`, or `model` of a weaker one."""
    card = guide.card
    return {
        "kind": card.config.network.kind if card.config.guides_by_gradient else "model",
        "variant": card.variant,
        "condition": card.config.condition.model_dump(mode="json"),
        "data": card.data.model_dump(mode="json", include=_OF_GUIDE),
        "training": card.training.model_dump(mode="json"),
    }


# Of what a guide knows of its data. Of `text` the same holds as of the model's own.
_OF_GUIDE = {"name", "classes", "class_counts"}


def describe_sampler(model: Model, directory: Path) -> None:
    """Write sampler.json: what the runtime needs beside the ONNX files."""
    denoiser = directory / "denoiser.onnx"
    # Beside the denoiser: networks that are evaluated after it, not with it.
    others = {"guide": model.guide, "decoder": model.autoencoder}
    beside = {name: directory / f"{name}.onnx" for name, network in others.items() if network is not None}
    # Guidance without a guide evaluates a datum twice at once.
    memory = _activation_bytes(denoiser) * (2 if model.guidable and model.guide is None else 1)
    about = facts(model)
    if model.guide is not None:
        about["guide"]["data"] = model.guide.card.data.model_dump(mode="json", include={*_OF_GUIDE, "text"})
    write_json(
        directory / "sampler.json",
        {
            **about,
            "data": model.card.data.model_dump(mode="json"),
            "sampling": model.card.config.sampling.model_dump(mode="json"),
            "activation_bytes": max([memory, *map(_activation_bytes, beside.values())]),
            "denoiser_sha256": onnx_sha256(denoiser),
            **{f"{name}_sha256": onnx_sha256(file) for name, file in beside.items()},
        },
    )


def _activation_bytes(file: Path) -> int:
    return activation_bytes(onnx.load(file, load_external_data=False).graph)


def activation_bytes(graph: GraphProto) -> int:
    """What one datum takes on its way through the network: the values that are alive together, where they are most."""
    sizes = {value.name: _bytes(value.type.tensor_type) for value in [*graph.input, *graph.value_info, *graph.output]}
    last_use = {name: index for index, node in enumerate(graph.node) for name in node.input}
    alive = {value.name: sizes[value.name] for value in graph.input}
    peak = 0
    for index, node in enumerate(graph.node):
        alive |= {name: sizes.get(name, 0) for name in node.output}
        branches = [activation_bytes(attribute.g) for attribute in node.attribute if attribute.HasField("g")]
        peak = max(peak, sum(alive.values()) + max(branches, default=0))
        alive = {name: size for name, size in alive.items() if last_use.get(name, -1) > index}
    return peak


def _bytes(tensor: Any) -> int:
    """Of a tensor whose free axis, N, is 1."""
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    return width * math.prod(axis.dim_value or 1 for axis in tensor.shape.dim)


def _as_json(plan: SamplingPlan) -> dict[str, Any]:
    """A plan in the digits that float32 has."""

    def digits(rows: NDArray[np.float64]) -> list[list[float]]:
        return [[float(f"{number:.9g}") for number in row] for row in rows.tolist()]

    weights = {} if plan.control is None else {"control": digits(plan.control)}
    return {"timesteps": plan.timesteps.tolist(), "table": digits(plan.table), **weights}


def set_metadata(proto: ModelProto, values: dict[str, Any]) -> None:
    """What a file says of itself: strings as they are, all else as JSON."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}
    onnx.helper.set_model_props(proto, texts)


def write(proto: ModelProto, path: Path, *, most_weights: int | None = None) -> None:
    """Save, and hold against ONNX's own rules, shapes included.

    Args:
        most_weights: bytes; more than these go to a file beside it, `path` with `.data` appended. None: `MOST_WEIGHTS`.
    """
    most = MOST_WEIGHTS if most_weights is None else most_weights
    if sum(tensor.ByteSize() for tensor in initializers(proto.graph)) > most:
        onnx.save_model(proto, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(proto, path)
    onnx.checker.check_model(str(path), full_check=True)


def onnx_sha256(path: Path) -> str:
    """The SHA-256 of an ONNX file; with weights in files beside it, that of all of them."""
    beside = {
        entry.value
        for tensor in initializers(onnx.load(path, load_external_data=False).graph)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return combined_sha256([path, *(path.parent / name for name in sorted(beside))])


def initializers(graph: GraphProto) -> Iterator[TensorProto]:
    """Those of nested graphs too."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from initializers(attribute.g)


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
