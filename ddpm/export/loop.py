"""The third executor of a sampling plan: the loop inside the ONNX graph.

The plan is data: a Scan takes its rows one by one and carries x and the two latest x̂_0, so one file runs every sampler
in any number of steps. Its inputs and outputs:

- `x`: x_T, float32 [N, C, ...] standard normal: scaled x, as all x of `diffusion.plans`.
- `plan`: float32 [S, columns], a row a step, the columns of `diffusion.plans`.
- `timesteps`: int64 [S], or float32 of a process in continuous time: the network's input t.
- `z`: float32 [S, N, C, ...] standard normal; [S, 0, C, ...] does for a plan of which no row adds noise.
- one input for each column of a conditional model, such as `label` int64 [N] or `low` uint8 [N, h, w, C].
- `control_plan`, of a model with a control: float32 [S, 3], the weights of what the control adds, a row a step, which
  are a plan's `control` or 1.
- → `images`: uint8 [N, H, W, C]; or `points`, `sequences`: float32 [N, C, ...] in the data's own units.
- → `x0`: float32 [N, C, ...], the same in about [−1, 1], or of a model of latents what the decoder was given, times the
  scale; NaN where the network's output was NaN or infinite, which `images` cannot show.

The noise comes from outside because it belongs to the image: drawn as `diffusion.noise` draws it, these are the images
of the other two executors. onnxruntime's RandomNormalLike takes its seed as an attribute, fixed at export, and a
counter-based generator would be of integer operators that have no CUDA kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto
from onnx.compose import add_prefix_graph
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info, np_dtype_to_tensor_dtype
from onnx.numpy_helper import from_array
from onnxscript import BOOL, DOUBLE, FLOAT, INT64, UINT8, script
from onnxscript import opset20 as op

from ddpm.codecs.embedding import Embedding
from ddpm.codecs.latent import Latent
from ddpm.codecs.scale import Codec, ValueCodec
from ddpm.conditioning.columns import Column
from ddpm.conditioning.control_weights import CONTROL_PLAN, WEIGHTS
from ddpm.conditioning.pictures import ImageColumn, MaskColumn
from ddpm.diffusion.plans import COLUMNS
from ddpm.export.guidance import NEXT, SEEN, call, guidance_of

INPUT_SCALE = COLUMNS.index("input_scale")

# --- what a row does, and what its end is shown as, in ONNX


@script(default_opset=op)
def update(
    x: FLOAT, previous: FLOAT, earlier: FLOAT, row: FLOAT, z: FLOAT, out: FLOAT, v: FLOAT
) -> tuple[FLOAT, FLOAT, FLOAT]:
    """One row, as in `diffusion.executor`: the next x, and its x̂_0 and the previous one to remember."""
    (
        x0_from_x, x0_from_out, clip, quantile, to_x0, to_x, to_prev, to_prev2, to_noise, log_noise_from_out, _, _, _,
    ) = op.Split(row, num_outputs=len(COLUMNS))  # fmt: skip
    free = x0_from_x * x + x0_from_out * out
    if quantile > 0.0:
        flat = op.Flatten(free)
        count = op.Shape(flat, start=1)
        ascending, _ = op.TopK(op.Abs(flat), count, largest=0)
        place = quantile * op.Cast(count - 1, to=FLOAT.dtype)
        below = op.Gather(ascending, op.Cast(op.Floor(place), to=INT64.dtype), axis=1)
        above = op.Gather(ascending, op.Cast(op.Ceil(place), to=INT64.dtype), axis=1)
        bound = op.Clip(below + (above - below) * (place - op.Floor(place)), 1.0, op.Squeeze(clip))
        held = op.Reshape(op.Max(op.Min(flat, bound), -bound) / bound, op.Shape(free))
    else:
        held = op.Clip(free, op.Squeeze(-clip), op.Squeeze(clip))
    # NaN where it was infinite.
    held = held + free * 0.0
    after = to_x0 * held + to_x * x + to_prev * previous + to_prev2 * earlier
    if to_noise > 0.0:
        # To the shape of x, because broadcasting would take another count of z for an answer.
        after = after + to_noise * op.Exp(log_noise_from_out * v) * op.Reshape(z, op.Shape(x))
    return after, held, op.Identity(previous)


@script(default_opset=op)
def seen(x: FLOAT, row: FLOAT) -> FLOAT:
    """What the network sees of x."""
    return op.Gather(row, INPUT_SCALE) * x


@script(default_opset=op)
def known_part(image: UINT8, mask: BOOL) -> tuple[FLOAT, BOOL]:
    """As `conditioning.pictures.known_part`."""
    x0 = op.Transpose(op.Cast(image, to=FLOAT.dtype), perm=[0, 3, 1, 2]) / 127.5 - 1.0
    return x0, op.Unsqueeze(mask, [1])


@script(default_opset=op)
def put_back(after: FLOAT, held: FLOAT, row: FLOAT, x0: FLOAT, mask: BOOL) -> tuple[FLOAT, FLOAT]:
    """The x and the x̂_0 of a row with what is known of x_0."""
    whole = op.Where(mask, x0, held)
    return after + op.Gather(row, 4) * (whole - held), whole


@script(default_opset=op)
def for_all(weights: FLOAT, batch: INT64) -> FLOAT:
    """A row's weights of the control for each datum."""
    return op.Expand(weights, op.Concat(batch, op.Shape(weights), axis=0))


@script(default_opset=op)
def to_pixels(x0: FLOAT) -> UINT8:
    """As `PixelCodec.decode`."""
    return op.Transpose(op.Cast(op.Clip(op.Round((x0 + 1.0) * 127.5), 0.0, 255.0), to=UINT8.dtype), perm=[0, 2, 3, 1])


@script(default_opset=op)
def to_values(x0: FLOAT, centre: DOUBLE, half: DOUBLE) -> FLOAT:
    """As `ValueCodec.decode`."""
    return op.Cast(op.Cast(x0, to=DOUBLE.dtype) * half + centre, to=FLOAT.dtype)


@script(default_opset=op)
def to_directions(x0: FLOAT, centre: DOUBLE, half: DOUBLE) -> FLOAT:
    """As `codecs.embedding.Embedding.decode` of embeddings with `unit_norm`."""
    found = op.Cast(x0, to=DOUBLE.dtype) * half + centre
    length = op.ReduceL2(found, op.Constant(value_ints=[1]), keepdims=1)
    return op.Cast(found / (length + 1e-30), to=FLOAT.dtype)  # zeros stay zeros


# --- the model of them


def sampler_model(
    denoiser: ModelProto,
    codec: Codec,
    columns: Sequence[Column] = (),
    guide: ModelProto | None = None,
    decoder: ModelProto | None = None,
) -> ModelProto:
    """The loop around a denoiser, (x [N, C, ...], t [N], columns) → out [N, C or 2C, ...]: this module's inputs and
    outputs.

    The weights go into the loop's body: onnxruntime optimises a body with its own initializers as it does a graph, but
    stops at those that the body takes from outside (docs/onnx.md).

    Args:
        columns: that the denoiser or the guide is conditioned on.
        guide: as for `export.guidance.guidance_of`.
        decoder: of a model of latents, z [N, Z, h, w] → pictures [N, C, H, W].
    """
    decode, known = _decoder(codec, decoder), _known_part(columns)
    decoded = _info(
        codec.name, ["N", *codec.shape], TensorProto.UINT8 if codec.dtype == np.uint8 else TensorProto.FLOAT
    )
    weighs, given = _weighs(columns), [column for column in columns if column.name != WEIGHTS]
    scanned = ["plan", "timesteps", "z", *([CONTROL_PLAN] if weighs else [])]
    scan = make_node(
        "Scan",
        ["x", "nothing", "nothing", *scanned],
        ["x0", "latest", "second_latest"],
        body=_body(denoiser.graph, codec, columns, guide),
        num_scan_inputs=len(scanned),
    )
    graph = make_graph(
        [make_node("Sub", ["x", "x"], ["nothing"]), *known, scan, *decode.node],
        "sampler",
        inputs=[
            _state("x", codec),
            _info("plan", ["S", len(COLUMNS)]),
            _info("timesteps", ["S"], _time_type(denoiser.graph)),
            _info("z", ["S", "M", *codec.network_shape]),
            *([_info(CONTROL_PLAN, ["S", 3])] if weighs else []),
            *(_info(each.name, ["N", *each.shape], np_dtype_to_tensor_dtype(each.dtype)) for each in given),
        ],
        outputs=[decoded, _state("x0", codec)],
        initializer=decode.initializer,
    )
    return make_model(graph, ir_version=denoiser.ir_version, opset_imports=denoiser.opset_import)


def _body(denoiser: GraphProto, codec: Codec, columns: Sequence[Column], guide: ModelProto | None) -> GraphProto:
    """One row: the network at the row's time with its columns, guided if it can be, and `update` of its output."""
    learned = denoiser.output[0].type.tensor_type.shape.dim[1].dim_value == 2 * codec.network_shape[0]
    inputs = {value.name for value in denoiser.input}
    own = [column for column in columns if column.name in inputs]
    guidance = guidance_of(own, guide)
    network = guidance.network(denoiser, own)
    (out,) = network.output
    if learned:
        parts, constants = make_node("Split", [out.name], ["all.out", "all.v"], axis=1, num_outputs=2), []
    else:
        parts = make_node("Identity", [out.name], ["all.out"])
        constants = [from_array(np.zeros(1, np.float32), "v")]
    step = _prefixed(update.to_model_proto().graph, "update.")
    known, (x, held, previous) = _put_back(columns, [output.name for output in step.output])
    return make_graph(
        [
            make_node("Shape", ["x"], ["batch"], end=1),
            make_node("Expand", ["timestep", "batch"], ["t"]),
            *(call(for_all, ["weights", "batch"], [WEIGHTS]) if _weighs(columns) else []),
            *call(seen, ["x", "row"], [SEEN]),
            *network.node,
            parts,
            *guidance.output(learned),
            *step.node,
            *known,
            *guidance.moved(x),
        ],
        "row",
        inputs=[
            *(_state(name, codec) for name in ("x", "previous", "earlier")),
            _info("row", [len(COLUMNS)]),
            _info("timestep", [], _time_type(denoiser)),
            _info("z", ["M", *codec.network_shape]),
            *([_info("weights", [3])] if _weighs(columns) else []),
        ],
        outputs=[_state(name, codec) for name in (NEXT, held, previous)],
        initializer=[*network.initializer, *guidance.initializers, *constants],
        value_info=network.value_info,
    )


def _time_type(denoiser: GraphProto) -> int:
    return next(value.type.tensor_type.elem_type for value in denoiser.input if value.name == "t")


def _known_part(columns: Sequence[Column]) -> list[NodeProto]:
    """From the columns of a model that fills in images to `known.x0` and `known.mask`; of others nothing."""
    if not _fills_in(columns):
        return []
    return call(known_part, [ImageColumn.name, MaskColumn.name], ["known.x0", "known.mask"])


def _put_back(columns: Sequence[Column], stepped: Sequence[str]) -> tuple[list[NodeProto], Sequence[str]]:
    """What `put_back` adds to a row of such a model, and the names of what comes of it.

    Args:
        stepped: the names of what `update` made.
    """
    if not _fills_in(columns):
        return [], stepped
    after, held, previous = stepped
    results = ["known.next", "known.held"]
    return call(put_back, [after, held, "row", "known.x0", "known.mask"], results), [*results, previous]


def _weighs(columns: Sequence[Column]) -> bool:
    """Whether there is a control, whose weights a row of the plan has."""
    return any(column.name == WEIGHTS for column in columns)


def _fills_in(columns: Sequence[Column]) -> bool:
    return any(column.name == MaskColumn.name for column in columns)


def _decoder(codec: Codec, decoder: ModelProto | None = None) -> GraphProto:
    """From `x0` to data as they are stored."""
    if isinstance(codec, Latent):
        assert decoder is not None
        return _through(codec, decoder.graph)
    if isinstance(codec, ValueCodec):
        graph = to_values.to_model_proto().graph
        centre, half = codec.scale()
        graph.initializer.extend([from_array(centre, "centre"), from_array(half, "half")])
    elif isinstance(codec, Embedding):
        graph = (to_directions if codec.unit_norm else to_values).to_model_proto().graph
        scale = {"centre": codec.mean, "half": codec.std}
        graph.initializer.extend([from_array(np.array(each, np.float64), name) for name, each in scale.items()])
    else:
        graph = to_pixels.to_model_proto().graph
    graph.node[-1].output[0] = codec.name
    return graph


def _through(codec: Latent, decoder: GraphProto) -> GraphProto:
    """As `_decoder`, of latents."""
    decode, shown = add_prefix_graph(decoder, "decoder."), _decoder(codec.pixels)
    unscale = make_node("Div", ["x0", "decoder.scale"], [decode.input[0].name])
    join = make_node("Identity", [decode.output[0].name], ["decoder.x0"])
    for node in shown.node:
        node.input[:] = ["decoder.x0" if name == "x0" else name for name in node.input]
    decode.initializer.append(from_array(np.float32(codec.scale), "decoder.scale"))
    return make_graph(
        [unscale, *decode.node, join, *shown.node],
        "decoder",
        inputs=[],
        outputs=[],
        initializer=[*decode.initializer, *shown.initializer],
    )


def _prefixed(graph: GraphProto, prefix: str) -> GraphProto:
    """With names of its own but for its inputs: a graph and the graphs in it share one name space."""
    return add_prefix_graph(graph, prefix, rename_inputs=False)


def _state(name: str, codec: Codec) -> ValueInfoProto:
    return _info(name, ["N", *codec.network_shape])


def _info(name: str, shape: list[int | str], element: int = TensorProto.FLOAT) -> ValueInfoProto:
    return make_tensor_value_info(name, element, shape)
