"""How a ControlNet learns to obey: the agreement of what it draws with its hints, over the steps of its training.

    python -m bench.control PROJECT control-emoji       # a project with the base trained, prepared/ and extractor/

It trains the model as `ddpm train` does, measures its averaged weights on the way, and writes the model, the table as
bench/results/control.json, and docs/control.md. Zhang et al. 2023 (§4.1 and figure 4) report a sudden convergence: the
control is ignored for long and then followed, within a few hundred steps.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.page import table
from ddpm.conditioning.hints import DerivedHint
from ddpm.config.params import Params, load_params
from ddpm.data.store import PreparedData
from ddpm.evaluation.agreement import Agreement, hint_column
from ddpm.evaluation.extractor import load_extractor
from ddpm.evaluation.image_metrics import ImageMeasure
from ddpm.evaluation.image_to_image import like_validation
from ddpm.evaluation.progress import unseen
from ddpm.figures.figure import Reading, number
from ddpm.files import write_bytes, write_json
from ddpm.layout import EXTRACTOR, FEATURES, MODELS, PREPARED
from ddpm.model import Model, save
from ddpm.model.network import columns_for
from ddpm.stages.fingerprint import decisions, fingerprint
from ddpm.stages.train import data_facts, hashes_of
from ddpm.training.configured import card_of, initial, train_configured
from ddpm.training.ema import EMA
from ddpm.training.options import Hooks, LossPoint

RESULTS, PAGE = Path("bench/results/control.json"), Path("docs/control.md")
MOMENTS = (0, 25, 50, 100, 150, 200, 300, 400, 500, 700, 1000)
NO_LOSS = LossPoint(0, 0.0, 0.0, 0.0)  # before the first step
SETTINGS: dict[str, dict[str, Any]] = {
    "0: the base": {"control_scale": 0.0},
    "0.5": {"control_scale": 0.5},
    "1": {},
    "1.5": {"control_scale": 1.5},
    "1 in the first half of the steps": {"control_interval": (0.5, 1.0)},
    "guess mode": {"guess": True},
}


class Judge:
    """Figures of a model with a control on the same hints and the same noise each time."""

    def __init__(self, params: Params, data: PreparedData, samples: int, steps: int, root: Path) -> None:
        extractor = load_extractor(root / EXTRACTOR, weights=params.extractor.weights, device=torch.device("cpu"))
        self._measure = ImageMeasure(params, data, extractor, root / FEATURES, unseen)
        self._data, self._samples, self._steps, self._seed = data, samples, steps, params.seed
        self._rows = np.arange(samples) % len(data.split("validation"))

    @property
    def fid_of_hinted(self) -> float:
        """The FID of the images that the hints are of, as many as are drawn."""
        return self._measure.fid_of(self._data.split("validation").rows(self._rows))

    def figures(self, model: Model, **setting: Any) -> dict[str, float]:
        """The agreement with the hints, and FID."""
        column = hint_column(model.columns)
        assert isinstance(column, DerivedHint)
        asked = like_validation(model.columns, self._data, self._rows)
        drawn = model.sample(self._samples, seed=self._seed, steps=self._steps, **asked, **setting)
        agreement = Agreement(column, model.codec, asked[column.name])
        agreement.add(drawn)
        return {**agreement.figures(), "fid": self._measure.fid_of(drawn)}


def study(root: Path, variant: str, samples: int, steps: int) -> dict[str, Any]:
    """Train the model of a project and write it; what it scores on the way, and at the end by its settings."""
    params = load_params(root / "params.yaml")
    config, data = params.variant(variant), PreparedData.open(root / PREPARED)
    facts = data_facts(data, config, variant, root)
    start = initial(params.seed, config, data.codec, columns_for(config, facts, variant), root=root)
    assert start.controlled is not None
    hashes = {**hashes_of(data, facts), "model that it controls": start.controlled.sha256}
    mark = fingerprint(decisions(config, params.seed, hashes, start.precision, start.device))
    judge, rows, curve = Judge(params, data, samples, steps, root), list[dict[str, Any]](), [NO_LOSS]

    def model_now(network: nn.Module) -> Model:
        card = card_of(variant, config, facts, start, curve, seed=params.seed, fingerprint=mark, own_plan=False)
        return Model(network.eval().requires_grad_(False), card)

    def measured(step: int) -> None:
        rows.append({"step": step, **judge.figures(model_now(copy.deepcopy(start.network)))})
        print(json.dumps(rows[-1]), flush=True)

    def on_average(step: int, ema: EMA) -> None:
        if step in MOMENTS:
            with ema.in_place():
                measured(step)

    measured(0)
    hooks = Hooks(on_average=on_average, on_point=curve.append)
    train_configured(
        start.network,
        config,
        data.codec,
        data.split("train"),
        hooks,
        seed=params.seed,
        precision=start.precision,
    )
    model = model_now(start.network)
    save(model, root / MODELS / variant)
    return {
        "variant": variant,
        "base": start.controlled.variant,
        "data": facts.name,
        "hint": str(hint_column(model.columns)),
        "samples": samples,
        "sampler": f"{config.sampling.sampler} in {steps} steps",
        "batch_size": config.training.batch_size,
        "fid_of_hinted": judge.fid_of_hinted,
        "over_steps": rows,
        "settings": [{"setting": name, **judge.figures(model, **setting)} for name, setting in SETTINGS.items()],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The page."""
    key = f"control_{found['hint'].split()[0]}"

    def cells(row: Mapping[str, Any], first: str) -> list[str]:
        reading = Reading.of(row, key)
        return [str(row[first]), str(reading), number(row[f"{key}_chance"]), number(row["fid"])]

    heads = ["agreement with the hint", "with the hint of another image", "FID"]
    return "\n\n".join(
        (
            "# How a ControlNet learns to obey",
            f"`{found['variant']}` on `{found['base']}` ({found['data']}), {found['hint']}; averaged weights, batches "
            f"of {found['batch_size']}. {found['samples']} samples of as many hints of validation images by "
            f"{found['sampler']}, from the same noise in every row. `python -m bench.control PROJECT "
            f"{found['variant']}` makes this page. The agreement is the F1 of edges with a tolerance of a pixel, with "
            f"a 95 % interval. The images that the hints are of have FID {number(found['fid_of_hinted'])} themselves: "
            "they are few, and of other emoji than the training images.",
            "## Over the steps of training",
            "At step 0 it is the base, bit for bit.",
            table(["step", *heads], (cells(row, "step") for row in found["over_steps"])),
            "## By the weight of the control, after training",
            table(["setting", *heads], (cells(row, "setting") for row in found["settings"])),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("project", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    found = study(options.project, options.variant, options.samples, options.steps)
    write_json(RESULTS, found)
    write_bytes(PAGE, (markdown(found) + "\n").encode())


if __name__ == "__main__":
    main()
