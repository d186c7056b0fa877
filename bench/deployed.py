"""How fast an exported model runs on this machine's CPU, as ratios of paired rounds.

    python -m bench.deployed deploy/ddpm --batch 16 --steps 50 --rounds 15 --threads 1

Each round times every contestant once, in random order, so that what else the machine does hits all alike. What is
printed is the median over the rounds of each one's time over the first one's.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from bench.rounds import median_ratio, paired_times
from ddpm.deploy.runtime import CPU, Sampler, import_onnxruntime
from ddpm.diffusion.noise import ImageNoise


def compare(title: str, contestants: dict[str, Callable[[], object]], rounds: int) -> None:
    """Print a table of the contestants' times; the first one is the measure."""
    times = paired_times(contestants, rounds)
    first = next(iter(times.values()))
    print(f"\n{title}: medians of {rounds} rounds")
    for name, own in times.items():
        print(f"  {name:28} {1000 * statistics.median(own):9.1f} ms   {median_ratio(own, first):.3f}")


def loops(directory: Path, batch: int, steps: int, threads: int) -> Iterable[tuple[str, Callable[[], object]]]:
    """The loop in numpy around denoiser.onnx, and the loop within sampler.onnx, with noise in every step."""
    for name, in_graph in (("loop outside, in numpy", False), ("loop inside, sampler.onnx", True)):
        sampler = Sampler(directory, providers=[CPU], threads=threads, in_graph=in_graph)
        plan = sampler.plan(sampler="ddim", eta=1.0, steps=steps)
        noise = ImageNoise(0, batch, sampler.codec.network_shape)
        z = noise.draw()
        yield name, partial(sampler.run, plan, z, z.copy)


def optimisations(directory: Path, batch: int, threads: int) -> Iterable[tuple[str, Callable[[], object]]]:
    """One evaluation of the network with all that onnxruntime does to the graph, and with parts of it left out."""
    onnxruntime = import_onnxruntime()
    level = onnxruntime.GraphOptimizationLevel
    for name, options in {
        "all": {},
        "without SiLU fused": {"disabled_optimizers": ["QuickGeluFusion"]},
        "without NCHWc convolutions": {"disabled_optimizers": ["NchwcTransformer"]},
        "basic": {"level": level.ORT_ENABLE_BASIC},
        "none": {"level": level.ORT_DISABLE_ALL},
    }.items():
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.graph_optimization_level = options.pop("level", level.ORT_ENABLE_ALL)
        session = onnxruntime.InferenceSession(directory / "denoiser.onnx", settings, providers=[CPU], **options)
        shape = session.get_inputs()[0].shape[1:]
        feed = {"x": np.random.default_rng(0).standard_normal((batch, *shape), np.float32), "t": np.arange(batch)}
        yield name, partial(session.run, None, feed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="what `ddpm export` wrote")
    for name, default in {"batch": 16, "steps": 50, "rounds": 15, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    compare(
        f"{given.steps} steps of {given.batch} images",
        dict(loops(given.directory, given.batch, given.steps, given.threads)),
        given.rounds,
    )
    compare(
        f"one evaluation of {given.batch} images",
        dict(optimisations(given.directory, given.batch, given.threads)),
        4 * given.rounds,
    )


if __name__ == "__main__":
    main()
