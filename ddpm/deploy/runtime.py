"""The sampler that ships: numpy and onnxruntime, and the same plan tables that torch runs.

A deploy directory holds `denoiser.onnx` (one evaluation of the network), `guide.onnx` if another model guides it,
`decoder.onnx` of a model of latents, `sampler.onnx` (the networks and the loop around them), perhaps all but the
decoder in fp16 too, and `sampler.json` (the process, the default plan, the image's shape).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.latent import Latent
from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Column, Given, PromptColumn, blank, unconditional, united
from ddpm.conditioning.control_weights import CONTROL_PLAN, WEIGHTS, Steered, weights_of
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.conditioning.pictures import known_part
from ddpm.deploy.encoders import ExportedSpace, ExportedTexts, opener
from ddpm.deploy.facts import GuideFacts, read_facts
from ddpm.deploy.guidance import Autoguidance, Bound, ClassifierFree, Float32, Gradient
from ddpm.diffusion import executor
from ddpm.diffusion.known import Known
from ddpm.diffusion.plans import Row, SamplingPlan
from ddpm.drawer import Drawer
from ddpm.drawer.cascade import Cascade, open_cascade
from ddpm.drawer.parts import Drawn, Part
from ddpm.errors import NotFiniteError, UserError
from ddpm.layout import CASCADE

Precision = Literal["fp32", "fp16"]

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
# Of the z that sampler.onnx is handed at once; more of a plan is run in pieces.
NOISE_BYTES = 2**26
MAX_IMAGES = 1024  # of one request to a service, unless its settings say otherwise


class Sampler(Drawer):
    """An exported model, ready to draw images."""

    def __init__(
        self,
        directory: Path | str,
        *,
        providers: list[str] | None = None,
        threads: int = 0,
        precision: Precision = "fp32",
        in_graph: bool | None = None,
        memory: int = 2**31,
    ) -> None:
        """
        Args:
            directory: what `ddpm export` wrote.
            providers: onnxruntime's execution providers, best first; None: CUDA where there is a device, else the CPU.
            threads: of the CPU provider; 0: one a core.
            precision: fp16 where `export.fp16` made it, for GPUs.
            in_graph: whether the loop runs inside onnxruntime, as sampler.onnx; None: on a GPU, where x then stays.
            memory: about as many bytes as a batch's activations may take; a larger batch is split.

        Raises:
            UserError: a file is missing or damaged, or onnxruntime has no such provider.
        """
        self._directory = Path(directory)
        self.plan_source = "sampler.json"
        self._threads, self._precision = threads, precision
        self.facts: dict[str, Any]
        self._own: tuple[Column, ...]
        self._guide: GuideFacts | None
        self.facts, codec, self._own, self._guide = read_facts(self._directory / "sampler.json")
        self._codec: Codec = codec.opened(_Decoder(self)) if isinstance(codec, Latent) else codec
        self.shape: tuple[int, ...] = self._codec.shape
        self._largest_batch: int = max(1, memory // self.facts.get("activation_bytes", 1))
        self._providers = providers or available_providers()
        if in_graph is None:  # exports of before there was a loop have none
            in_graph = self._providers[0] != CPU and self._file("sampler").exists()
        self.in_graph: bool = in_graph
        self.file: Path = self._file("sampler" if in_graph else "denoiser")
        session = self._loop if in_graph else self._denoiser
        self.providers: list[str] = session.get_providers()

    @cached_property
    def _denoiser(self) -> Any:
        return self._open("denoiser")

    @cached_property
    def _guide_session(self) -> Any:
        return self._open("guide")

    @cached_property
    def _loop(self) -> Any:
        return self._open("sampler")

    @cached_property
    def decoder(self) -> Any:
        """The session of the decoder of a model of latents: float32 in every precision."""
        return self._open("decoder")

    def _file(self, name: str) -> Path:
        whole = self._precision == "fp32" or name == "decoder"
        return self._directory / (f"{name}.onnx" if whole else f"{name}.{self._precision}.onnx")

    def _open(self, name: str) -> Any:
        """The session of one of the directory's files."""
        onnxruntime = import_onnxruntime()
        path = self._file(name)
        if not path.exists():
            where = "" if path.suffixes == [".onnx"] else f" where `export.{self._precision}` is true"
            raise UserError(f"{path} is missing; `ddpm export` makes it{where}")
        unknown = set(self._providers) - set(onnxruntime.get_available_providers())
        if unknown:
            there = ", ".join(onnxruntime.get_available_providers())
            raise UserError(f"onnxruntime has no {', '.join(sorted(unknown))} here; it has: {there}")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = 3
        try:
            return onnxruntime.InferenceSession(path, options, providers=_described(self._providers))
        except Exception as error:  # onnxruntime's own exception types are not public
            raise UserError(f"{path} does not load: {error}") from None

    def open_files(self) -> None:
        """Open the files that are otherwise opened when they are first needed, and try the encoders: what is missing is
        known before anyone asks for it, and the directory may be gone afterwards.

        Raises:
            UserError: a file is missing or damaged.
        """
        _ = self._denoiser  # beside sampler.onnx too, which cannot draw all that can be asked for
        if self._guide is not None:
            _ = self._guide_session
        if isinstance(self._codec, Latent):
            _ = self.decoder
        if self.encoder is not None:
            self.encoder.try_out()
        if self.candidates > 1:
            (prompt,) = (column for column in self._own if column.name == PromptColumn.name)
            self._texts.try_out(*prompt.shape, *self.shape)

    @cached_property
    def encoder(self) -> ExportedSpace | None:
        data = self.facts.get("data", {})
        if all(column.name != EmbeddingColumn.name for column in self._own):
            return None
        try:
            return ExportedSpace(opener(self._directory, open_on_cpu), data)
        except ValueError as error:
            raise UserError(f"{self._directory / 'sampler.json'}: {error}") from None

    @cached_property
    def _texts(self) -> ExportedTexts:
        return ExportedTexts(opener(self._directory, open_on_cpu))

    def scores(self, x: Float32, given: Given) -> Float32:
        """As of `Model`."""
        return (self.codec.decode(x) * self._texts.tokens(given[PromptColumn.name])).sum(1)

    @property
    def where(self) -> str:
        """What it runs on, in a line."""
        threads = f", {self._threads} threads" if self._threads else ""
        version = import_onnxruntime().__version__
        return f"{self.file.name} on {' then '.join(self.providers)} (onnxruntime {version}{threads})"

    @property
    def choices(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.facts["process"], self.facts["sampling"]

    @property
    def codec(self) -> Codec:
        return self._codec

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those that its network is conditioned on, and those that a classifier or a CLIP guides it by."""
        return united(self._guide.columns if self._guide else (), self._own)

    @property
    def variant(self) -> str:
        return str(self.facts.get("variant", ""))

    @property
    def fingerprint(self) -> str:
        return str(self.facts.get("training", {}).get("fingerprint", ""))

    @property
    def embedded_by(self) -> str | None:
        encoder = self.facts.get("data", {}).get("encoder") or {}
        return encoder.get("sha256")

    @property
    def weights(self) -> str:
        return str(self.facts.get("training", {}).get("weights", "ema"))

    @property
    def attribution(self) -> str | None:
        return self.facts.get("data", {}).get("attribution")

    @property
    def guidable(self) -> bool:
        return self._guide is not None or any(column.null is not None for column in self._own)

    @property
    def by_classifier(self) -> bool:
        return self._guide is not None and self._guide.by_gradient

    @property
    def guide_mark(self) -> str | None:
        guide = self.facts.get("guide")
        return guide.get("mark") if guide and self.facts["sampling"].get("guide") else None

    @property
    def largest_batch(self) -> int:
        return self._largest_batch

    @largest_batch.setter
    def largest_batch(self, count: int) -> None:
        self._largest_batch = count

    def sampled_by(self, sampling: Mapping[str, Any]) -> Sampler:
        """The same network with another plan of its own, `sampling` as in params.yaml; without its guide if that
        names none.

        Raises:
            UserError: it names another guide than the one that was exported.
        """
        guide, own = sampling.get("guide"), self.facts["sampling"].get("guide")
        if guide not in (None, own):
            raise UserError(f"sampling.guide is {guide}, but {self._directory} was exported with {own or 'no guide'}")
        other = copy.copy(self)
        other.facts = {**self.facts, "sampling": dict(sampling)}
        other.plan_source = "the caller"
        if guide is None and own is not None:
            # denoiser.onnx alone is the model without its guide.
            other._guide, other.in_graph = None, False
        return other

    def draw_parts(self, plan: SamplingPlan, parts: Sequence[Part]) -> list[Drawn]:
        return self._in_one_run(parts, lambda draw, given: self.run(plan, draw(), draw, given))

    def decode(self, x: Float32) -> NDArray[Any]:
        try:
            return super().decode(x)
        except NotFiniteError as error:
            if self._precision == "fp32":
                raise
            raise NotFiniteError(f"{error}; {self._precision} overflows with this model: use fp32") from None

    def run(self, plan: SamplingPlan, x: Float32, draw: Callable[[], Float32], given: Given | None = None) -> Float32:
        """Run a plan from x_T [N, C, H, W] to x_0 in about [−1, 1].

        Args:
            draw: gives the z of each row that adds noise.
            given: a value of each column, [N, ...], and of `image` and `mask` if a part is known; None: the null value
                of each column, or 0.
        """
        if given is None:
            given = blank(self.columns, len(x))
        columns, known = {column.name for column in self.columns}, known_part(given)
        # sampler.onnx puts back what is known of models alone that were trained for it, and knows no way back.
        complete = (given.keys() <= columns or known is None) and plan.known is None
        if self.in_graph and complete and _fits_the_graph(plan, x.nbytes):
            return self._run_in_graph(plan, x, draw, {name: given[name] for name in columns})
        return run(self._bound(given), plan, x, draw, known)

    def denoise(self, x: Float32, t: NDArray[Any], given: Given | None = None) -> Float32:
        """One evaluation of the network: its input x [N, C, H, W], t [N], given as for `run`."""
        return self._bound(blank(self.columns, len(x)) if given is None else given)(x, t)

    def _bound(self, given: Given) -> ClassifierFree | Autoguidance | Gradient | Steered:
        """The networks with their conditions, as torch's `Model.denoiser`."""
        if WEIGHTS not in given:
            return self._guided(given)
        return Steered(lambda weights: self._guided({**given, **weights_of(given, weights)}))

    def _guided(self, given: Given) -> ClassifierFree | Autoguidance | Gradient:
        """`_bound`, with the control's weights as they are given."""
        own = {column.name: given[column.name] for column in self._own}
        if self._guide is None:
            return ClassifierFree(self._denoiser, own, unconditional(self._own, own))
        denoise = Bound(self._denoiser, own)
        guiding = {column.name: given[column.name] for column in self._guide.columns}
        if not self._guide.by_gradient:
            return Autoguidance(denoise, Bound(self._guide_session, guiding))
        return Gradient(denoise, self._guide_session, guiding)

    def warm_up(self, batch_size: int = 1) -> None:
        """Take one step with such a batch: the first run of a shape plans memory, and on a GPU picks convolutions."""
        x = np.zeros((batch_size, *self.codec.network_shape), np.float32)
        x0 = self.run(self.plan(steps=1), x, lambda: x)
        if isinstance(self._codec, Latent):
            self._codec.to_pictures(x0)

    def _run_in_graph(self, plan: SamplingPlan, x: Float32, draw: Callable[[], Float32], given: Given) -> Float32:
        """`run` by sampler.onnx: x stays where onnxruntime computes, from the first row to the last."""
        device = "cpu" if self.providers[0] == CPU else "cuda"
        # Older files know fewer columns of a plan, and need no others.
        known = next(each.shape[1] for each in self._loop.get_inputs() if each.name == "plan")
        noisy = plan.column("to_noise") != 0
        state = import_onnxruntime().OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x), device)
        rows = _rows_at_once(plan, x.nbytes)
        options = import_onnxruntime().RunOptions()
        options.only_execute_path_to_fetches = True  # what makes pictures of x0 is not run here
        for first in range(0, len(plan), rows):
            part = slice(first, first + rows)
            adds_noise = noisy[part]
            z = np.zeros((len(adds_noise), len(x) if adds_noise.any() else 0, *x.shape[1:]), np.float32)
            for row in np.flatnonzero(adds_noise):
                z[row] = draw()
            binding = self._loop.io_binding()
            binding.bind_ortvalue_input("x", state)
            binding.bind_cpu_input("plan", np.ascontiguousarray(plan.table[part, :known], np.float32))
            binding.bind_cpu_input("timesteps", plan.told[part])
            binding.bind_cpu_input("z", z)
            for name, values in given.items():
                if name != WEIGHTS:  # the rows have them
                    binding.bind_cpu_input(name, values)
            if WEIGHTS in given:
                binding.bind_cpu_input(CONTROL_PLAN, plan.control_rows[part])
            binding.bind_output("x0", device)
            self._loop.run_with_iobinding(binding, options)
            (state,) = binding.get_outputs()
        return state.numpy()


class _Decoder:
    """decoder.onnx as `codecs.latent.Latent` takes it."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def encode(self, x: Any) -> Any:
        raise ValueError("an exported model has no encoder")

    def decode(self, z: Float32) -> Float32:
        """As many at once as the memory allows, of which a picture takes more than its latent."""
        at_once, session = self._sampler.largest_batch, self._sampler.decoder
        parts = [z[first : first + at_once] for first in range(0, len(z), at_once)]
        return np.concatenate([session.run(None, {"z": part})[0] for part in parts])


def open_exported(directory: Path | str, **options: Any) -> Sampler | Cascade:
    """A deploy directory, of a model or of a cascade.

    Args:
        options: as of `Sampler`, of each link.

    Raises:
        UserError: as `Sampler`, and `open_cascade`.
    """
    directory = Path(directory)
    if (directory / CASCADE).is_file():
        return open_cascade(directory, lambda link: Sampler(link, **options))
    return Sampler(directory, **options)


def run(
    denoise: Callable[[Float32, NDArray[Any]], Float32],
    plan: SamplingPlan,
    x: Float32,
    draw: Callable[[], Float32],
    known: Known[Float32] | None = None,
) -> Float32:
    """The numpy executor of a sampling plan; `diffusion.sampling.sample` is torch's, with the same arguments."""
    for state, _ in executor.trajectory(_NUMPY, denoise, plan, x, draw, known):
        result = state
    return result


def _times(x: Float32, t: float) -> NDArray[Any]:
    return np.full(len(x), t, dtype=np.float32 if isinstance(t, float) else np.int64)


def _hold(x0: Float32, row: Row) -> Float32:
    """x̂_0 within the row's bounds."""
    with np.errstate(invalid="ignore"):
        unbounded = x0 * 0  # ±∞ · 0 is NaN; any other number is left as it is
    if not row.quantile:
        return np.clip(x0, -row.clip, row.clip) + unbounded
    magnitudes = np.abs(x0).reshape(len(x0), -1)
    bound = np.quantile(magnitudes, row.quantile, axis=1).clip(1, row.clip).astype(x0.dtype)
    bound = bound.reshape(-1, *[1] * (x0.ndim - 1))
    return np.clip(x0, -bound, bound) / bound + unbounded


_NUMPY = executor.Library(np.zeros_like, np.exp, np.where, _times, _hold)


def _rows_at_once(plan: SamplingPlan, row_bytes: int) -> int:
    """Rows of a plan that sampler.onnx is given together: all if none adds noise, else as many as NOISE_BYTES allow."""
    return max(1, NOISE_BYTES // row_bytes) if plan.column("to_noise").any() else len(plan)


def _fits_the_graph(plan: SamplingPlan, row_bytes: int) -> bool:
    """Whether sampler.onnx can run the plan within NOISE_BYTES. It cannot be given a piece of a plan that looks back at
    an earlier x̂_0, which the next piece would not have; denoiser.onnx then runs row by row, to the same bits on a CPU.
    """
    looks_back = plan.column("to_prev").any() or plan.column("to_prev2").any()
    return not looks_back or len(plan) <= _rows_at_once(plan, row_bytes)


def open_on_cpu(path: Path) -> Any:
    """The session of a file on the CPU."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, options, providers=[CPU])
    except Exception as error:  # onnxruntime's own exception types are not public
        raise UserError(f"{path} does not load: {error}") from None


def import_onnxruntime() -> ModuleType:
    """onnxruntime, with its reports to its makers switched off: since 1.29 it sends them by default."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def available_providers() -> list[str]:
    """CUDA where onnxruntime has it and the machine has a device, then the CPU. TensorRT, which takes minutes to build
    its engines, has to be asked for."""
    has_device = Path("/proc/driver/nvidia/version").exists()
    return [CUDA, CPU] if has_device and CUDA in import_onnxruntime().get_available_providers() else [CPU]


def _described(providers: list[str]) -> list[Any]:
    """Providers with their options: full float32 on CUDA, since TF32's ten bits would break parity."""
    if CUDA in providers or TENSORRT in providers:
        # The CUDA libraries come as Python packages; onnxruntime does not look for them by itself.
        import_onnxruntime().preload_dlls()
    return [(name, {"use_tf32": "0"}) if name == CUDA else name for name in providers]
