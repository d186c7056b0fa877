"""Dynamic batching: requests that follow the same plan are drawn together.

One batch runs at a time, in a thread of its own. All else here belongs to the event loop, and so needs no locks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.diffusion.plans import SamplingPlan
from ddpm.drawer import Drawer
from ddpm.drawer.parts import Drawn, Part, data_of
from ddpm.errors import NotFiniteError
from ddpm.serve.metrics import Metrics
from ddpm.serve.models import Choice, ServedModel


class QueueFullError(Exception):
    """More is not accepted as things are; `retry_after` seconds should see served what is."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


@dataclass(eq=False)
class Job:
    """What one request wants drawn."""

    model: ServedModel
    choice: Choice
    plan: SamplingPlan
    seed: int
    count: int
    images: asyncio.Future[NDArray[Any]]
    """Data [count, *shape], as the model's kind stores them; cancelled: nobody waits for them."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Of the model's columns, such as `label`. Jobs that differ in it share batches: it belongs to each datum."""
    one_noise: bool = False
    """Whether all its images are drawn as image 0, each of its own embedding."""
    arrived: float = field(default_factory=time.monotonic)
    drawn: list[NDArray[Any]] = field(default_factory=list)
    started: int = 0
    """How many of the images are drawn, or being drawn."""

    @cached_property
    def held_bytes(self) -> int:
        """Of its data, and of the pictures that it was given, until it is done."""
        given = sum(value.nbytes for value in self.asked.values() if isinstance(value, np.ndarray))
        return self.count * self.model.datum_bytes + given

    @cached_property
    def evaluations(self) -> int:
        """Evaluations of networks for one of its images."""
        return self.model.sampler.evaluations(self.plan)

    def draws_like(self, other: Job) -> bool:
        """Whether the two can share a batch."""
        return self.model is other.model and self.choice == other.choice


@dataclass(frozen=True)
class Share:
    """A job's images `first` .. `first + count − 1`, in a batch."""

    job: Job
    first: int
    count: int


def draw(shares: Sequence[Share]) -> list[Drawn]:
    """Run one plan for all shares at once; each gets the images that it would get alone, to the rounding of floats.

    Where the network's output is NaN or infinite for one, the others still get theirs.
    """
    job = shares[0].job
    drawer = job.model.sampler
    parts = [_parts(drawer, share) for share in shares]
    drawn = iter(drawer.draw_parts(job.plan, [part for own in parts for part in own]))
    return [_joined([next(drawn) for _ in own]) for own in parts]


def _joined(drawn: Sequence[Drawn]) -> Drawn:
    """The parts of a share as one, or why one of them has no data."""
    failed = next((each for each in drawn if isinstance(each, NotFiniteError)), None)
    return np.concatenate([data_of(each) for each in drawn]) if failed is None else failed


def _parts(drawer: Drawer, share: Share) -> list[Part]:
    """A share with a value of each of the model's columns; of one noise as parts of one image."""
    job, first, count = share.job, share.first, share.count
    if not job.one_noise:
        return [_part(drawer, job, first, count, job.asked)]
    wanted = job.asked[EmbeddingColumn.name][first : first + count]
    return [_part(drawer, job, 0, 1, {**job.asked, EmbeddingColumn.name: each}) for each in wanted]


def _part(drawer: Drawer, job: Job, first: int, count: int, asked: Mapping[str, Any]) -> Part:
    return Part(job.seed, first, count, drawer.given(count, seed=job.seed, first=first, **asked))


class Batcher:
    """A bounded queue of jobs, and the one batch that is being drawn."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        batch_size: int = 64,
        window: float = 0.005,
        queue: int = 256,
        queue_bytes: int = 2**30,
        draw: Callable[[Sequence[Share]], Sequence[Drawn]] = draw,
    ) -> None:
        """
        Args:
            metrics: that every batch is counted in.
            batch_size: images a batch at most, fewer where the model's memory says so; a larger job is drawn in turns
                with the others.
            window: seconds, from a job's arrival, that a batch with room waits for company.
            queue: jobs that may wait.
            queue_bytes: of the data, and of the pictures that were given, of all jobs that are not done; one alone may
                have more.
            draw: what a batch is drawn by.
        """
        self._metrics = metrics
        self._batch_size, self._window, self._draw = batch_size, window, draw
        self._capacity, self._capacity_bytes = queue, queue_bytes
        self._queue: deque[Job] = deque()
        self._running: list[Share] = []
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "sampling")
        self._seconds_per_evaluation = 0.0

    def submit(
        self,
        model: ServedModel,
        choice: Choice,
        plan: SamplingPlan,
        *,
        seed: int,
        count: int,
        asked: Mapping[str, Any] | None = None,
        one_noise: bool = False,
    ) -> asyncio.Future[NDArray[Any]]:
        """Queue a job. Who no longer wants its images cancels the future; the job then leaves the queue.

        Args:
            asked: of the model's columns, as `Drawer.given` accepts it.
            one_noise: all images are drawn as image 0, each of its own embedding.

        Raises:
            QueueFullError: too many jobs wait, or too large ones.
        """
        images: asyncio.Future[NDArray[Any]] = asyncio.get_running_loop().create_future()
        job = Job(model, choice, plan, seed, count, images, asked or {}, one_noise)
        held = sum(other.held_bytes for other in self._unanswered())
        too_large = held > 0 and held + job.held_bytes > self._capacity_bytes
        if len(self._queue) >= self._capacity or too_large:
            raise QueueFullError(self._seconds_to_serve_all())
        images.add_done_callback(lambda _: self._forget(job))
        self._queue.append(job)
        self._note_change()
        return images

    @property
    def busy(self) -> bool:
        """Whether a batch is being drawn."""
        return bool(self._running)

    def abandon(self, error: Exception) -> None:
        """Fail every job with `error`. A batch that is being drawn cannot be stopped; nobody will see it."""
        for job in self._unanswered():
            job.images.set_exception(error)

    async def run(self) -> None:
        """Draw batches until cancelled."""
        while True:
            shares = await self._next_batch()
            self._running = shares
            for share in shares:
                share.job.started += share.count
                self._queue.remove(share.job)
            self._note_change()
            started = time.monotonic()
            try:
                parts = await asyncio.get_running_loop().run_in_executor(self._thread, self._draw, shares)
            except Exception as error:
                for share in shares:
                    if not share.job.images.done():
                        share.job.images.set_exception(error)
            else:
                self._count(shares, time.monotonic() - started)
                for share, part in zip(shares, parts, strict=True):
                    self._hand_over(share.job, part)
            finally:
                self._running = []

    async def _next_batch(self) -> list[Share]:
        """Wait for a job, then for its company: until the batch is full, or the window of the first job is over."""
        while True:
            self._changed.clear()
            shares, room = self._company()
            patience = shares[0].job.arrived + self._window - time.monotonic() if shares else None
            if patience is not None and (patience <= 0 or not room):
                return shares
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience):
                    await self._changed.wait()

    def _company(self) -> tuple[list[Share], int]:
        """As much as fits into a batch with the job that waits longest, and how many images more would."""
        waiting = [job for job in self._queue if not job.images.done()]
        if not waiting:
            return [], 0
        shares: list[Share] = []
        room = min(self._batch_size, waiting[0].model.sampler.largest_batch or self._batch_size)
        for job in waiting:
            if room and job.draws_like(waiting[0]):
                count = min(room, job.count - job.started)
                shares.append(Share(job, job.started, count))
                room -= count
        return shares, room

    def _hand_over(self, job: Job, part: Drawn) -> None:
        """Give a job what was drawn for it. One that wants more waits for its next turn, behind the others."""
        if job.images.done():
            return
        if isinstance(part, NotFiniteError):
            job.images.set_exception(part)
            return
        job.drawn.append(part)
        if job.started == job.count:
            job.images.set_result(np.concatenate(job.drawn))
        else:
            self._queue.append(job)
            self._note_change()

    def _forget(self, job: Job) -> None:
        with contextlib.suppress(ValueError):
            self._queue.remove(job)
        self._note_change()

    def _unanswered(self) -> list[Job]:
        """Jobs that somebody waits for, whether their turn is now or later."""
        accepted = [*(share.job for share in self._running), *self._queue]
        return [job for job in accepted if not job.images.done()]

    def _note_change(self) -> None:
        self._metrics.queue.set(len(self._queue))
        self._changed.set()

    def _count(self, shares: list[Share], seconds: float) -> None:
        images = sum(share.count for share in shares)
        evaluations = images * shares[0].job.evaluations
        self._seconds_per_evaluation = seconds / evaluations
        self._metrics.batch_images.observe(images)
        self._metrics.batch_requests.observe(len(shares))
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.evaluations.inc(evaluations)

    def _seconds_to_serve_all(self) -> int:
        """How long all that was accepted should take, at the speed of the last batch: 1 to 60."""
        drawing = sum(share.count * share.job.evaluations for share in self._running)
        waiting = sum((job.count - job.started) * job.evaluations for job in self._unanswered())
        return min(60, max(1, math.ceil((drawing + waiting) * self._seconds_per_evaluation)))
