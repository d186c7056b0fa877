"""The batcher in this process, drawing with a real exported model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.deploy.runtime import Sampler
from ddpm.errors import NotFiniteError
from ddpm.serve.batching import Batcher, Job, QueueFullError, Share, draw
from ddpm.serve.metrics import Metrics
from ddpm.serve.models import ServedModel, load_model

Test = Callable[[Batcher], Awaitable[Any]]


@pytest.fixture(scope="module")
def model(deploy: Path) -> ServedModel:
    return load_model(str(deploy), threads=1)


def with_batcher(test: Test, **options: Any) -> Any:
    """Run a test beside a batcher."""

    async def run() -> Any:
        batcher = Batcher(Metrics(), **options)
        running = asyncio.create_task(batcher.run())
        try:
            return await asyncio.wait_for(test(batcher), 60)
        finally:
            running.cancel()

    return asyncio.run(run())


def submit(
    batcher: Batcher,
    model: ServedModel,
    count: int,
    seed: int = 0,
    steps: int | None = None,
    sampler: str | None = None,
    guidance_scale: float | None = None,
    **asked: Any,
) -> asyncio.Future[Any]:
    choice = model.choice(sampler, steps, None, guidance_scale)
    return batcher.submit(model, choice, model.plan(choice), seed=seed, count=count, asked=asked)


def assert_as_alone(model: ServedModel, asked: list[tuple[int, int, dict[str, Any]]], batch_size: int) -> None:
    """Each of these requests, a count, a seed and options, is answered as it would be alone."""

    async def test(batcher: Batcher) -> Any:
        jobs = (submit(batcher, model, count, seed, **options) for count, seed, options in asked)
        return await asyncio.gather(*jobs)

    drawn = with_batcher(test, batch_size=batch_size, window=0.0, queue=len(asked))
    for images, (count, seed, options) in zip(drawn, asked, strict=True):
        np.testing.assert_array_equal(images, model.sampler.sample(count, seed=seed, **options))


class Gate:
    """Draws when it is opened, and remembers what."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.reached, self.opened = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, shares: Any) -> list[Any]:
        self.batches.append([(share.job.seed, share.count) for share in shares])
        self.reached.release()
        assert self.opened.acquire(timeout=60)
        return draw(shares)

    async def wait(self) -> None:
        """Until a batch is being drawn."""
        assert await asyncio.to_thread(self.reached.acquire, timeout=60)


@pytest.fixture(scope="module")
def told(conditional: Path) -> ServedModel:
    """A model with classes."""
    return load_model(str(conditional), threads=1)


@settings(deadline=None, max_examples=40)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(1, 9),
            st.integers(0, 99),
            st.sampled_from([None, 0, "sneaker", "1", [0, "1"], [2, 1, 0, 0]]),
            st.sampled_from([None, 0.0, 1.0, 3.0]),
        ),
        min_size=1,
        max_size=12,
    ),
    batch_size=st.integers(1, 8),
)
def test_whatever_classes_share_a_batch_each_request_gets_its_own(told, asked, batch_size):
    assert_as_alone(told, [(n, seed, {"label": label, "guidance_scale": s}) for n, seed, label, s in asked], batch_size)


def test_classes_share_a_batch_and_scales_do_not(told):
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        first = submit(batcher, told, 1, seed=100)
        await gate.wait()
        others = [submit(batcher, told, 1, seed=seed, label=label) for seed, label in enumerate(["boot", [1, 2], None])]
        others += [submit(batcher, told, 1, seed=seed, guidance_scale=2.0, label=seed - 4) for seed in (4, 5)]
        for _ in range(3):
            gate.opened.release()
        await asyncio.gather(first, *others)

    with_batcher(test, batch_size=8, window=0.0, draw=gate)
    assert gate.batches == [[(100, 1)], [(0, 1), (1, 1), (2, 1)], [(4, 1), (5, 1)]]
    assert told.choice(guidance_scale=2.0) != told.choice(guidance_scale=2.0, guidance_interval=[0.2, 0.6])


def test_steps_with_guidance_count_twice(told):
    metrics = Metrics()

    async def test() -> None:
        batcher = Batcher(metrics)
        running = asyncio.create_task(batcher.run())
        await submit(batcher, told, 3, steps=5, guidance_scale=2.0, label=0)
        running.cancel()

    asyncio.run(test())
    assert b"ddpm_network_evaluations_total 30.0" in metrics.exposition()


@settings(deadline=None, max_examples=40)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(1, 9),
            st.integers(0, 2**64 - 1),
            st.sampled_from([1, 5]),
            st.sampled_from(["ddim", "ancestral"]),
        ),
        min_size=1,
        max_size=12,
    ),
    batch_size=st.integers(1, 8),
)
def test_every_request_gets_what_it_would_get_alone(model, asked, batch_size):
    assert_as_alone(model, [(n, seed, {"steps": steps, "sampler": name}) for n, seed, steps, name in asked], batch_size)


def test_those_that_wait_together_are_drawn_together_and_no_batch_is_larger_than_its_bound(model):
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        first = submit(batcher, model, 1, seed=100)
        await gate.wait()
        others = [submit(batcher, model, 3, seed=seed) for seed in range(3)]
        others.append(submit(batcher, model, 1, seed=3, steps=2))  # another plan
        for _ in range(4):
            gate.opened.release()
        await asyncio.gather(first, *others)

    with_batcher(test, batch_size=8, window=0.0, draw=gate)
    assert gate.batches == [[(100, 1)], [(0, 3), (1, 3), (2, 2)], [(3, 1)], [(2, 1)]]


def test_a_model_that_needs_much_memory_is_given_smaller_batches(deploy):
    gate = Gate()
    sampler = Sampler(deploy, threads=1, memory=2)
    assert sampler.largest_batch == 2

    async def test(batcher: Batcher) -> None:
        for _ in range(2):
            gate.opened.release()
        await submit(batcher, ServedModel("large", sampler), 3, seed=1)

    with_batcher(test, batch_size=8, window=0.0, draw=gate)
    assert gate.batches == [[(1, 2)], [(1, 1)]]


def test_a_large_request_lets_small_ones_in_between(model):
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        large = submit(batcher, model, 10, seed=1)
        await gate.wait()
        small = submit(batcher, model, 1, seed=2)
        gate.opened.release()
        gate.opened.release()
        await small
        assert not large.done()
        for _ in range(2):
            gate.opened.release()
        await large

    with_batcher(test, batch_size=4, window=0.0, draw=gate)
    assert gate.batches == [[(1, 4)], [(2, 1), (1, 3)], [(1, 3)]]


def test_an_idle_batcher_waits_for_company_until_the_batch_is_full(model):
    """Within a window of an hour, nothing but a full batch can have been drawn."""
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        gate.opened.release()
        first = submit(batcher, model, 2, seed=1)
        await asyncio.sleep(0.01)
        second = submit(batcher, model, 2, seed=2)
        await asyncio.gather(first, second)

    with_batcher(test, batch_size=4, window=3600.0, draw=gate)
    assert gate.batches == [[(1, 2), (2, 2)]]


def test_what_nobody_waits_for_is_not_drawn(model):
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        running, waiting = submit(batcher, model, 6, seed=1), submit(batcher, model, 1, seed=2)
        await gate.wait()
        running.cancel()
        waiting.cancel()
        last = submit(batcher, model, 1, seed=3)
        gate.opened.release()
        gate.opened.release()
        await last

    with_batcher(test, batch_size=4, window=0.0, queue=2, draw=gate)
    assert gate.batches == [[(1, 4)], [(3, 1)]]


@pytest.mark.parametrize(
    ("seconds", "retry_after"),
    # 2 images × 5 steps that are drawn or half done, 1 × 5 and 1 × 4 that wait.
    [(2.0, 38), (1.1, 21), (0.0, 1), (1000.0, 60)],
)
def test_a_full_queue_refuses_and_says_when_to_come_again(model, seconds, retry_after):
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        accepted = [submit(batcher, model, 2, seed=0)]
        await gate.wait()
        accepted += [submit(batcher, model, 1, seed=1), submit(batcher, model, 1, seed=2, steps=4)]
        batcher._seconds_per_evaluation = seconds
        with pytest.raises(QueueFullError) as refused:
            submit(batcher, model, 1, seed=3)
        assert refused.value.retry_after == retry_after
        for _ in range(4):
            gate.opened.release()
        await asyncio.gather(*accepted)
        gate.opened.release()
        await submit(batcher, model, 1, seed=4)

    with_batcher(test, batch_size=1, window=0.0, queue=2, draw=gate)


def test_jobs_are_accepted_until_their_images_come_to_too_many_bytes_and_one_always_is(model):
    """Images of 16 bytes: 3 and 1 of them fit into 64, and after them as many as there are, alone."""
    gate = Gate()

    async def test(batcher: Batcher) -> None:
        accepted = [submit(batcher, model, 3, seed=0)]
        await gate.wait()
        accepted.append(submit(batcher, model, 1, seed=1))
        with pytest.raises(QueueFullError):
            submit(batcher, model, 1, seed=2)
        accepted.pop().cancel()
        await asyncio.sleep(0)
        accepted.append(submit(batcher, model, 1, seed=3))
        for _ in range(3):
            gate.opened.release()
        await asyncio.gather(*accepted)
        assert len(await submit(batcher, model, 5, seed=4)) == 5

    with_batcher(test, batch_size=8, window=0.0, queue_bytes=64, draw=gate)


def test_the_pictures_of_a_job_count_as_its_images_do(model):
    """An image of 16 bytes, beside it 16 of the known image and 16 of the mask: with one more image they fill 64."""
    gate, known = Gate(), {"image": np.zeros((1, 4, 4, 1), np.uint8), "mask": np.ones((1, 4, 4), np.bool_)}

    async def test(batcher: Batcher) -> None:
        accepted = [submit(batcher, model, 1, seed=0)]
        await gate.wait()
        accepted.append(submit(batcher, model, 1, seed=1, **known))
        with pytest.raises(QueueFullError):
            submit(batcher, model, 1, seed=2)
        for _ in range(2):
            gate.opened.release()
        await asyncio.gather(*accepted)

    with_batcher(test, batch_size=8, window=0.0, queue_bytes=64, draw=gate)


def test_a_batch_that_fails_takes_no_other_with_it(model):
    def fragile(shares: list[Share]) -> list[Any]:
        if shares[0].job.seed == 1:
            raise MemoryError("too much")
        return draw(shares)

    async def test(batcher: Batcher) -> None:
        bad, good = submit(batcher, model, 1, seed=1), submit(batcher, model, 1, seed=2)
        with pytest.raises(MemoryError):
            await bad
        assert len(await good) == 1

    with_batcher(test, batch_size=1, window=0.0, draw=fragile)


def test_where_one_share_of_a_batch_is_nan_the_others_get_their_images(deploy, monkeypatch):
    """The fault: noise that the network answers with NaN."""
    model = load_model(str(deploy))
    choice = model.choice(None, None, None)
    run = model.sampler.run

    def spoiled(plan, x, draw, given):
        drawn = run(plan, x, draw, given).copy()
        drawn[0] = np.nan
        return drawn

    expected = model.sampler.sample(2, seed=5)
    monkeypatch.setattr(model.sampler, "run", spoiled)
    jobs: list[Any] = [Job(model, choice, model.plan(choice), seed, 2, None) for seed in (4, 5)]  # type: ignore[arg-type]
    bad, good = draw([Share(job, 0, 2) for job in jobs])
    assert isinstance(bad, NotFiniteError)
    np.testing.assert_array_equal(good, expected)
