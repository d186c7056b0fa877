"""`make ablation`: what the papers claim of samplers, variances, schedules, objectives and guidance, measured.

The preset `ddpm` of params.yaml is trained six times, {L_simple, L_hybrid, L_vlb} × {linear, cosine}, on the digits,
by the pipeline's own stages in a project folder of its own. For guidance the presets `conditional`, `ddpm` and
`classifier` are trained there, and a weaker `conditional`. Fashion-MNIST is measured if there is a project with a
trained `conditional-fashion`. A run that was stopped goes on with the same command, cell by cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench import guided
from bench.cells import Cells, TrainedModel
from bench.claims import Estimate, better_fixed_variance, estimate, model_claims, sampler_claims
from bench.guided import GuidanceStudy, Subjects
from bench.judge import GROUPS, Judge
from bench.page import markdown
from bench.study import publish, run
from ddpm.compute.device import pick_device
from ddpm.config.data import DataConfig
from ddpm.config.model import VariantConfig
from ddpm.config.objective import ObjectiveConfig
from ddpm.config.params import Params, load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.errors import UserError
from ddpm.evaluation.distances import chosen
from ddpm.files import read_json
from ddpm.layout import EXTRACTOR, MODELS
from ddpm.stages.extractor import fit_extractor
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant

PRESET = "ddpm"
LOSSES, SCHEDULES = ("simple", "hybrid", "vlb"), ("linear", "cosine")
PRESET_AS = ("simple", "linear")  # the one of the six that is sampled by every sampler
# The digits' models for guidance, presets but for the last, which is the first, narrower and trained for fewer steps.
GUIDED = Subjects(conditional="conditional", unconditional="ddpm", classifier="classifier", weaker="weaker")
WEAKER: dict[str, dict[str, Any]] = {"network": {"width": 8, "groups": 4}, "training": {"steps": 500}}
FASHION = "conditional-fashion"
GUIDANCE_DATA = ("digits", "fashion-mnist")

# What a column of the first tables changes of the default plan.
SAMPLERS: dict[str, dict[str, Any]] = {
    "ancestral-large": {"sampler": "ancestral", "variance": "fixed_large"},
    "ancestral-small": {"sampler": "ancestral", "variance": "fixed_small"},
    "ddim-0": {"sampler": "ddim", "eta": 0.0},
    "ddim-0.5": {"sampler": "ddim", "eta": 0.5},
    "ddim-1": {"sampler": "ddim", "eta": 1.0},
    "dpmpp_2m": {"sampler": "dpmpp_2m"},
}
SPACINGS = ("leading", "trailing")  # DDIM's, and the one that is the default here
# Improved DDPM's: the model's own variance, and both ends of the process visited.
MODEL_PLAN = {"sampler": "ancestral", "spacing": "linspace"}


@dataclass(frozen=True)
class Scale:
    """How much is computed."""

    name: str
    results: Path
    page: Path
    grid_steps: tuple[int, ...] = (5, 10, 20, 50, 100, 1000)
    few_steps: tuple[int, ...] = (10, 50)  # at which the six models are compared
    samples: int = 500  # images a cell
    likelihood_images: int = 100  # validation images
    likelihood_groups: int = 5  # of them, for its jackknife
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of the preset's sections
    extractor: Mapping[str, Any] = field(default_factory=dict)  # overrides
    guidance: guided.Extent = guided.FULL
    fashion: guided.Extent = guided.LARGER
    guided_overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of the presets for guidance

    @property
    def folder(self) -> Path:
        """The project in which the stages run, and the cells."""
        return Path(".ddpm") / self.name


# Wider and longer than the preset, which is made for `make demo`.
FULL = Scale(
    "ablation",
    Path("bench/results/ablation.json"),
    Path("docs/ablation.md"),
    overrides={"network": {"width": 32}, "training": {"steps": 2200}},
)
# The whole way in seconds, for tests; its figures mean nothing.
QUICK = Scale(
    "ablation-quick",
    Path(".ddpm/ablation-quick/ablation.json"),
    Path(".ddpm/ablation-quick/ablation.md"),
    grid_steps=(2, 5),
    few_steps=(2,),
    samples=80,
    likelihood_images=6,
    likelihood_groups=3,
    overrides={"process": {"timesteps": 10}, "training": {"steps": 4, "batch_size": 8, "log_every": 2}},
    extractor={"steps": 20},
    guidance=guided.QUICK,
    fashion=guided.QUICK,
    guided_overrides={
        "process": {"timesteps": 10},
        "training": {"steps": 4, "batch_size": 8, "log_every": 2},
        "sampling": {"steps": 2},
    },
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.ablation", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the whole way in seconds; the figures mean nothing")
    parser.add_argument(
        "--guidance",
        nargs="?",
        const="all",
        choices=["all", *GUIDANCE_DATA],
        help="measure guidance alone, on all data or on one data set; the other results stay as they were written",
    )
    parser.add_argument(
        "--fashion",
        type=Path,
        default=Path(".ddpm/ablation-fashion"),
        metavar="PROJECT",
        help="a project with prepared Fashion-MNIST, its extractor and a trained model conditional-fashion; without it "
        "Fashion-MNIST is left out (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    scale = QUICK if arguments.quick else FULL
    return run("ablation", lambda: write_study(scale, arguments.guidance, arguments.fashion))


def write_study(scale: Scale, guidance_of: str | None, fashion: Path) -> None:
    """Train and measure what is not there yet, and write it.

    Args:
        guidance_of: as the option `--guidance`.
        fashion: as the option.
    """
    params = load_params()
    results = _read(scale.results) if guidance_of else study(params, scale)
    data = GUIDANCE_DATA if guidance_of in (None, "all") else (guidance_of,)
    results["guidance"] = guidance(params, scale, fashion, data, results.get("guidance", []))
    publish(scale.name, results, markdown(results), (scale.results, scale.page), points=_points(results))


def study(params: Params, scale: Scale) -> dict[str, Any]:
    """Train, sample and measure what is not there yet; everything that the page says, as JSON."""
    params = six_models(params, scale)
    prepared(params, scale.folder)
    measured = _Study(params, scale)
    grid = measured.samplers()
    fid, bits = measured.models()
    claims = [*sampler_claims(grid), *model_claims(fid, better_fixed_variance(bits))]
    return {
        "protocol": measured.protocol(),
        "samplers": [
            {"spacing": spacing, "sampler": name, "steps": steps, **e.as_dict()}
            for (spacing, name, steps), e in grid.items()
        ],
        "fid": [
            {"loss": loss, "schedule": schedule, "steps": steps, **e.as_dict()}
            for (loss, schedule, steps), e in fid.items()
        ],
        "bits_per_dim": [
            {"loss": loss, "schedule": schedule, "variance": variance, "steps": steps, **e.as_dict()}
            for (loss, schedule, variance, steps), e in bits.items()
        ],
        "claims": [claim.as_dict() for claim in claims],
    }


def _read(results: Path) -> dict[str, Any]:
    try:
        return read_json(results)
    except (OSError, ValueError):
        raise UserError(f"--guidance: {results} is missing or damaged; leave --guidance out to measure all") from None


def guidance(
    params: Params, scale: Scale, fashion: Path, data: Sequence[str], before: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Measure guidance; as JSON, an entry a data set. An entry of one that is left out says why.

    Args:
        fashion: as the option.
        data: which of `GUIDANCE_DATA` are measured.
        before: the entries of an earlier run; those of the other data sets are kept.
    """
    measure = {
        "digits": lambda: _guidance_of_digits(params, scale),
        "fashion-mnist": lambda: _guidance_of_fashion(params, scale, fashion),
    }
    entries = {entry["data"]: entry for entry in before} | {name: measure[name]() for name in data}
    return [entries[name] for name in GUIDANCE_DATA if name in entries]


def _guidance_of_digits(params: Params, scale: Scale) -> dict[str, Any]:
    """Train the models that it needs, too."""
    digits = guided_models(params, scale)
    prepared(digits, scale.folder)
    return GuidanceStudy(digits, scale.folder, scale.folder / "cells", GUIDED, scale.guidance).results()


def _guidance_of_fashion(params: Params, scale: Scale, fashion: Path) -> dict[str, Any]:
    if not (fashion / MODELS / FASHION / "model.json").is_file():
        return {"data": "fashion-mnist", "left_out": f"no trained model {FASHION} in the project {fashion}"}
    models = {FASHION: changed(params.variant(FASHION), scale.guided_overrides)}
    larger = params.model_copy(update={"models": models})
    return GuidanceStudy(larger, fashion, scale.folder / "cells", Subjects(FASHION), scale.fashion).results()


def guided_models(params: Params, scale: Scale) -> Params:
    """The pipeline's parameters with the digits as data, and with the models for guidance."""
    presets = {name: params.variant(name) for name in ("conditional", "ddpm", "classifier")}
    presets["weaker"] = changed(presets["conditional"], WEAKER)
    models = {name: changed(config, scale.guided_overrides) for name, config in presets.items()}
    return on_digits(params, scale, models)


def changed(config: VariantConfig, overrides: Mapping[str, Mapping[str, Any]]) -> VariantConfig:
    """A model with other values of some keys of its sections."""
    sections = {name: getattr(config, name).model_copy(update=update) for name, update in overrides.items()}
    return config.model_copy(update=sections)


def on_digits(params: Params, scale: Scale, models: Mapping[str, VariantConfig]) -> Params:
    """The pipeline's parameters with the digits as data, and with these models."""
    extractor = params.extractor.model_copy(update={"kind": "classifier", **scale.extractor})
    return params.model_copy(
        update={"data": DataConfig(), "extractor": extractor, "models": models, "variants": tuple(models)}
    )


def prepared(params: Params, root: Path) -> None:
    """Run the stages up to the trained models; what was done before is done at once."""
    root.mkdir(parents=True, exist_ok=True)
    fetch(params, root=root)
    prepare(params, root=root)
    fit_extractor(params, root=root)
    for name in params.models:
        # A finished training's state stays until something that decides it changes.
        train_variant(params, name, root=root)


def six_models(params: Params, scale: Scale) -> Params:
    """The pipeline's parameters with the digits as data, and with the preset in all its objectives and schedules."""
    preset = changed(params.variant(PRESET), scale.overrides).model_copy(update={"sampling": SamplingConfig()})
    models = {
        name_of(loss, schedule): preset.model_copy(
            update={
                "process": preset.process.model_copy(
                    update={
                        "schedule": schedule,
                        "variance": "fixed_small" if loss == "simple" else "learned_range",
                    }
                ),
                "objective": ObjectiveConfig(loss=loss, timestep_sampler="importance" if loss == "vlb" else "uniform"),
            }
        )
        for loss in LOSSES
        for schedule in SCHEDULES
    }
    return on_digits(params, scale, models)


def name_of(loss: str, schedule: str) -> str:
    """The name of a model of the study."""
    return f"{loss}-{schedule}"


class DigitsStudy:
    """A prepared project of the digits, its models as they are asked for, and their FID."""

    def __init__(self, params: Params, scale: Scale) -> None:
        self._params, self._scale = params, scale
        self._device = pick_device()
        self._judge = Judge(scale.folder, seed=params.seed)
        self._data = self._judge.data
        self._cells = Cells(scale.folder / "cells")

    def fid(self, what: str, trained: TrainedModel, plan: Mapping[str, Any]) -> Estimate:
        """Of samples from the same noise.

        Args:
            what: they are of, for the line that is printed.
            plan: keys of `sampling` in which it differs from the model's own plan.
        """
        images = self._cells.samples(trained, self._scale.samples, self._params.seed, plan)
        figure = self._judge.fid(images)
        print(f"{what}: FID {figure.value:.2f} ± {figure.error:.2f}", flush=True)
        return figure

    def fid_protocol(self) -> dict[str, Any]:
        """What the FIDs depend on, and that of real images."""
        train, validation = self._data.split("train"), self._data.split("validation")
        floor = self._judge.distance(validation, len(validation))
        return {
            "data": self._data.manifest.name,
            "extractor": read_json(self._scale.folder / EXTRACTOR / "extractor.json"),
            "reference": {"split": "train", "images": len(train), "sha256": train.sha256},
            "fid_floor": {"images": len(validation), "value": round(floor, 4)},
            "seed": self._params.seed,
            "samples": self._scale.samples,
            "groups": GROUPS,
        }


class _Study(DigitsStudy):
    """The six models, and their measures."""

    def samplers(self) -> dict[tuple[str, str, int], Estimate]:
        """FID by spacing, sampler and S, of the preset itself."""
        trained = self._trained(*PRESET_AS)
        return {
            (spacing, name, steps): self.fid(
                f"{spacing}, {name}, S = {steps}", trained, {**plan, "spacing": spacing, "steps": steps}
            )
            for spacing in SPACINGS
            for steps in self._scale.grid_steps
            for name, plan in SAMPLERS.items()
        }

    def models(self) -> tuple[dict[tuple[str, str, int], Estimate], dict[tuple[str, str, str, int], Estimate]]:
        """FID by loss, schedule and S, and bits/dim by loss, schedule, variance and S."""
        fid, bits = {}, {}
        for loss in LOSSES:
            for schedule in SCHEDULES:
                trained = self._trained(loss, schedule)
                for steps in self._scale.few_steps:
                    what = f"{name_of(loss, schedule)}, S = {steps}"
                    fid[loss, schedule, steps] = self.fid(what, trained, {**MODEL_PLAN, "steps": steps})
                process = trained.model.card.config.process
                learned = process.variance == "learned_range"
                for variance in ("learned_range",) if learned else ("fixed_large", "fixed_small"):
                    for steps in (*self._scale.few_steps, process.timesteps):
                        what = f"{name_of(loss, schedule)}, {variance}, S = {steps}"
                        bits[loss, schedule, variance, steps] = self._bits(what, trained, variance, steps)
        return fid, bits

    def protocol(self) -> dict[str, Any]:
        """What the figures depend on."""
        scale, preset = self._scale, self._params.variant(name_of(*PRESET_AS))
        return {
            **self.fid_protocol(),
            "likelihood": {"images": scale.likelihood_images, "groups": scale.likelihood_groups},
            "spacing": {"samplers": list(SPACINGS), "models": MODEL_PLAN["spacing"]},
            "clip": SamplingConfig().clip,
            "timesteps": preset.process.timesteps,
            "network": preset.network.model_dump(mode="json"),
            "training": preset.training.model_dump(mode="json"),
        }

    def _trained(self, loss: str, schedule: str) -> TrainedModel:
        """A model of the study."""
        name, root = name_of(loss, schedule), self._scale.folder
        return TrainedModel.read(root / MODELS / name, self._device, SamplingConfig())

    def _bits(self, what: str, trained: TrainedModel, variance: str, steps: int) -> Estimate:
        scale, split = self._scale, self._data.split("validation")
        images = split.rows(chosen(len(split), scale.likelihood_images, self._params.seed))
        bounds = self._cells.bounds(trained, np.split(images, scale.likelihood_groups), variance=variance, steps=steps)
        figure = estimate(lambda kept: float(bounds[kept].mean()), len(bounds), len(bounds))
        print(f"{what}: {figure.value:.4f} ± {figure.error:.4f} bits/dim", flush=True)
        return figure


def _points(results: Mapping[str, Any]) -> list[tuple[int, dict[str, float]]]:
    """The figures for MLflow: a metric a row of the tables, S as its step."""
    named = [(f"fid/{row['spacing']}/{row['sampler']}", row) for row in results["samplers"]]
    named += [(f"fid/{row['loss']}-{row['schedule']}", row) for row in results["fid"]]
    named += [
        (f"bits_per_dim/{row['loss']}-{row['schedule']}-{row['variance']}", row) for row in results["bits_per_dim"]
    ]
    return [(row["steps"], {name: row["value"]}) for name, row in named]


if __name__ == "__main__":
    sys.exit(main())
