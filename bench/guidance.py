"""`make bench-guidance`: what guidance costs, beside the same steps without it.

A guided step evaluates the network on each image twice, both halves in one batch. Each round draws the same images with
every executor without guidance, with it, and with it in half of the steps, and twice as many images without guidance,
in random order; a ratio is the median over the rounds of paired times.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import onnxruntime
import torch

from bench.contestants import RUNTIME, TORCH
from bench.page import table
from bench.rounds import paired_times, ratios
from bench.sampling import processor
from ddpm.compute.device import pick_device
from ddpm.config.base import validate
from ddpm.config.model import VariantConfig
from ddpm.deploy.runtime import Sampler
from ddpm.drawer import Drawer
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.export.files import describe_sampler, export_denoiser, export_sampler
from ddpm.files import write_bytes, write_json
from ddpm.layout import MODELS
from ddpm.model import Model, load
from ddpm.model.card import DataFacts, ModelCard, TrainingFacts
from ddpm.model.network import build_network, columns_for
from ddpm.nets.blocks import ResidualBlock
from ddpm.nets.unet import UNet

IN_GRAPH = "the loop in the graph"
SCALE = 3.0
# Half of the steps of a trailing plan whose number of steps is a multiple of four.
HALF = (0.28, 0.78)


class Run(NamedTuple):
    """What is timed: the plan's choices, and how many batches of images."""

    choices: Mapping[str, Any]
    images: int = 1


PLAIN = {"guidance_scale": 1.0}
RUNS = {
    "without": Run(PLAIN),
    "guided": Run({"guidance_scale": SCALE}),
    "guided in half of the steps": Run({"guidance_scale": SCALE, "guidance_interval": HALF}),
    # The same evaluations as guided, without anything that guidance adds: the floor of a guided step.
    "without, twice the images": Run(PLAIN, images=2),
}
CLOCK_NAMES = {"wall": "time on the clock", "cpu": "time of the CPU"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LARGER_NETWORK = {"width": 32, "multipliers": [1, 2, 2], "blocks": 2, "attention_resolutions": [16], "groups": 8}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the results; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.guidance", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the whole way in seconds; the figures mean nothing")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: on a busy machine (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=MODELS / "conditional", help="default: %(default)s")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="default: %(default)s")
    parser.add_argument("--page", type=Path, default=Path("docs/guidance-cost.md"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    rounds, steps, batch, larger_batch = (1, 4, 4, 1) if arguments.quick else (9, 20, 64, 4)
    device = pick_device()
    digits = load(arguments.model, device)
    results = {
        "machine": {
            "cpu": processor(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "steps": steps,
        "clock": arguments.clock,
        "cases": [
            measure(digits, batch, steps, rounds, CLOCKS[arguments.clock]),
            measure(untrained(32, device), larger_batch, steps, rounds, CLOCKS[arguments.clock]),
        ],
    }
    page = markdown(results)
    write_json(arguments.results / f"guidance-{device.type}.json", results)
    write_bytes(arguments.page, page.encode())
    print(page)
    return 0


def measure(model: Model, batch: int, steps: int, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """A model's figures: of each executor and plan the seconds a batch, and over those without guidance."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        export_denoiser(model, directory / "denoiser.onnx")
        export_sampler(model, directory / "denoiser.onnx", directory / "sampler.onnx")
        describe_sampler(model, directory)
        count = torch.get_num_threads()
        executors: dict[str, Drawer] = {
            TORCH: model,
            RUNTIME: Sampler(directory, in_graph=False, threads=count),
            IN_GRAPH: Sampler(directory, in_graph=True, threads=count),
        }
        options: dict[str, Any] = {"sampler": "ddim", "eta": 0.0, "steps": steps}
        runs: dict[str, Callable[[], object]] = {
            f"{name}, {what}": partial(
                executor.sample, batch * run.images, batch_size=batch * run.images, **options, **run.choices
            )
            for name, executor in executors.items()
            for what, run in RUNS.items()
        }
        times = paired_times(runs, rounds, clock)
    plain = next(iter(RUNS))
    rows = []
    for name in executors:
        for what, run in RUNS.items():
            found = ratios(times[f"{name}, {what}"], times[f"{name}, {plain}"])
            rows.append(
                {
                    "executor": name,
                    "plan": what,
                    "evaluations": model.plan(**options, **run.choices).evaluations * run.images,
                    "seconds": statistics.median(times[f"{name}, {what}"]),
                    "ratio": statistics.median(found),
                    "lowest": found[0],
                    "highest": found[-1],
                }
            )
    facts = {"parameters": model.card.parameters, "shape": model.shape, "batch": batch}
    return {**facts, "same_in_both": same_in_both(model), "rows": rows}


def same_in_both(model: Model) -> float:
    """The share of an evaluation's operations that is the same with and without the class: all before the first block
    adds the embedding. Only this could be computed once for both halves of a guided step.
    """
    unet = next(module for module in model.network.modules() if isinstance(module, UNet))
    block = next(module for module in unet.modules() if isinstance(module, ResidualBlock))
    side = math.prod(model.codec.network_shape[1:])
    before = sum(2 * conv.weight.numel() * side for conv in (unet.stem, block.conv1))
    return before / (1e9 * gigaflops_per_image(model) / model.plan().evaluations)


def untrained(side: int, device: torch.device) -> Model:
    """A conditional model of ten classes with random weights, for its speed alone."""
    config = validate(
        VariantConfig,
        {"network": LARGER_NETWORK, "condition": {"label": {}}, "process": {"schedule": "cosine"}},
        "bench.guidance",
    )
    data = DataFacts(name="untrained", shape=(side, side, 1), classes=tuple("0123456789"))
    torch.manual_seed(0)
    network = build_network(config, data.codec, columns=columns_for(config, data, "bench.guidance")).to(device).eval()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    card = ModelCard(
        variant="untrained", config=config, data=data, training=TrainingFacts(fingerprint=""), parameters=parameters
    )
    return Model(network.requires_grad_(False), card)


def threads(count: int) -> str:
    """In words."""
    return "1 thread" if count == 1 else f"{count} threads"


def markdown(results: Mapping[str, Any]) -> str:
    """The results for readers."""
    machine, steps = results["machine"], results["steps"]
    where = machine["device"] if machine["device"] != "cpu" else f"{machine['cpu']}, {threads(machine['threads'])}"
    parts = [
        "# What guidance costs",
        "`make bench-guidance` measures it and writes this page and `bench/results/guidance-*.json`. A guided step "
        "evaluates the network on each image twice, with its class and without, both halves in one batch. A step whose "
        "weight is 0 evaluates it once.",
        "Twice the work takes twice the time, less the cost of a call, which does not depend on the batch. torch "
        "spends more on a call than onnxruntime, so its ratio is lower. Sampling twice as many images without guidance "
        "needs the same evaluations and nothing else, so its ratio is the least that a guided step can cost. Only the "
        "operations before the class enters, in the first block, are the same in both halves; their share is given for "
        "each network.",
        f"Here: {where}, torch {machine['torch']}, onnxruntime {machine['onnxruntime']}; DDIM in {steps} steps, "
        f"guidance scale {SCALE:g}; {CLOCK_NAMES[results['clock']]}. The executors take turns in rounds; a ratio is "
        "the median over the rounds, with the lowest and the highest.",
    ]
    for case in results["cases"]:
        height, width, _ = case["shape"]
        parts.append(
            f"U-Net of {case['parameters'] / 1e6:.2f} M parameters at {height}×{width}, {case['batch']} images at "
            f"once; {case['same_in_both']:.1%} of the operations are the same in both halves:"
        )
        rows = (
            [
                row["executor"],
                row["plan"],
                str(row["evaluations"]),
                f"{1000 * row['seconds'] / steps:.3g}",
                f"{row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})",
            ]
            for row in case["rows"]
        )
        parts.append(table(["executor", "guidance", "evaluations", "ms a step", "times without guidance"], rows))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
