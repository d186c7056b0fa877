"""A cascade in the batcher: the evaluations of both its links count."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from denoisers import write_deploy
from test_batching import Gate, submit

from ddpm.deploy.runtime import Sampler
from ddpm.drawer.cascade import Cascade
from ddpm.serve.batching import Batcher, QueueFullError
from ddpm.serve.metrics import Metrics
from ddpm.serve.models import ServedModel


@pytest.fixture
def cascade(told: Path, tmp_path: Path) -> ServedModel:
    """From 4×4 to 8×8."""
    base = Sampler(write_deploy(tmp_path / "base", shape=(4, 4, 3)), threads=1)
    return ServedModel("cascade", Cascade.of(base, Sampler(told, threads=1)))


def test_the_upsamplers_evaluations_count_in_the_metrics_and_in_the_time_to_retry(cascade):
    gate, metrics = Gate(), Metrics()
    upsampler = cascade.sampler.links["upsampler"].choices[1]["steps"]
    assert upsampler > 0

    async def test() -> None:
        batcher = Batcher(metrics, batch_size=1, window=0.0, queue=1, draw=gate)
        running = asyncio.create_task(batcher.run())
        drawn = submit(batcher, cascade, 1, steps=2)
        await gate.wait()
        waiting = submit(batcher, cascade, 2, steps=2)
        batcher._seconds_per_evaluation = 1.0
        with pytest.raises(QueueFullError) as refused:
            submit(batcher, cascade, 1, steps=2)
        assert refused.value.retry_after == 3 * (2 + upsampler)
        for _ in range(3):
            gate.opened.release()
        await asyncio.gather(drawn, waiting)
        running.cancel()

    asyncio.run(test())
    assert f"ddpm_network_evaluations_total {3 * (2 + upsampler)}.0" in metrics.exposition().decode()
