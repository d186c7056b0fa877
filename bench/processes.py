"""`python -m bench.processes`: process × sampler × steps on equal networks, trained for equally many steps.

The presets `ddpm`, `ncsn`, `edm` and `flow` of params.yaml have one network and one training. They are trained on the
digits by the pipeline's own stages in a project folder of its own, and sampled from the same noise. A run that was
stopped goes on with the same command, cell by cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.ablation import FULL, QUICK, DigitsStudy, Scale, changed, on_digits, prepared
from bench.cells import TrainedModel
from bench.claims import Comparison, Estimate, below
from bench.page import table
from bench.study import publish, run
from ddpm.config.params import Params, load_params
from ddpm.evaluation.likelihood import split_bounds, split_ode_likelihoods
from ddpm.layout import MODELS

PROCESSES = {"ddpm": "VP, ε (DDPM)", "ncsn": "VE, score (NCSN)", "edm": "EDM", "flow": "rectified flow"}
SAMPLERS: dict[str, dict[str, Any]] = {
    "euler": {"sampler": "euler"},
    "euler_ancestral": {"sampler": "euler_ancestral"},
    "heun": {"sampler": "heun"},
    "dpmpp_2m": {"sampler": "dpmpp_2m"},
    "dpmpp_2m_sde": {"sampler": "dpmpp_2m_sde"},
}
LANGEVIN = {"sampler": "langevin", "langevin_steps": 2}  # of NCSN alone: more than one step at each level
DEFAULT = ("ddpm", "dpmpp_2m_sde")  # the plan of the pipeline's first model, at any number of steps

WHOLE = replace(
    FULL,
    name="processes",
    results=Path("bench/results/processes.json"),
    page=Path("docs/processes.md"),
    grid_steps=(5, 10, 20, 50),
    likelihood_images=40,
    overrides={},
)
SHORT = replace(
    QUICK,
    name="processes-quick",
    results=Path(".ddpm/processes-quick/processes.json"),
    page=Path(".ddpm/processes-quick/processes.md"),
    overrides={"training": {"steps": 4, "batch_size": 8, "log_every": 2}},
)

Cell = tuple[str, str, int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.processes", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the whole way in seconds; the figures mean nothing")
    scale = SHORT if parser.parse_args(argv).quick else WHOLE
    return run("processes", lambda: write_study(scale))


def write_study(scale: Scale) -> None:
    """Measure what is not there yet, and write it."""
    results = study(load_params(), scale)
    points = [(row["steps"], {f"fid/{row['process']}/{row['sampler']}": row["value"]}) for row in results["fid"]]
    publish(scale.name, results, markdown(results), (scale.results, scale.page), points=points)


def models(params: Params, scale: Scale) -> Params:
    """The pipeline's parameters with the digits as data, and with the four presets."""
    return on_digits(params, scale, {name: changed(params.variant(name), scale.overrides) for name in PROCESSES})


def study(params: Params, scale: Scale) -> dict[str, Any]:
    """Train, sample and measure what is not there yet; everything that the page says, as JSON."""
    params = models(params, scale)
    prepared(params, scale.folder)
    measured = _Study(params, scale)
    fid = {cell: measured.cell(*cell) for cell in measured.cells()}
    return {
        "protocol": measured.protocol(),
        "fid": [{"process": p, "sampler": s, "steps": n, **figure.as_dict()} for (p, s, n), figure in fid.items()],
        "best": [_best(fid, steps) for steps in scale.grid_steps],
        "likelihood": [measured.likelihood(name) for name in PROCESSES],
    }


def _best(fid: Mapping[Cell, Estimate], steps: int) -> dict[str, Any]:
    """Which cell has the lowest FID at a number of steps, and whether it is below the default beyond the noise."""
    there = {cell: figure for cell, figure in fid.items() if cell[2] == steps}
    best = min(there, key=lambda cell: there[cell].value)
    others = [
        below(f"{_named(best)} below {_named(cell)}", there[best], figure)
        for cell, figure in there.items()
        if cell[0] != best[0] or cell[:2] == DEFAULT
    ]
    tied = [cell for cell in there if not _beyond(below("", there[best], there[cell]))]
    default = below(f"{_named(best)} below {_named((*DEFAULT, steps))}", there[best], there[*DEFAULT, steps])
    return {
        "steps": steps,
        "process": best[0],
        "sampler": best[1],
        "undecided": [list(cell[:2]) for cell in tied if cell != best],
        "against_default": default.as_dict(),
        "below_all_other_processes": all(map(_beyond, others)),
    }


def _beyond(comparison: Comparison) -> bool:
    return comparison.outcome == "yes"


def _named(cell: Cell) -> str:
    return f"{cell[0]} by {cell[1]}"


class _Study(DigitsStudy):
    """The four models, and their measures."""

    def __init__(self, params: Params, scale: Scale) -> None:
        super().__init__(params, scale)
        self._models = {name: self._read(name) for name in PROCESSES}

    def _read(self, name: str) -> TrainedModel:
        own = self._params.variant(name).sampling
        return TrainedModel.read(self._scale.folder / MODELS / name, self._device, own)

    def cells(self) -> Iterable[Cell]:
        """Those that the process has levels for."""
        for name in PROCESSES:
            config = self._params.variant(name)
            samplers = [*SAMPLERS, *(["langevin"] if name == "ncsn" else [])]
            for sampler in samplers:
                for steps in self._scale.grid_steps:
                    plan = config.sampling.model_copy(update={**_plan(sampler), "steps": steps})
                    if plan.levels <= config.process.timesteps:
                        yield name, sampler, steps

    def cell(self, name: str, sampler: str, steps: int) -> Estimate:
        """Of samples from the same noise."""
        plan = {**_plan(sampler), "steps": steps, "spacing": _spacing(name, sampler), "clip": True}
        return self.fid(f"{name}, {sampler}, S = {steps}", self._models[name], plan)

    def likelihood(self, name: str) -> dict[str, Any]:
        """The NLL of validation images by the ODE, and the bound where there is one."""
        options = self._params.evaluation.model_copy(
            update={"nll_samples": self._scale.likelihood_images, "nll_ode": True, "nll_timesteps": 100}
        )
        model = self._models[name].model
        ode = split_ode_likelihoods(model, self._data, options, seed=self._params.seed)["validation"]
        bound = split_bounds(model, self._data, options, seed=self._params.seed).get("validation")
        print(f"{name}: {ode.bits_per_dim:.4f} ± {ode.standard_error:.4f} bits/dim by the ODE", flush=True)
        found = {"process": name, "ode": round(ode.bits_per_dim, 4), "ode_error": round(ode.standard_error, 4)}
        if bound is not None:
            found |= {"bound": round(bound.bits_per_dim, 4), "bound_error": round(bound.standard_error, 4)}
        return found

    def protocol(self) -> dict[str, Any]:
        """What the figures depend on."""
        preset = self._params.variant("ddpm")
        return {
            **self.fid_protocol(),
            "likelihood_images": self._scale.likelihood_images,
            "network": preset.network.model_dump(mode="json"),
            "training": preset.training.model_dump(mode="json"),
            "processes": {n: self._params.variant(n).process.model_dump(mode="json") for n in PROCESSES},
        }


def _spacing(name: str, sampler: str) -> str:
    """DDPM's usual one, of the others the process's own. Heun's steps are straight in σ, and the first of a cosine
    schedule is most of all σ there is: it needs a spacing by noise."""
    return "native" if name != "ddpm" else "karras" if sampler == "heun" else "trailing"


def _plan(sampler: str) -> dict[str, Any]:
    return LANGEVIN if sampler == "langevin" else SAMPLERS[sampler]


def markdown(results: Mapping[str, Any]) -> str:
    """The page of the study."""
    protocol = results["protocol"]
    training, extractor, floor = protocol["training"], protocol["extractor"], protocol["fid_floor"]
    cells = {(row["process"], row["sampler"], row["steps"]): row for row in results["fid"]}
    steps = sorted({row["steps"] for row in results["fid"]})
    rows = [
        [PROCESSES[name], f"`{sampler}`", *(_figure(cells.get((name, sampler, count))) for count in steps)]
        for name, sampler in dict.fromkeys(key[:2] for key in cells)
    ]
    parts = [
        "# Which process, which sampler, how many steps",
        "`python -m bench.processes` measures it and writes this page and `bench/results/processes.json`.",
        f"- Data: `{protocol['data']}`, 8×8 grey, {protocol['reference']['images']} training images.\n"
        f"- Models: the presets `ddpm`, `ncsn`, `edm` and `flow`, of one network ({training['steps']} steps of "
        f"{training['batch_size']} images, seed {protocol['seed']}, EMA weights), each trained once: how much another "
        "training would differ is not in the figures.\n"
        f"- FID: {protocol['samples']} images a cell from the same noise, against the training split, in the features "
        f"of the pipeline's own extractor ({extractor['kind']}, SHA-256 {extractor['sha256'][:12]}…). The "
        f"{floor['images']} real validation images score {floor['value']:.2f}.\n"
        "- A step is an evaluation of the network: Heun takes two for each of its steps. x̂₀ is clipped. Spacing: "
        "`trailing` of DDPM and `karras` of its Heun, of the others the process's own.\n"
        f"- ±: standard error by the jackknife over {protocol['groups']} groups of images.",
        "## FID by process, sampler and steps",
        table(["process", "sampler", *(f"{count} steps" for count in steps)], rows),
        "NCSN has as many levels as it was trained on, so that some cells are empty.",
        "## What to pick",
        table(
            ["steps", "lowest FID", "not told apart from it (95 %)", "against `ddpm` by `dpmpp_2m_sde`, the default"],
            (
                [
                    str(row["steps"]),
                    f"`{row['process']}` by `{row['sampler']}`",
                    ", ".join(f"`{p}` by `{s}`" for p, s in row["undecided"]) or "none",
                    "it is the default"
                    if (row["process"], row["sampler"]) == DEFAULT
                    else _against(row["against_default"]),
                ]
                for row in results["best"]
            ),
        ),
        "## NLL of validation images, bits/dim",
        table(
            ["process", "by the ODE", "the bound"],
            (
                [
                    PROCESSES[row["process"]],
                    f"{row['ode']:.3f} ± {row['ode_error']:.3f}",
                    f"{row['bound']:.3f} ± {row['bound_error']:.3f}" if "bound" in row else "none",
                ]
                for row in results["likelihood"]
            ),
        ),
        "Both are upper bounds of the NLL of 8-bit images: the ODE's by uniform dequantisation, with the error of "
        "Hutchinson's estimate; the other is the variational bound, with the error of the choice of timesteps, and is "
        "of processes with numbered levels.",
    ]
    return "\n\n".join(parts) + "\n"


def _figure(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"{row['value']:.2f} ± {row['error']:.2f}"


def _against(comparison: Mapping[str, Any]) -> str:
    words = {"yes": "lower", "no": "higher", "within the noise": "within the noise"}
    return f"{words[comparison['outcome']]} by {comparison['margin']:.2f} ± {comparison['error']:.2f}"


if __name__ == "__main__":
    sys.exit(main())
