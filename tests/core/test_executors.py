"""Torch, numpy and the loop in an ONNX graph run one table to the same images; none sees more of a sampler than the
table."""

import functools
import itertools
import json
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.helper import (
    make_graph,
    make_model,
    make_node,
    make_opsetid,
    make_tensor_value_info,
    np_dtype_to_tensor_dtype,
)
from onnxscript import FLOAT, INT64, script
from onnxscript import opset20 as op

from ddpm.codecs.scale import codec_for
from ddpm.conditioning.columns import LabelColumn
from ddpm.conditioning.guidance import Autoguidance, ClassifierFree, ClassifierGradient
from ddpm.conditioning.network import bind
from ddpm.config.sampling import SamplingConfig
from ddpm.deploy import runtime
from ddpm.diffusion import sampling
from ddpm.diffusion.coordinates import PREDICTIONS as COORDINATE_PREDICTIONS
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import COLUMNS, SAMPLERS, decisive_choices, inversion_plan, plan_for, sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import NOISE_SPACINGS, SCHEDULES, SPACINGS, VARIANCES, Schedule
from ddpm.export.gradient import add_scale
from ddpm.export.loop import sampler_model
from ddpm.files import write_json

onnxruntime = runtime.import_onnxruntime()
PREDICTIONS = ("epsilon", "x0", "v")


def denoiser(xp, learned):
    """A network of a line, in numpy or in torch: it mixes pixels and knows the time. Its operations are those that
    every library rounds alike, since a plan's first rows can make hundreds of a last bit."""

    def denoise(x, t):
        t = t.reshape(-1, *[1] * (x.ndim - 1))
        t = t.astype(x.dtype) if xp is np else t.to(x.dtype)
        mixed = 0.7 * xp.roll(x, 1, -1) - 0.4 * x + t / (t + 50)
        out = mixed / (1 + abs(mixed))
        return xp.concatenate([out, x / (1 + abs(x))], 1) if learned else out

    return denoise


@script(default_opset=op)
def denoiser_in_onnx(x: FLOAT, t: INT64):
    """The same in ONNX, its two halves."""
    time = op.Unsqueeze(op.Cast(t, to=FLOAT.dtype), op.Range(1, op.Size(op.Shape(x)), 1))
    rolled = op.Concat(op.Slice(x, [-1], [1000], [-1]), op.Slice(x, [0], [-1], [-1]), axis=-1)
    mixed = 0.7 * rolled - 0.4 * x + time / (time + 50.0)
    return mixed / (1.0 + op.Abs(mixed)), x / (1.0 + op.Abs(x))


def kind_of(shape):
    """Data that a network sees in this shape."""
    if len(shape) == 3:
        return codec_for("images", [*shape[1:], shape[0]])
    channels = range(shape[0])
    return codec_for(
        "points" if len(shape) == 1 else "sequences", shape, [-3.0 - c for c in channels], [5.0 + c for c in channels]
    )


def line_in_onnx(shape, learned, time=TensorProto.INT64):
    """denoiser.onnx of the line, for data of a shape."""
    halves = denoiser_in_onnx.to_model_proto().graph
    names = [value.name for value in halves.output]
    last = make_node("Concat", names, ["out"], axis=1) if learned else make_node("Identity", names[:1], ["out"])
    x, t, out = (
        make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape]),
        make_tensor_value_info("t", time, ["N"]),
        make_tensor_value_info("out", TensorProto.FLOAT, ["N", shape[0] * (1 + learned), *shape[1:]]),
    )
    graph = make_graph([*halves.node, last], "line", [x, t], [out])
    return make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)


@functools.cache
def loop_session(shape, learned, time=TensorProto.INT64):
    """The denoiser of a line with the loop around it, for data of a shape."""
    model = sampler_model(line_in_onnx(shape, learned, time), kind_of(shape))
    onnx.checker.check_model(model, full_check=True)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def by_graph(plan, shape, learned, seed):
    """(decoded, x0) of the graph's loop."""
    noise = ImageNoise(seed, shape[0], shape[1:])
    noisy = plan.column("to_noise") != 0
    x = noise.draw()
    z = np.zeros((len(plan), shape[0] if noisy.any() else 0, *shape[1:]), np.float32)
    for row in np.flatnonzero(noisy):
        z[row] = noise.draw()
    feed = {"x": x, "plan": plan.table.astype(np.float32), "timesteps": plan.told, "z": z}
    return loop_session(shape[1:], learned, np_dtype_to_tensor_dtype(plan.told.dtype)).run(None, feed)


def executed(plan, shape, *, learned=False, seed=0):
    """The images of torch, of numpy and of the graph, from the same noise in float32."""
    noise = ImageNoise(seed, shape[0], shape[1:])
    x = noise.draw()
    by_torch = sampling.sample(
        denoiser(torch, learned), plan, torch.from_numpy(x), lambda: torch.from_numpy(noise.draw())
    )
    noise = ImageNoise(seed, shape[0], shape[1:])
    by_numpy = runtime.run(denoiser(np, learned), plan, noise.draw(), noise.draw)
    assert by_numpy.dtype == np.float32
    decoded, in_graph = by_graph(plan, shape, learned, seed)
    np.testing.assert_array_equal(decoded, kind_of(shape[1:]).decode(in_graph))
    return by_torch.numpy(), by_numpy, in_graph


@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    variance=st.sampled_from(VARIANCES),
    prediction=st.sampled_from(PREDICTIONS),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    spacing=st.sampled_from(sorted(SPACINGS)),
    steps=st.integers(1, 30),
    eta=st.floats(0, 1),
    dynamic_threshold=st.one_of(st.none(), st.floats(0.01, 1)),
    shape=st.sampled_from([(3, 1, 4, 4), (2, 3, 5), (4, 2), (1, 2, 2, 6)]),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=200)
def test_all_executors_draw_the_same_images(schedule, shape, seed, **options):
    plan = sampling_plan(Schedule.named(schedule, 200), **options)
    by_torch, *others = executed(plan, shape, learned=options["variance"] == "learned_range", seed=seed)
    for other in others:
        np.testing.assert_allclose(by_torch, other, rtol=0, atol=1e-5)


@given(
    process=st.sampled_from(
        [
            {"kind": "ve", "timesteps": 60, "sigma_max": 10.0},
            {"kind": "edm", "timesteps": 200, "sigma_max": 20.0},
            {"kind": "flow", "timesteps": 200},
        ]
    ),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    prediction=st.sampled_from(sorted({*COORDINATE_PREDICTIONS} - {"epsilon", "score"})),
    spacing=st.sampled_from(["karras", "exponential", "trailing"]),
    steps=st.integers(1, 30),
    churn=st.sampled_from([0.0, 5.0]),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=100)
def test_all_executors_draw_the_same_images_in_every_process(process, seed, churn, **options):
    """With an input scale in every row, and the time as a float in continuous time."""
    schedule, more = Schedule.of(process), {}
    if churn and options["sampler"] == "heun" and schedule.coordinates.continuous:
        more = {"churn": churn}
    assume(options["spacing"] != "trailing" or process["kind"] != "flow")  # some samplers cannot begin without signal
    plan = sampling_plan(schedule, variance="fixed_small", **options, **more)
    assert (plan.column("input_scale") != 1).any()
    by_torch, *others = executed(plan, (3, 1, 4, 4), seed=seed)
    for other in others:
        np.testing.assert_allclose(by_torch, other, rtol=0, atol=2e-5)


# --- under guidance: the same line, told a class, in torch, as denoiser.onnx and inside the graph

LABELS = LabelColumn(("a", "b", "c"), droppable=True)


class Told(torch.nn.Module):
    """The line with a class. Its variance depends on the class too, and so shows which of the two halves it is of."""

    columns = (LABELS,)

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self._learned = learned
        self.batches: list[int] = []

    def forward(self, x, t, given):
        self.batches.append(len(x))
        t, label = (each.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype) for each in (t, given["label"]))
        mixed = 0.7 * x.roll(1, -1) - 0.4 * x + t / (t + 50) + 0.25 * label
        out = mixed / (1 + mixed.abs())
        shifted = x + 0.25 * label
        return torch.cat([out, shifted / (1 + shifted.abs())], 1) if self._learned else out


@script(default_opset=op)
def told_in_onnx(x: FLOAT, t: INT64, label: INT64):
    axes = op.Range(1, op.Size(op.Shape(x)), 1)
    time, number = op.Unsqueeze(op.Cast(t, to=FLOAT.dtype), axes), op.Unsqueeze(op.Cast(label, to=FLOAT.dtype), axes)
    rolled = op.Concat(op.Slice(x, [-1], [1000], [-1]), op.Slice(x, [0], [-1], [-1]), axis=-1)
    mixed = 0.7 * rolled - 0.4 * x + time / (time + 50.0) + 0.25 * number
    shifted = x + 0.25 * number
    return mixed / (1.0 + op.Abs(mixed)), shifted / (1.0 + op.Abs(shifted))


@functools.cache
def told_files(shape, learned):
    """A deploy directory's two models, for data of a shape."""
    halves = told_in_onnx.to_model_proto().graph
    names = [value.name for value in halves.output]
    last = make_node("Concat", names, ["out"], axis=1) if learned else make_node("Identity", names[:1], ["out"])
    inputs = [
        make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape]),
        make_tensor_value_info("t", TensorProto.INT64, ["N"]),
        make_tensor_value_info("label", TensorProto.INT64, ["N"]),
    ]
    out = make_tensor_value_info("out", TensorProto.FLOAT, ["N", shape[0] * (1 + learned), *shape[1:]])
    graph = make_graph([*halves.node, last], "told", inputs, [out])
    denoiser = make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)
    loop = sampler_model(denoiser, kind_of(shape), [LABELS])
    onnx.checker.check_model(loop, full_check=True)
    return denoiser.SerializeToString(), loop.SerializeToString()


@functools.cache
def told_sampler(shape, learned, in_graph):
    """The runtime on these files."""
    process = {"schedule": "linear", "timesteps": 200, "prediction": "epsilon"}
    process["variance"] = "learned_range" if learned else "fixed_small"
    channels = range(shape[0])
    kind = kind_of(shape)
    data = {"name": "line", "shape": kind.shape, "kind": kind.name, "classes": LABELS.classes}
    if kind.name != "images":
        data |= {"low": [-3.0 - c for c in channels], "high": [5.0 + c for c in channels]}
    with tempfile.TemporaryDirectory() as folder:
        for name, content in zip(("denoiser", "sampler"), told_files(shape, learned), strict=True):
            Path(folder, f"{name}.onnx").write_bytes(content)
        facts = {
            "format": 2,
            "name": "ddpm-line",
            "variant": "line",
            "shape": kind.shape,
            "process": process,
            "sampling": SamplingConfig().model_dump(),
            "condition": {"label": {"drop": 0.1}},
            "data": data,
        }
        write_json(Path(folder, "sampler.json"), facts)
        return runtime.Sampler(folder, providers=["CPUExecutionProvider"], in_graph=in_graph)


def guided(plan, shape, *, learned=False, seed=0):
    """What the three executors draw from the same noise and labels, and the batches that torch's network saw."""
    label = LABELS.draw(shape[0], seed=seed)
    noise = ImageNoise(seed, shape[0], shape[1:])
    x = torch.from_numpy(noise.draw())
    network = Told(learned)
    denoise = ClassifierFree(network, {"label": torch.from_numpy(label)})
    drawn = [sampling.sample(denoise, plan, x, lambda: torch.from_numpy(noise.draw())).numpy()]
    for in_graph in (False, True):
        noise = ImageNoise(seed, shape[0], shape[1:])
        sampler = told_sampler(shape[1:], learned, in_graph)
        drawn.append(sampler.run(plan, noise.draw(), noise.draw, {"label": label}))
    return drawn, network.batches


@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    variance=st.sampled_from(VARIANCES),
    prediction=st.sampled_from(PREDICTIONS),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(1, 30),
    dynamic_threshold=st.one_of(st.none(), st.floats(0.01, 1)),
    guidance_scale=st.sampled_from([0.0, 1.0, 1.5, 3.0]),
    guidance_interval=st.one_of(st.none(), st.tuples(st.floats(0, 0.5), st.floats(0.5, 1))),
    shape=st.sampled_from([(3, 1, 4, 4), (2, 3, 5), (4, 2), (1, 2, 2, 6)]),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=200)
def test_all_executors_draw_the_same_images_under_guidance(schedule, shape, seed, **options):
    plan = sampling_plan(Schedule.named(schedule, 200), **options)
    (by_torch, *others), batches = guided(plan, shape, learned=options["variance"] == "learned_range", seed=seed)
    for other in others:
        np.testing.assert_allclose(by_torch, other, rtol=0, atol=1e-5)
    weights = plan.column("guidance")
    assert batches == [shape[0] * (2 if weight else 1) for weight in weights], "a row of weight 0 is evaluated once"
    assert sum(batches) == shape[0] * plan.evaluations


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_scale_0_is_the_null_class_and_scale_1_the_class(sampler, learned):
    """In every executor. Of a learned variance scale 0 keeps the class's; without noise it plays no part."""
    schedule, shape = Schedule.named("cosine", 200), (3, 1, 4, 4)
    variance = "learned_range" if learned else "fixed_small"
    options = {"sampler": sampler, "steps": 12, "prediction": "x0", "variance": variance}
    label, null = np.array([0, 1, 2]), np.array([3, 3, 3])
    if learned and sampler == "ancestral":
        options["sampler"] = "ddim"
    for in_graph in (False, True):
        executor = told_sampler(shape[1:], learned, in_graph)

        def drawn(scale, given, executor=executor):
            noise = ImageNoise(5, shape[0], shape[1:])
            plan = sampling_plan(schedule, **options, guidance_scale=scale)
            return executor.run(plan, noise.draw(), noise.draw, {"label": given})

        np.testing.assert_allclose(drawn(0.0, label), drawn(1.0, null), atol=1e-5)
        assert np.abs(drawn(1.0, label) - drawn(1.0, null)).max() > 0.01
        assert np.abs(drawn(3.0, label) - drawn(1.0, label)).max() > 0.01


def test_the_loop_in_the_graph_evaluates_a_row_without_a_weight_once(tmp_path):
    """onnxruntime's own profile has the shapes that the network's nodes were run on."""
    shape, count = (1, 4, 4), 3
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(told_files(shape, False)[1], options, providers=["CPUExecutionProvider"])
    plan = sampling_plan(
        Schedule.named("linear", 200),
        sampler="ddim",
        steps=8,
        prediction="epsilon",
        variance="fixed_small",
        guidance_scale=2.0,
        guidance_interval=(0.3, 0.7),
    )
    weights = plan.column("guidance")
    assert 0 < np.count_nonzero(weights) < len(plan)
    x = ImageNoise(0, count, shape).draw()
    feed = {"x": x, "plan": plan.table.astype(np.float32), "timesteps": plan.timesteps}
    feed |= {"z": np.zeros((len(plan), 0, *shape), np.float32), "label": np.zeros(count, np.int64)}
    session.run(None, feed)
    rolls = [
        next(iter(event["args"]["output_type_shape"][0].values()))
        for event in json.loads(Path(session.end_profiling()).read_text())
        if event.get("args", {}).get("op_name") == "Concat"
        and event["name"].startswith("denoiser.")
        and event["name"].endswith("_kernel_time")
    ]
    assert [each[0] for each in rolls] == [count * (2 if weight else 1) for weight in weights]


# --- guided by another model: a weaker line, or the gradient of a classifier


def bounded(xp, x, t, label):
    """What a guide says, in numpy's, torch's or ONNX's terms of operations that every library rounds alike."""
    mixed = 0.5 * xp.roll(x, 1, -1) + 0.25 * x + t / (t + 20) - 0.5 * label
    return mixed / (1 + abs(mixed))


@script(default_opset=op)
def bounded_in_onnx(x: FLOAT, t: INT64, label: INT64):
    axes = op.Range(1, op.Size(op.Shape(x)), 1)
    time, number = op.Unsqueeze(op.Cast(t, to=FLOAT.dtype), axes), op.Unsqueeze(op.Cast(label, to=FLOAT.dtype), axes)
    rolled = op.Concat(op.Slice(x, [-1], [1000], [-1]), op.Slice(x, [0], [-1], [-1]), axis=-1)
    mixed = 0.5 * rolled + 0.25 * x + time / (time + 20.0) - 0.5 * number
    return mixed / (1.0 + op.Abs(mixed))


class Bounded:
    """In torch: the weaker model, and the classifier's gradient."""

    def __init__(self, label) -> None:
        self.evaluations, self._label = 0, label

    def __call__(self, x, t):
        self.evaluations += 1
        t, label = (each.reshape(-1, *[1] * (x.ndim - 1)).to(x.dtype) for each in (t, self._label))
        return bounded(torch, x, t, label)


class AlongBounded(ClassifierGradient):
    """Whatever the classifier, this is its gradient."""

    def __init__(self, denoise, classifier, label, process):
        super().__init__(denoise, classifier, label, process)
        self.gradient = classifier


def process_of(learned, prediction="epsilon"):
    variance = "learned_range" if learned else "fixed_small"
    return {"schedule": "linear", "timesteps": 200, "prediction": prediction, "variance": variance}


def torch_process(learned, prediction):
    schedule = Schedule.named("linear", 200)
    return GaussianProcess(schedule, prediction=prediction, variance=process_of(learned)["variance"])


def guide_model(kind, shape, learned, prediction):
    """guide.onnx of the bounded line."""
    line = bounded_in_onnx.to_model_proto().graph
    name = "gradient" if kind == "classifier" else "out"
    line.node[-1].output[0] = name
    inputs = [
        make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape]),
        make_tensor_value_info("t", TensorProto.INT64, ["N"]),
        make_tensor_value_info("label", TensorProto.INT64, ["N"]),
    ]
    out = make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
    graph = make_graph(line.node, "guide", inputs, [out])
    model = make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)
    if kind == "classifier":
        process = torch_process(learned, prediction)
        add_scale(model, (process.noise**2 / (process.signal * process.x0_from_out)).numpy())
    return model


@functools.cache
def guided_sampler(kind, conditional, shape, learned, prediction, in_graph):
    """The runtime on a deploy directory with a guide."""
    if conditional:
        denoiser, columns = onnx.load_from_string(told_files(shape, learned)[0]), [LABELS]
    else:
        denoiser, columns = line_in_onnx(shape, learned), [LABELS]
    guide, codec = guide_model(kind, shape, learned, prediction), kind_of(shape)
    loop = sampler_model(denoiser, codec, columns, guide)
    onnx.checker.check_model(loop, full_check=True)
    channels, classes = range(shape[0]), {"classes": LABELS.classes}
    data = {"name": "line", "shape": codec.shape, "kind": codec.name, **classes}
    if codec.name != "images":
        data |= {"low": [-3.0 - c for c in channels], "high": [5.0 + c for c in channels]}
    facts = {
        "format": 2,
        "name": "ddpm-line",
        "variant": "line",
        "shape": codec.shape,
        "process": process_of(learned, prediction),
        "sampling": SamplingConfig(guide="models/guide").model_dump(),
        "condition": {"label": {"drop": 0}} if conditional else {},
        "data": data,
        "guide": {"kind": kind, "variant": "guide", "condition": {"label": {"drop": 0}}, "data": classes},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, model in (("denoiser", denoiser), ("guide", guide), ("sampler", loop)):
            onnx.save(model, Path(folder, f"{name}.onnx"))
        write_json(Path(folder, "sampler.json"), facts)
        sampler = runtime.Sampler(folder, providers=["CPUExecutionProvider"], in_graph=in_graph)
        _ = (sampler._loop, sampler._denoiser, sampler._guide_session)  # opened while the files are there
        return sampler


@given(
    kind=st.sampled_from(["classifier", "model"]),
    conditional=st.booleans(),
    sampler=st.sampled_from(["ancestral", *sorted(SAMPLERS)]),
    learned=st.booleans(),
    prediction=st.sampled_from(PREDICTIONS),
    steps=st.integers(1, 30),
    dynamic_threshold=st.one_of(st.none(), st.floats(0.01, 1)),
    guidance_scale=st.sampled_from([0.0, 1.0, 1.5, 3.0]),
    guidance_interval=st.one_of(st.none(), st.tuples(st.floats(0, 0.5), st.floats(0.5, 1))),
    shape=st.sampled_from([(3, 1, 4, 4), (2, 3, 5)]),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=100)
def test_all_executors_draw_the_same_with_a_guide(kind, conditional, learned, prediction, shape, seed, **options):
    """Under ε̂ and mean-shift rows, and rows without a weight, which ask the guide nothing."""
    conditional = conditional or kind == "model"
    process = process_of(learned, prediction)
    samplers = [guided_sampler(kind, conditional, shape[1:], learned, prediction, place) for place in (False, True)]
    if options["guidance_scale"] == samplers[0].unguided_scale:
        del options["guidance_interval"]  # refused where it would decide nothing
    plan = samplers[0].plan(**options)
    label = LABELS.draw(shape[0], seed=seed)
    told = torch.from_numpy(label)
    line = bind(Told(learned), {"label": told}) if conditional else denoiser(torch, learned)
    guide = Bounded(told)
    if kind == "classifier":
        denoise = AlongBounded(line, guide, told, torch_process(learned, prediction))
    else:
        denoise = Autoguidance(line, guide)
    noise = ImageNoise(seed, shape[0], shape[1:])
    x = torch.from_numpy(noise.draw())
    by_torch = sampling.sample(denoise, plan, x, lambda: torch.from_numpy(noise.draw())).numpy()
    for executor in samplers:
        assert executor.by_classifier == (kind == "classifier")
        noise = ImageNoise(seed, shape[0], shape[1:])
        drawn = executor.run(plan, noise.draw(), noise.draw, {"label": label})
        np.testing.assert_allclose(by_torch, drawn, rtol=1e-5, atol=1e-5)
    assert guide.evaluations == np.count_nonzero(plan.column("guidance"))
    assert (plan.column("mean_shift") != 0).any() == (
        kind == "classifier" and options["sampler"] == "ancestral" and plan.column("guidance").any()
    )
    assert process == executor.facts["process"]


@pytest.mark.parametrize("kind", ["classifier", "model"])
def test_the_graph_asks_the_guide_only_in_rows_with_a_weight(tmp_path, kind):
    """onnxruntime's own profile has the operators that were run; the guide has one Abs."""
    shape = (1, 4, 4)
    told = onnx.load_from_string(told_files(shape, False)[0])
    loop = sampler_model(told, kind_of(shape), [LABELS], guide_model(kind, shape, False, "epsilon"))
    sampler = guided_sampler(kind, True, shape, False, "epsilon", True)

    def magnitudes(plan):
        options = onnxruntime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = onnxruntime.InferenceSession(loop.SerializeToString(), options, providers=["CPUExecutionProvider"])
        feed = {"x": ImageNoise(0, 3, shape).draw(), "plan": plan.table.astype(np.float32), "timesteps": plan.timesteps}
        session.run(None, {**feed, "z": np.zeros((len(plan), 0, *shape), np.float32), "label": np.zeros(3, np.int64)})
        events = json.loads(Path(session.end_profiling()).read_text())
        return sum(event.get("args", {}).get("op_name") == "Abs" for event in events)

    few = {"sampler": "ddim", "steps": 8}
    plain = sampler.plan(**few, guidance_scale=sampler.unguided_scale)
    guided = sampler.plan(**few, guidance_scale=2.0, guidance_interval=(0.3, 0.7))
    weights = np.count_nonzero(guided.column("guidance"))
    assert 0 < weights < len(guided)
    assert magnitudes(guided) - magnitudes(plain) == weights


@given(st.sampled_from(PREDICTIONS), st.sampled_from(sorted(SPACINGS)), st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_all_executors_invert_alike(prediction, spacing, steps):
    plan = inversion_plan(Schedule.named("linear", 200), steps=steps, prediction=prediction, spacing=spacing)
    assert len(plan) == steps
    assert np.all(np.diff(plan.timesteps) > 0)
    by_torch, *others = executed(plan, (3, 1, 4, 4))
    for other in others:
        np.testing.assert_allclose(by_torch, other, rtol=1e-5, atol=1e-5)


@given(
    sampler=st.sampled_from(sorted(SAMPLERS)),
    schedule=st.sampled_from(sorted(SCHEDULES)),
    spacing=st.sampled_from(sorted(SPACINGS)),
    timesteps=st.integers(1, 300),
    data=st.data(),
)
@settings(deadline=None)
def test_every_plan_ends_on_its_last_x0_and_keeps_a_constant_image(sampler, schedule, spacing, timesteps, data):
    """Whatever the sampler: with x̂_0 always c and no noise, x stays on √ᾱ c + √(1−ᾱ) ε, and ends on c."""
    steps = data.draw(st.integers(1, timesteps))
    full = Schedule.named(schedule, timesteps)
    options = {"steps": steps, "spacing": spacing, "prediction": "x0", "variance": "fixed_small"}
    plan = sampling_plan(full, sampler=sampler, **options)
    assert np.isfinite(plan.table).all()
    assert plan.column("to_noise")[-1] == 0
    image, epsilon = 0.25, -0.7
    alpha_bar = np.append(full.alphas_cumprod[plan.timesteps], 1.0)
    x = torch.full((1, 1), float(np.sqrt(alpha_bar[0]) * image + np.sqrt(1 - alpha_bar[0]) * epsilon)).double()
    denoise = lambda x, t: torch.full_like(x, image)  # noqa: E731
    states = [state.item() for state, _ in sampling.trajectory(denoise, plan, x, lambda: torch.zeros_like(x))]
    assert states[-1] == pytest.approx(image, abs=1e-12)
    noisy = ("ancestral", "dpmpp_2m_sde", "euler_ancestral", "euler_maruyama", "langevin")
    if sampler not in noisy:  # which move ε̂'s share into its noise
        expected = np.sqrt(alpha_bar[1:]) * image + np.sqrt(1 - alpha_bar[1:]) * epsilon
        np.testing.assert_allclose(states, expected, atol=1e-6)


def test_a_plan_costs_only_what_its_sampler_uses():
    """The columns that an executor skips are 0: one x0 kept for 2M, two for UniPC, no exponential but for a learned
    variance."""
    used = {}
    for sampler in SAMPLERS:
        for variance in VARIANCES:
            plan = sampling_plan(
                Schedule.named("linear", 100), sampler=sampler, steps=10, prediction="v", variance=variance
            )
            used[sampler, variance] = {name for name in COLUMNS[6:-1] if plan.column(name).any()}
            assert (plan.column("input_scale") == 1).all(), "a variance-preserving x is not scaled"
    assert used["ancestral", "fixed_small"] == used["ancestral", "fixed_large"] == {"to_noise"}
    assert used["ancestral", "learned_range"] == {"to_noise", "log_noise_from_out"}
    assert used["ddim", "learned_range"] == set()
    assert used["dpmpp_2m", "learned_range"] == used["dpmpp_2s", "fixed_small"] == {"to_prev"}
    assert used["dpmpp_2m_sde", "fixed_large"] == {"to_prev", "to_noise"}
    assert used["unipc", "fixed_small"] == {"to_prev", "to_prev2"}
    assert used["euler", "fixed_small"] == set()
    assert used["heun", "fixed_small"] == {"to_prev"}
    assert used["langevin", "fixed_small"] == used["euler_maruyama", "fixed_large"] == {"to_noise"}


def test_a_learned_variance_reaches_both_ends_of_its_range():
    """v = 1 says β_t and v = −1 says β̃_t, in every row."""
    schedule = Schedule.named("cosine", 300)
    plans = {
        variance: sampling_plan(schedule, sampler="ancestral", steps=20, prediction="epsilon", variance=variance)
        for variance in VARIANCES
    }
    learned = plans["learned_range"]
    for end, variance in ((1.0, "fixed_large"), (-1.0, "fixed_small")):
        sigma = learned.column("to_noise") * np.exp(end * learned.column("log_noise_from_out"))
        np.testing.assert_allclose(sigma, plans[variance].column("to_noise"), rtol=1e-12)


def test_ddims_over_dispersed_sigma_is_the_ancestral_sampler_with_the_large_variance():
    """Song et al. 2021, appendix D.3: the mean of η = 1 and the noise σ̂ = √(1 − ᾱ/ᾱ')."""
    options = {"steps": 20, "prediction": "epsilon"}
    schedule = Schedule.named("linear", 1000)
    hat = sampling_plan(schedule, sampler="ancestral", variance="fixed_large", **options)
    ddpm = sampling_plan(schedule, sampler="ddim", eta=1.0, variance="fixed_small", **options)
    for name in ("to_x0", "to_x"):
        np.testing.assert_allclose(hat.column(name), ddpm.column(name), atol=1e-12)
    alpha_bar = schedule.alphas_cumprod[hat.timesteps]
    np.testing.assert_allclose(hat.column("to_noise")[:-1], np.sqrt(1 - alpha_bar[:-1] / alpha_bar[1:]), rtol=1e-10)


def test_dynamic_thresholding_scales_down_what_clipping_cuts_off():
    options = {"sampler": "ddim", "steps": 1, "prediction": "x0", "variance": "fixed_small"}
    plan = sampling_plan(Schedule.named("linear", 10), dynamic_threshold=1.0, **options)
    image = torch.tensor([[0.5, -1.0, 2.0, 4.0], [0.1, 0.2, -0.3, 0.4]])
    held = sampling.sample(lambda x, t: image.clone(), plan, torch.zeros(2, 4), lambda: image)
    torch.testing.assert_close(held, torch.tensor([[0.125, -0.25, 0.5, 1.0], [0.1, 0.2, -0.3, 0.4]]))


PROCESS = {"schedule": "linear", "timesteps": 100, "prediction": "epsilon", "variance": "fixed_small"}


def test_a_models_plan_takes_its_variance_from_the_process_unless_told_otherwise():
    sampling_options = SamplingConfig(sampler="ancestral", steps=10).model_dump()
    small = plan_for(PROCESS, sampling_options)
    large = plan_for(PROCESS, sampling_options, variance="fixed_large")
    also_large = plan_for(PROCESS, {**sampling_options, "variance": "fixed_large"})
    older = plan_for(PROCESS, {"sampler": "ancestral", "steps": 10, "eta": 0.0, "spacing": "trailing", "clip": True})
    np.testing.assert_array_equal(large.table, also_large.table)
    np.testing.assert_array_equal(small.table, older.table)
    assert np.all(large.column("to_noise")[:-1] > small.column("to_noise")[:-1])
    with pytest.raises(ValueError, match="learned_range, but the network was trained with fixed_small"):
        plan_for(PROCESS, sampling_options, variance="learned_range")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_plans_are_equal_where_the_choices_that_decide_them_are_and_nowhere_else(sampler):
    process = {**PROCESS, "variance": "learned_range"}
    table_of, choices_of = {}, {}
    for variance, eta, spacing, clip, dynamic in itertools.product(
        [None, *VARIANCES], [0.0, 0.5], ["trailing", "linspace"], [True, False], [None, 0.9]
    ):
        options = SamplingConfig(
            sampler=sampler, steps=10, variance=variance, eta=eta, spacing=spacing, clip=clip, dynamic_threshold=dynamic
        ).model_dump()
        plan = plan_for(process, options)
        choices = tuple(decisive_choices(options, variance=process["variance"]).items())
        table = (plan.timesteps.tobytes(), plan.table.tobytes())
        assert table_of.setdefault(choices, table) == table
        assert choices_of.setdefault(table, choices) == choices


@pytest.mark.parametrize("quantile", [0.0, 1.5])
def test_impossible_thresholds(quantile):
    with pytest.raises(ValueError, match=r"dynamic_threshold must be in \(0, 1\]"):
        plan_for(PROCESS, {"sampler": "ddim", "steps": 5}, dynamic_threshold=quantile)


def test_the_configuration_knows_every_sampler_and_spacing():
    schema = SamplingConfig.model_json_schema()["properties"]
    assert set(schema["sampler"]["enum"]) == set(SAMPLERS)
    assert set(schema["spacing"]["anyOf"][0]["enum"]) == {*SPACINGS, *NOISE_SPACINGS}
    assert set(schema["variance"]["anyOf"][0]["enum"]) == set(VARIANCES)
