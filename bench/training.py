"""How fast this machine trains: ours, diffusers' loop and denoising_diffusion_pytorch's Trainer, by paired rounds.

    python -m bench.training                 # or `make bench-training`

A case is a network, images of noise and a batch, alike for all its contestants. Each round takes a few steps with every
contestant, in random order, so that what else the machine does hits all alike. Ratios are medians over the rounds. The
share of the peak is that of the faster of a matrix product and a convolution, timed in the same run and precision.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.page import table
from bench.peers import CONTESTANTS, Case
from bench.rounds import paired_times, ratios
from ddpm.compute.device import pick_device
from ddpm.files import write_json
from ddpm.training.cost import training_flops

RESULTS = Path("bench/results")
COMMON = {"kind": "unet", "width": 32, "multipliers": (1, 2, 2), "groups": 8, "dropout": 0.0}
DIGITS = {**COMMON, "blocks": 1, "attention_resolutions": (4,)}
UNET = {**COMMON, "blocks": 2, "attention_resolutions": (16, 8)}
LINEAR = {"kind": "linear-attention", "width": 32, "memory": 4, "full_attention": (2,), "downsample": "unshuffle"}

# Each network with the peer that has the same one.
CASES = {
    "digits": (Case("digits", 8, 1, DIGITS, steps=40), "diffusers"),
    "32x32": (Case("32x32", 32, 1, UNET), "diffusers"),
    "digits-linear": (
        Case("digits-linear", 8, 1, {**LINEAR, "multipliers": (1, 2, 4)}, steps=40),
        "denoising_diffusion_pytorch",
    ),
    "32x32-linear": (
        Case("32x32-linear", 32, 1, {**LINEAR, "multipliers": (1, 2, 3)}),
        "denoising_diffusion_pytorch",
    ),
    # Ho et al. 2020's network of 35.7 M parameters; for a GPU.
    "cifar10": (Case("cifar10", 32, 3, {"kind": "unet"}, batch=128, steps=20), "diffusers"),
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(name: str, rounds: int, clock: Callable[[], float]) -> dict[str, Any]:
    """A case's figures: of each contestant images/s, GFLOP/s, share of the peak, memory; and ours over the peer's."""
    case, peer = CASES[name]
    runs = {
        f"{contestant} {precision}": partial(CONTESTANTS[contestant](case, precision), case.steps)
        for contestant in ("ddpm", peer)
        for precision in case.precisions
    }
    times = paired_times(runs, rounds, clock)
    flops = training_flops(case.build(), (case.channels, case.side, case.side))
    peaks = {precision: peak(precision, clock) for precision in case.precisions}
    figures: dict[str, Any] = {}
    for label, own in times.items():
        speeds = sorted(case.steps * case.batch / seconds for seconds in own)
        speed = statistics.median(speeds)
        figures[label] = {
            "images_per_second": round(speed, 1),
            "range": [round(speeds[0], 1), round(speeds[-1], 1)],
            "gflops": round(speed * flops / 1e9, 1),
            "share_of_peak": round(speed * flops / peaks[label.split()[1]], 3),
            "peak_memory_mib": round(peak_memory(name, *label.split())),
        }

    def faster(label: str, other: str) -> list[float]:
        """Median, least and greatest speed of one over the other, round by round."""
        found = ratios(times[other], times[label])
        return [round(value, 3) for value in (statistics.median(found), found[0], found[-1])]

    compared = {f"ddpm / {peer}, {each}": faster(f"ddpm {each}", f"{peer} {each}") for each in case.precisions}
    if set(case.precisions) >= {"fp32", "bf16"}:
        compared["ddpm bf16 / ddpm fp32"] = faster("ddpm bf16", "ddpm fp32")
    return {
        "parameters": sum(parameter.numel() for parameter in case.build().parameters()),
        "batch": case.batch,
        "gflop_per_image": round(flops / 1e9, 4),
        "peak_gflops": {precision: round(value / 1e9, 1) for precision, value in peaks.items()},
        "contestants": figures,
        "ratios": compared,
    }


def peak(precision: str, clock: Callable[[], float], repeats: int = 10) -> float:
    """The most floating-point operations a second that a matrix product or a 3×3 convolution reaches here."""
    device, dtype = pick_device(), torch.float32 if precision == "fp32" else torch.bfloat16
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    channels = 64 if device.type == "cpu" else 256
    x = torch.randn(64, channels, 32, 32, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    work: dict[Callable[[], object], int] = {
        partial(torch.mm, a, a): 2 * size**3,
        partial(torch.conv2d, x, w, padding=1): 2 * 64 * 32 * 32 * 9 * channels**2,
    }
    best = 0.0
    for run, operations in work.items():
        run()
        for _ in range(repeats):
            start = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = max(best, operations / (clock() - start))
    return best


def peak_memory(case: str, contestant: str, precision: str) -> float:
    """MiB that two steps take at most: of the GPU's memory, or of a fresh process beyond what its imports take."""
    context = multiprocessing.get_context("spawn")
    measured = context.SimpleQueue()
    child = context.Process(target=_tell_memory, args=(measured, case, contestant, precision))
    child.start()
    taken: float = measured.get()
    child.join()
    return taken


def _tell_memory(measured: Any, case: str, contestant: str, precision: str) -> None:
    run = CONTESTANTS[contestant](CASES[case][0], precision)
    if torch.cuda.is_available():
        run(2)
        measured.put(torch.cuda.max_memory_allocated() / 2**20)
        return
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak is counted from now on
    run(2)
    measured.put((_status("VmHWM") - before) / 2**10)


def _status(field: str) -> int:
    """A number of /proc/self/status, in KiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1])


def section(name: str, case: dict[str, Any]) -> str:
    """A case's figures as Markdown."""
    peaks = ", ".join(f"{value:.0f} GFLOP/s {precision}" for precision, value in case["peak_gflops"].items())
    rows = (
        [
            label,
            f"{row['images_per_second']:.0f}",
            "{:.0f} to {:.0f}".format(*row["range"]),
            f"{row['share_of_peak']:.0%}",
            f"{row['peak_memory_mib']} MiB",
        ]
        for label, row in case["contestants"].items()
    )
    compared = (
        [label, f"{median:.2f}", f"{least:.2f} to {greatest:.2f}"]
        for label, (median, least, greatest) in case["ratios"].items()
    )
    return "\n\n".join(
        [
            f"### {name}",
            f"{case['parameters'] / 1e6:.2f} M parameters, {case['gflop_per_image']} GFLOP an image in training, batch "
            f"{case['batch']}; peak {peaks}.",
            table(["", "images/s", "least to greatest", "of the peak", "memory"], rows),
            table(["faster by", "median", "least to greatest"], compared),
        ]
    )


def device_name() -> str:
    """Of the processor that is measured, as part of a file's name."""
    if torch.cuda.is_available():
        return "-".join(torch.cuda.get_device_name().lower().split())
    return f"cpu-{platform.machine()}-{torch.get_num_threads()}-threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [name for name in CASES if name != "cifar10" or torch.cuda.is_available()]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=default)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: the process's own time, on a CPU that others use too"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of the processes whose memory is measured
    measured: dict[str, Any] = {
        "device": device_name(),
        "torch": torch.__version__,
        "clock": given.clock,
        "rounds": given.rounds,
        "cases": {},
    }
    RESULTS.mkdir(exist_ok=True)
    for name in given.cases:
        measured["cases"][name] = measure(name, given.rounds, CLOCKS[given.clock])
        write_json(RESULTS / f"training-{device_name()}.json", measured)
        print(section(name, measured["cases"][name]), flush=True)


if __name__ == "__main__":
    main()
