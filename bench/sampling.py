"""`make bench-sampling`: images a second of this project's samplers and of others', on the same weights.

Two measures: at equal steps, all by DDIM; and at equal FID, where each takes the fewest steps that reach the FID of
ancestral sampling through all timesteps. The model that `make demo` trained is measured; beside it, for speed alone, an
untrained one at 32×32.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from bench.contestants import DEPLOY_FILES, RUNTIME, Draw, ddim, of_all_steps, write_files
from bench.page import table
from bench.rounds import paired_times, ratios
from ddpm.compute.device import pick_device
from ddpm.config.model import VariantConfig
from ddpm.data.store import PreparedData
from ddpm.deploy.runtime import Sampler
from ddpm.errors import UserError
from ddpm.evaluation.bootstrap import frechet_deviation
from ddpm.evaluation.extractor import Extractor, load_extractor
from ddpm.evaluation.features import cached_features, extract
from ddpm.evaluation.metrics import frechet_distance
from ddpm.files import write_bytes, write_json
from ddpm.layout import EXTRACTOR, FEATURES, MODELS, PREPARED
from ddpm.model import Model, load
from ddpm.model.card import DataFacts, ModelCard, TrainingFacts
from ddpm.model.network import build_network

NEAR = 1.05  # a FID within 5 % of the reference is the same
RESAMPLES = 200

FidOf = Callable[..., tuple[float, float]]

# Samplers whose fewest steps are sought, and where.
FEW_STEPS: dict[str, dict[str, Any]] = {
    "ddim": {"sampler": "ddim", "eta": 0.0},
    "ddim with η = 1": {"sampler": "ddim", "eta": 1.0},
    "dpmpp_2m": {"sampler": "dpmpp_2m"},
    "dpmpp_2m_sde": {"sampler": "dpmpp_2m_sde"},
    "unipc": {"sampler": "unipc"},
}
LARGER_NETWORK = {"width": 32, "multipliers": [1, 2, 2], "blocks": 2, "attention_resolutions": [16], "groups": 8}


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    rounds: int = 7
    steps: int = 50  # at equal steps
    batch: int = 64
    larger_batch: int = 8  # of 32×32
    larger_steps: int = 10
    samples: int = 4000  # a FID; of 1,000 the deviation is twice as large
    candidates: tuple[int, ...] = (5, 8, 10, 12, 15, 20, 30, 50)
    whole_rounds: int = 5  # of the samplers that visit every timestep


FULL = Scale()
QUICK = Scale(1, 2, 4, 1, 2, 64, (2, 4), 1)  # the whole way in seconds, for tests; its figures mean nothing


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the results; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.sampling", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the whole way in seconds; the figures mean nothing")
    parser.add_argument("--model", type=Path, default=MODELS / "ddpm", help="a model directory (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=Path("bench/results"), help="default: %(default)s")
    parser.add_argument("--page", type=Path, default=Path("docs/sampling-speed.md"), help="default: %(default)s")
    given = parser.parse_args(argv)
    try:
        results = measure(given.model, QUICK if given.quick else FULL)
    except UserError as error:
        print(f"bench-sampling: {error}; `make demo` makes all that is measured here", file=sys.stderr)
        return error.exit_code
    write_json(given.results / f"sampling-{results['machine']['device']}.json", results)
    write_bytes(given.page, page(results).encode())
    print(page(results))
    return 0


def measure(directory: Path, scale: Scale) -> dict[str, Any]:
    """Everything that the page says of a model directory, as JSON; the project around it is the working directory.

    Raises:
        UserError: the model, the extractor or the data are not there.
    """
    device = pick_device()
    trained = load(directory, device)
    larger = _untrained((32, 32, 1), LARGER_NETWORK, len(trained.schedule), device)
    with tempfile.TemporaryDirectory() as folder:
        digits, bigger = Path(folder) / "digits", Path(folder) / "larger"
        write_files(trained, digits)
        write_files(larger, bigger)
        return {
            "machine": _machine(device),
            "equal_steps": [
                _raced(trained, ddim(trained, digits, scale.steps), scale.batch, scale.steps, scale.rounds),
                _raced(
                    larger,
                    ddim(larger, bigger, scale.larger_steps),
                    scale.larger_batch,
                    scale.larger_steps,
                    scale.rounds,
                ),
            ],
            "equal_fid": _equal_fid(trained, digits, scale),
        }


def _untrained(shape: tuple[int, ...], network: Mapping[str, Any], timesteps: int, device: torch.device) -> Model:
    config = VariantConfig.model_validate(
        {"network": network, "process": {"variance": "fixed_small", "timesteps": timesteps}}
    )
    facts = DataFacts(name="none", shape=shape, classes=None)
    torch.manual_seed(0)
    built = build_network(config, facts.codec).to(device).eval().requires_grad_(False)
    parameters = sum(parameter.numel() for parameter in built.parameters())
    none = TrainingFacts(fingerprint="untrained")
    return Model(built, ModelCard(variant="larger", config=config, data=facts, training=none, parameters=parameters))


def _raced(model: Model, contestants: Mapping[str, Draw], batch: int, steps: int, rounds: int) -> dict[str, Any]:
    """Images a second of each, and how many times as fast as each the first is."""
    times = paired_times({name: partial(draw, batch) for name, draw in contestants.items()}, rounds)
    return {
        "shape": list(model.shape),
        "parameters": model.card.parameters,
        "batch": batch,
        "steps": steps,
        "rounds": rounds,
        "contestants": _speeds(times, batch, next(iter(times))),
    }


def _speeds(times: Mapping[str, Sequence[float]], batch: int, first: str) -> list[dict[str, Any]]:
    rows = []
    for name, seconds in times.items():
        over = ratios(seconds, times[first])
        rows.append(
            {
                "name": name,
                "images_per_second": round(batch / statistics.median(seconds), 3),
                "times_of_first": round(statistics.median(over), 3),
                "lowest": round(over[0], 3),
                "highest": round(over[-1], 3),
            }
        )
    return rows


def _equal_fid(model: Model, folder: Path, scale: Scale) -> dict[str, Any]:
    """Each sampler's FID by steps up to the fewest that do, and the time of the fewest of all over what others need."""
    fid_of = _fid_of(model, folder, scale.samples)
    whole = len(model.schedule)
    reference, deviation = fid_of(sampler="ancestral", steps=whole)
    print(f"ancestral, {whole} steps: FID {reference:.3f} ± {deviation:.3f}", flush=True)
    curves = {
        name: list(_until(partial(fid_of, **plan), scale.candidates, NEAR * reference))
        for name, plan in FEW_STEPS.items()
    }
    reached = {name: curve[-1][0] for name, curve in curves.items() if curve[-1][1] <= NEAR * reference}
    found: dict[str, Any] = {
        "samples": scale.samples,
        "reference": {
            "sampler": "ancestral",
            "steps": whole,
            "fid": round(reference, 4),
            "deviation": round(deviation, 4),
        },
        "within": NEAR,
        "curves": {name: [{"steps": s, "fid": round(fid, 4)} for s, fid in curve] for name, curve in curves.items()},
        "fewest": reached,
    }
    return found | _against_all_steps(model, folder, found, scale)


def _against_all_steps(model: Model, folder: Path, found: Mapping[str, Any], scale: Scale) -> dict[str, Any]:
    """The race of the fewest steps that do, or where none do of those with the lowest FID, and what others do."""
    fids = {(name, point["steps"]): point["fid"] for name, curve in found["curves"].items() for point in curve}
    reached = found["fewest"].items() or [min(fids, key=lambda point: fids[point])]
    name, steps = min(reached, key=lambda point: point[1])
    runtime, plan = Sampler(folder / DEPLOY_FILES), {**FEW_STEPS[name], "steps": steps}
    whole = len(model.schedule)
    contestants: dict[str, Draw] = {
        f"{RUNTIME}, {name}, {steps} steps": lambda n: runtime.sample(n, batch_size=n, **plan),
        **{f"{peer}, ancestral, {whole} steps": draw for peer, draw in of_all_steps(model, folder).items()},
    }
    return {
        "raced": {"sampler": name, "steps": steps, "fid": fids[name, steps]},
        "race": _raced(model, contestants, scale.batch, steps, scale.whole_rounds),
    }


def _until(fid_of: FidOf, steps: Iterable[int], bound: float) -> Iterable[tuple[int, float]]:
    """(steps, FID) as far as the first FID within the bound."""
    for count in steps:
        fid, _ = fid_of(steps=count)
        print(f"  {count} steps: FID {fid:.3f}", flush=True)
        yield count, fid
        if fid <= bound:
            return


def _fid_of(model: Model, folder: Path, samples: int) -> FidOf:
    """The FID, under the project's extractor, of what the runtime draws by a plan, and its bootstrap's deviation."""
    extractor: Extractor = load_extractor(EXTRACTOR, weights=None, device=model.device)
    data = PreparedData.open(PREPARED)
    reference = cached_features(extractor, data.split("train"), FEATURES).features
    runtime = Sampler(folder / DEPLOY_FILES)

    def fid(**plan: Any) -> tuple[float, float]:
        drawn = extract(extractor, runtime.batches(samples, batch_size=250, **plan), samples).features
        return frechet_distance(drawn, reference), frechet_deviation(drawn, reference, resamples=RESAMPLES, seed=0)

    return fid


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": device.type,
        "name": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def processor() -> str:
    """The name of this machine's CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def page(results: Mapping[str, Any]) -> str:
    """What the JSON holds, for readers."""
    machine, fid = results["machine"], results["equal_fid"]
    where = (
        f"{machine['name']}, {machine['cores']} cores, torch {machine['torch']}, onnxruntime {machine['onnxruntime']}"
    )
    parts = [
        "# How fast samples are drawn",
        f"`make bench-sampling` measures it and writes this page and "
        f"`bench/results/sampling-{machine['device']}.json`. Here: {where}. All run on the same weights, in float32, "
        "in rounds that take turns; a ratio is the median over the rounds, with the lowest and the highest.",
        "## At equal steps",
        *(
            f"{_what(race)}, DDIM with η = 0 in {race['steps']} steps:\n\n{_speed_table(race)}"
            for race in results["equal_steps"]
        ),
        "## At equal FID",
        f"{fid['reference']['steps']} steps of ancestral sampling have FID {fid['reference']['fid']:.3f} "
        f"({fid['samples']} images against the training split, in the features of the demo's extractor; standard "
        f"deviation {fid['reference']['deviation']:.3f} by the bootstrap). All start from the same noise. The fewest "
        f"steps whose FID is at most {fid['within']:g} times as high:",
        table(["sampler", "steps", "FID on the way there"], (_fewest(fid, name) for name in fid["curves"])),
        "Where the margin is below a deviation, a sampler just outside it is not shown to be worse.",
    ]
    raced, over = fid["raced"], fid["raced"]["fid"] / fid["reference"]["fid"]
    parts += [
        f"{raced['sampler']} in {raced['steps']} steps, with {over:.2f} times the FID of all steps, against what "
        f"others do by default; {_what(fid['race'])}:\n\n{_speed_table(fid['race'])}",
    ]
    return "\n\n".join(parts) + "\n"


def _what(race: Mapping[str, Any]) -> str:
    height, width, _ = race["shape"]
    return f"U-Net of {race['parameters'] / 1e6:.2f} M parameters at {height}×{width}, {race['batch']} images at once"


def _speed_table(race: Mapping[str, Any]) -> str:
    rows = (
        [
            row["name"],
            f"{row['images_per_second']:.4g}",
            f"{row['times_of_first']:.3g} ({row['lowest']:.3g} to {row['highest']:.3g})",
        ]
        for row in race["contestants"]
    )
    return table(["", "images a second", "times as long as the first"], rows)


def _fewest(fid: Mapping[str, Any], name: str) -> list[str]:
    way = ", ".join(f"{point['steps']}: {point['fid']:.3f}" for point in fid["curves"][name])
    return [name, str(fid["fewest"].get(name, "not reached")), way]


if __name__ == "__main__":
    sys.exit(main())
