"""The model that is served: loaded, tried once, and followed when its alias in the registry moves."""

from __future__ import annotations

import hashlib
import logging
import math
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from ddpm.conditioning.columns import LabelColumn
from ddpm.deploy.runtime import Precision, Sampler, open_exported
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import INPAINTING, JUMP, RESAMPLES, SamplingPlan
from ddpm.diffusion.samplers import SAMPLERS
from ddpm.diffusion.steps import LANGEVIN_STEPS, Choices
from ddpm.drawer import Drawer
from ddpm.errors import NotFiniteError, UserError
from ddpm.files import read_json
from ddpm.layout import CASCADE, find_model, is_uri
from ddpm.serve.metrics import Metrics

logger = logging.getLogger(__name__)

# After failures the looks at the registry become rarer, down to one in so many seconds.
_MOST_PATIENCE = 60.0


class Choice(NamedTuple):
    """What a request chooses of its sampling plan, the model's own values filled in. Equal choices share a batch.

    `eta` is 0 where the sampler is not ddim. Without guidance `guidance_interval` is None, unless a request has one.
    """

    sampler: str
    steps: int
    eta: float
    guidance_scale: float
    guidance_interval: tuple[float, ...] | None
    inpainting: str | None = None
    resamples: int | None = None
    jump: int | None = None
    control_scale: float | None = None
    control_interval: tuple[float, ...] | None = None
    guess: bool | None = None


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model ready to draw."""

    name: str
    """`models:/ddpm-digits/3`; of a directory, its model's name and the start of its description's SHA-256."""
    sampler: Drawer

    @property
    def datum_bytes(self) -> int:
        """Of one datum as it is drawn: of an image its pixels."""
        return math.prod(self.sampler.codec.shape) * self.sampler.codec.dtype.itemsize

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of what can be asked for as a label; None: nothing can."""
        return next((column.classes for column in self.sampler.columns if isinstance(column, LabelColumn)), None)

    @property
    def sampling(self) -> dict[str, Any]:
        """The model's own choices. Models of before there was guidance do not name it."""
        return {"guidance_scale": 1.0, "guidance_interval": None, **self.sampler.choices[1]}

    def choice(
        self,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        control_interval: Sequence[float] | None = None,
        **others: Any,
    ) -> Choice:
        """The choice with the model's own values where there is None.

        Args:
            others: the last fields of `Choice`, which stay as they are asked for; so does `control_interval`.
        """
        own = self.sampling
        sampler = own["sampler"] if sampler is None else sampler
        if eta is None:
            eta = own.get("eta", 0.0) if sampler == "ddim" else 0.0  # DDIM's alone
        scale = own["guidance_scale"] if guidance_scale is None else guidance_scale
        scale = 1.0 if scale is None else scale
        interval = guidance_interval
        if interval is None and scale != self.sampler.unguided_scale:
            interval = own["guidance_interval"]
        return Choice(
            sampler,
            own["steps"] if steps is None else steps,
            eta,
            scale,
            None if interval is None else tuple(interval),
            control_interval=None if control_interval is None else tuple(control_interval),
            **others,
        )

    def least_evaluations(self, choice: Choice) -> int:
        """The evaluations of the network for a datum, without guidance and without an upsampler, from numbers alone: a
        plan that is too long need not be built. What cannot be planned counts as something that can; `plan` refuses it.
        """
        process, own = self.sampler.choices
        asked = Choices(choice.steps, langevin_steps=own.get("langevin_steps", LANGEVIN_STEPS))
        known = SAMPLERS.get(choice.sampler)
        visited = asked.steps if known is None else known.levels(asked)
        steps = asked.steps if visited <= process["timesteps"] else process["timesteps"]
        inpainting = INPAINTING.get(choice.inpainting or "", INPAINTING["replace"])
        return inpainting.evaluations(steps, choice.resamples or RESAMPLES, choice.jump or JUMP)

    def plan(self, choice: Choice) -> SamplingPlan:
        """The choice's sampling plan.

        Raises:
            ValueError: there is none, or it has guidance and the model cannot be guided.
        """
        options = choice._asdict()
        if choice.sampler != "ddim" and not choice.eta:
            del options["eta"]
        return self.sampler.plan(**options)


def load_model(name: str, *, threads: int = 0, precision: Precision = "fp32") -> ServedModel:
    """Load a deploy directory or a registered version, and draw with it once.

    Args:
        name: a deploy directory or an MLflow URI.
        threads: of onnxruntime on the CPU; 0: one a core.
        precision: of the network.

    Raises:
        UserError: no such model, or one that does not draw.
        UpstreamError: the registry does not answer.
    """
    if is_uri(name):
        return ServedModel(name, _load_registered(name, threads, precision))
    directory = find_model(name, trained=False)
    sampler = _load(directory, name, threads, precision)
    # The plans of a cascade's links, which cascade.json does not have, are in their sampler.json.
    described = directory / (CASCADE if (directory / CASCADE).is_file() else "sampler.json")
    files = dict.fromkeys([described, *(directory / link / "sampler.json" for link in sampler.links)])
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    known_as = read_json(described).get("name", directory.resolve().name)
    return ServedModel(f"{known_as}@{digest[:12]}", sampler)


def _load_registered(uri: str, threads: int, precision: Precision) -> Drawer:
    """A registered version, of which no file outlasts the loading: a service may see many."""
    from ddpm import tracking

    with tempfile.TemporaryDirectory(prefix="ddpm-model-") as folder:
        try:
            return _load(tracking.resolve(uri, into=Path(folder)), uri, threads, precision)
        except UserError as error:
            # The folder is gone when this is read, and another one the next time.
            raise UserError(str(error).replace(folder, uri)) from None


def _load(directory: Path, name: str, threads: int, precision: Precision) -> Drawer:
    opened = open_exported(directory, threads=threads, precision=precision)
    for link in opened.links.values():
        _try(cast(Sampler, link), name)
    return opened


def _try(sampler: Sampler, name: str) -> None:
    """All files are opened, and one step of one image taken, with guidance if that can be: memory is set aside, and a
    model that cannot draw is known before it is asked to.
    """
    sampler.open_files()
    noise = ImageNoise(0, 1, sampler.codec.network_shape)
    guidance = {"guidance_scale": 2.0, "guidance_interval": (0.0, 1.0)} if sampler.guidable else {}
    try:
        x = sampler.run(sampler.plan(steps=1, **guidance), noise.draw(), noise.draw)
    except Exception as error:  # onnxruntime's own exception types are not public
        raise UserError(f"{name} loads, but does not draw: {str(error).splitlines()[0]}") from None
    if x.shape != (1, *sampler.codec.network_shape):
        raise UserError(f"{name} loads, but draws no numbers of shape {list(sampler.codec.network_shape)}")
    try:
        sampler.decode(x)
    except NotFiniteError as error:
        raise NotFiniteError(f"{name} loads, but draws no numbers: {error}") from None


class ModelKeeper:
    """Loads the model in a thread of its own, and again when its alias points elsewhere.

    A request keeps the model it was accepted with; `current` is what the next one gets. A new version that fails to
    load changes nothing but the log and the metrics, and is tried again.
    """

    def __init__(
        self,
        model: str,
        metrics: Metrics,
        *,
        threads: int = 0,
        precision: Precision = "fp32",
        poll: float = 10.0,
        on_failure: Callable[[Exception], object] = lambda error: None,
    ) -> None:
        """
        Args:
            model: a deploy directory or an MLflow URI.
            metrics: that name the loaded model.
            threads, precision: as for `load_model`.
            poll: seconds between two looks at the alias; 0: none after the first.
            on_failure: called, in the keeper's thread, with what kept the first model from being loaded.
        """
        self.current: ServedModel | None = None
        self._model, self._metrics = model, metrics
        self._threads, self._precision, self._poll, self._on_failure = threads, precision, poll, on_failure
        self._stopped = threading.Event()
        # As a daemon it keeps nobody from leaving, whatever registry it is waiting for.
        self._thread = threading.Thread(target=self._keep, name="model-keeper", daemon=True)

    def start(self) -> None:
        """Begin to load, and return."""
        self._thread.start()

    def stop(self) -> None:
        """Look at the registry no more."""
        self._stopped.set()

    def _keep(self) -> None:
        try:
            self._load(self._wanted())
        except Exception as error:
            self._on_failure(error)
            return
        if not (self._poll and is_uri(self._model)):
            return
        patience, said = self._poll, ""
        while not self._stopped.wait(patience):
            try:
                self._follow()
            except Exception as error:  # whatever it is, there is a model that works
                self._metrics.reloads.labels("failed").inc()
                patience = max(self._poll, min(2 * patience, _MOST_PATIENCE))
                if str(error) != said:
                    said = str(error)
                    logger.error(
                        "the model stays, another could not be loaded",
                        extra={"fields": {"model": self.current and self.current.name, "reason": said}},
                    )
            else:
                patience, said = self._poll, ""

    def _wanted(self) -> str:
        """The version that the URI means now."""
        if not is_uri(self._model):
            return self._model
        from ddpm import tracking

        return tracking.pinned(self._model)

    def _follow(self) -> None:
        """Load what the alias points to, if that is not what is served."""
        wanted = self._wanted()
        if self.current is not None and wanted != self.current.name:
            self._load(wanted)
            self._metrics.reloads.labels("loaded").inc()

    def _load(self, name: str) -> None:
        model = load_model(name, threads=self._threads, precision=self._precision)
        self._metrics.show_model(model.name)
        self.current = model
        logger.info("the model is loaded", extra={"fields": {"model": model.name, "where": model.sampler.where}})
