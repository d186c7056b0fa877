"""The proof that the exported files are the trained model: all draw from the same noise over a whole sampling run."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddpm.codecs.latent import Latent
from ddpm.conditioning.columns import Column, Derived, Given, PromptColumn, derived, derived_draws, needed, stored
from ddpm.conditioning.control_weights import CONTROL_PLAN, WEIGHTS
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.deploy.runtime import CPU, Float32, Precision, Sampler, import_onnxruntime, open_exported
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import SamplingPlan
from ddpm.drawer import Drawer
from ddpm.drawer.parts import Part, data_of
from ddpm.export.encoders import encoder_differences
from ddpm.export.files import onnx_sha256
from ddpm.export.text_to_image import beside
from ddpm.model import Model
from ddpm.nets.autoencoder import Frozen

Draw = Callable[[], Float32]

CHAIN_LEVELS = 2  # of 255, by which the images of an exported cascade may differ
GUIDANCE, CONTROL = 2.0, 1.5  # of the run, where a model can be guided, and has a control


def measure_parity(
    model: Model, directory: Path, *, samples: int, steps: int, tolerances: dict[Precision, float]
) -> dict[str, Any]:
    """Hold every exported file against the trained model on the same noise over full runs: by DDIM, or where the
    network has a variance to be wrong about, by the ancestral sampler. With a classifier as its guide by both, since
    it guides them in different ways.

    Args:
        tolerances: largest absolute difference allowed, in [−1, 1], of each precision that was exported.

    Returns:
        What parity.json says: `files`, of each the largest absolute difference and whether it is allowed; `passed`,
        whether all are; and the float32 files' difference and tolerance by themselves.
    """
    # CPU against CPU: what is compared is the export, not two devices' arithmetic.
    model = on_cpu(model)
    plans, prompts = plans_of(model, steps), raw_prompts(model.columns, samples)
    given = _values(model, samples, next(iter(plans.values())), prompts)

    def drawn(run: Callable[[SamplingPlan, Float32, Draw], Float32]) -> list[Float32]:
        draws = [ImageNoise(0, samples, model.codec.network_shape).draw for _ in plans]
        return [run(plan, draw(), draw) for plan, draw in zip(plans.values(), draws, strict=True)]

    trained = drawn(partial(by_torch, model, given=given))
    files: dict[str, dict[str, Any]] = {}
    for precision, tolerance in tolerances.items():
        for exported in _executors(directory, precision, prompts):
            theirs = drawn(partial(exported.run, given=given))
            difference = float(max(np.abs(a - b).max() for a, b in zip(trained, theirs, strict=True)))
            files[exported.file.name] = verdict(exported.file, difference, tolerance)
    for name, difference in encoder_differences(model, directory, samples).items():
        files[name] = verdict(directory / name, difference, tolerances["fp32"])
    if model.autoencoder is not None:
        files["decoder.onnx"] = _decoder_verdict(model, directory, trained[0], tolerances["fp32"])
    return {
        "max_abs_difference": max(files[name]["max_abs_difference"] for name in ("denoiser.onnx", "sampler.onnx")),
        "tolerance": tolerances["fp32"],
        "passed": all(file["passed"] for file in files.values()),
        "samples": samples,
        "sampler": " and ".join(plans),
        "steps": steps,
        "files": files,
    }


def _decoder_verdict(model: Model, directory: Path, x: Float32, tolerance: float) -> dict[str, Any]:
    """Of the pictures that both decoders make of the same latents.

    Args:
        x: that the trained model drew, [N, Z, h, w].
    """
    assert isinstance(model.codec, Latent)
    exported = Sampler(directory, providers=[CPU]).codec
    assert isinstance(exported, Latent)
    ours, theirs = (codec.to_pictures(x) for codec in (model.codec, exported))
    return verdict(directory / "decoder.onnx", float(np.abs(ours - theirs).max()), tolerance)


def chain_parity(
    cascade: Drawer, directory: Path, links: Mapping[str, Mapping[str, Any]], *, samples: int
) -> dict[str, Any]:
    """Hold an exported cascade against the trained one, by the plans of all links and the same noise.

    What is drawn is compared, not x. An image is rounded to 256 levels before the next link sees it, where a difference
    of any size can become one of a level; so both get what the exported links before them draw.

    Args:
        directory: of the exported one, with its links and cascade.json.
        links: what `measure_parity` says of each link.

    Returns:
        What parity.json says: of the links together what `measure_parity` says of a model, and `chain`.
    """
    exported = open_exported(directory, providers=[CPU], in_graph=False)
    part, drawn, levels = cascade.part(samples, seed=0), dict[str, NDArray[Any]](), 0
    for name in cascade.links:
        trained, drawn[name] = (_drawn(each, name, part, drawn) for each in (cascade, exported))
        levels = max(levels, _levels_between(trained, drawn[name]))
    files = {f"{link}/{name}": file for link, parity in links.items() for name, file in parity["files"].items()}
    worst = max(links.values(), key=lambda parity: parity["max_abs_difference"])
    return {
        **worst,
        "passed": all(file["passed"] for file in files.values()) and levels <= CHAIN_LEVELS,
        "files": files,
        "chain": {
            "max_level_difference": levels,
            "tolerance": CHAIN_LEVELS,
            "passed": levels <= CHAIN_LEVELS,
            "samples": samples,
        },
    }


def _levels_between(data: NDArray[Any], other: NDArray[Any]) -> int:
    """The largest difference of two arrays in levels: those of pixels, or of other numbers 1/255 of their range."""
    wide = data.astype(np.float64)
    level = 1.0 if data.dtype == np.uint8 else np.ptp(wide) / 255 or 1.0
    return math.ceil(np.abs(wide - other).max() / level - 0.5)


def _drawn(drawer: Drawer, link: str, part: Part, drawn: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """What a link draws of a part by its own plan; the arguments are those of `Drawer.part_of`."""
    plan = drawer.plans(drawer.plan())[link]
    (found,) = drawer.links[link].draw_parts(plan, [drawer.part_of(link, part, drawn)])
    return data_of(found)


def by_torch(model: Model, plan: SamplingPlan, x: Float32, draw: Draw, given: Given) -> Float32:
    """`Sampler.run` of a trained model on the CPU."""
    return model.run(plan, torch.from_numpy(x), lambda: torch.from_numpy(draw()), given).numpy()


def verdict(file: Path, difference: float, tolerance: float) -> dict[str, Any]:
    """What parity.json says of a file."""
    return {
        "max_abs_difference": difference,
        "tolerance": tolerance,
        "passed": difference <= tolerance,
        "sha256": onnx_sha256(file),
    }


def _values(model: Model, count: int, plan: SamplingPlan, prompts: list[str] | None) -> dict[str, NDArray[Any]]:
    """A value of each column. Those that training derives from images are derived from images that the model draws:
    those in turn are drawn from what is derived of noise.

    Args:
        prompts: for the column of prompts, if there is one.
    """
    beside: dict[str, Any] = {column.name: _noise_picture(column, count) for column in stored(needed(model.columns))}
    beside |= {each.name: each.example(count) for each in model.columns if isinstance(each, EmbeddingColumn)}
    if not any(isinstance(column, Derived) for column in model.columns):
        return model.given(count, prompt=prompts, **beside)
    noise, draws, pixels = np.random.default_rng(0), derived_draws(model.columns), model.codec.pixels
    x0 = torch.from_numpy(ImageNoise(0, count, pixels.network_shape).draw()).clamp(-1, 1)
    for _ in range(2):
        uniform = torch.from_numpy(noise.random((count, draws), np.float32))
        values: dict[str, Any] = {name: value.numpy() for name, value in derived(model.columns, x0, uniform).items()}
        given = model.given(count, prompt=prompts, **values, **beside)
        x0 = pixels.encode(torch.from_numpy(model.draw(count, plan, seed=0, given=given)))
    return given


def _noise_picture(column: Column, count: int) -> NDArray[np.uint8]:
    """Of a column that the data hold, which nothing is derived for."""
    return np.random.default_rng(1).integers(0, 256, (count, *column.shape), np.uint8)


class _TextToImage:
    """text_to_image.onnx with prompts, as an executor of plans like `Sampler`."""

    def __init__(self, file: Path, prompts: list[str]) -> None:
        self.file = file
        self._prompts = np.array(prompts, object)
        self._session = open_text_to_image(file)

    def run(self, plan: SamplingPlan, x: Float32, draw: Draw, given: Given) -> Float32:
        given = {name: values for name, values in given.items() if name != WEIGHTS}  # the rows have them
        (x0,) = self._session.run(["x0"], {**given, "prompt": self._prompts, **inputs_of(plan, x, draw)})
        return x0


def open_text_to_image(file: Path) -> Any:
    """Its session on the CPU."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of inputs with a default
    return onnxruntime.InferenceSession(file, options, providers=[CPU])


def inputs_of(plan: SamplingPlan, x: Float32, draw: Draw) -> dict[str, NDArray[Any]]:
    """A plan and its noise as inputs of a loop in a graph."""
    noisy = plan.column("to_noise") != 0
    z = [draw() if row else np.zeros_like(x) for row in noisy] if noisy.any() else []
    inputs: dict[str, NDArray[Any]] = {"x": x, "plan": plan.table.astype(np.float32), "timesteps": plan.told}
    inputs |= {} if plan.control is None else {CONTROL_PLAN: plan.control_rows}
    return inputs | ({"z": np.stack(z)} if z else {})


def _executors(directory: Path, precision: Precision, prompts: list[str] | None) -> Iterator[Sampler | _TextToImage]:
    """The exported files of a precision."""
    for in_graph in (False, True):
        exported = Sampler(directory, providers=[CPU], precision=precision, in_graph=in_graph)
        yield exported
    file = beside(exported.file)
    if prompts is not None and file.exists():
        yield _TextToImage(file, prompts)


def raw_prompts(columns: Sequence[Column], count: int) -> list[str] | None:
    """As people write them: a caption in capitals, one with a full stop, none, one with a sign that no caption has, and
    one with more words than are kept; None of a model without prompts.
    """
    column = next((column for column in columns if isinstance(column, PromptColumn)), None)
    if column is None:
        return None
    long = " ".join(["{0}"] * (1 + column.tokenizer.length))
    ways = itertools.cycle(("{1}", "{0}.", "", "🙂 {0}", long))
    captions = itertools.islice(itertools.cycle(column.captions), count)
    return [next(ways).format(caption, caption.upper()) for caption in captions]


def on_cpu(model: Model) -> Model:
    """A copy, for evaluation."""
    guide = None if model.guide is None else on_cpu(model.guide)
    autoencoder = model.autoencoder and Frozen(copy.deepcopy(model.autoencoder.network).to("cpu"))
    network = copy.deepcopy(model.network).to("cpu").eval()
    return replace(model, network=network, guide=guide, autoencoder=autoencoder)


def plans_of(model: Model, steps: int) -> dict[str, SamplingPlan]:
    """What is run, by the names of the samplers."""
    choices: dict[str, dict[str, Any]] = {}
    learned = model.card.config.process.variance == "learned_range"
    if model.by_classifier or not learned:
        choices["ddim"] = {"eta": 0.0}
    if model.by_classifier or learned:
        choices["ancestral"] = {"variance": "learned_range"} if learned else {}
    # Rows with guidance and with a control, and rows without, which take other ways through the graph.
    asked: dict[str, Any] = {"guidance_scale": GUIDANCE, "guidance_interval": (0.0, 0.5)} if model.guidable else {}
    if any(column.name == WEIGHTS for column in model.columns):
        asked |= {"control_scale": CONTROL, "control_interval": (0.3, 1.0), "guess": model.guidable}
    return {name: model.plan(sampler=name, steps=steps, **own, **asked) for name, own in choices.items()}
