"""The part of the ablation about guidance: each figure over the guidance scale, on one data set.

Every table is of the samples of one seed. Where a claim is about the best scale, that scale is chosen on this seed, and
the figures that are compared are of samples of another one: no verdict is on samples that something was chosen by.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.cells import Cells, TrainedModel
from bench.claims import Estimate
from bench.guidance_claims import CLASSIFIER, ITSELF, WEAKER, Setting, guidance_claims
from bench.judge import GROUPS, Judge, MoreFigures, spatial
from ddpm.compute.device import pick_device
from ddpm.conditioning.columns import Given
from ddpm.config.params import Params
from ddpm.data.loader import InMemoryImages
from ddpm.evaluation.extractor import Features
from ddpm.evaluation.metrics import frechet_distance, inception_score
from ddpm.files import read_json
from ddpm.layout import EXTRACTOR, MODELS

INTERVAL = (0.2, 0.8)  # shares of the process


@dataclass(frozen=True)
class Extent:
    """How much is measured. A classifier's scale is counted from 0, the others' from 1."""

    scales: tuple[float, ...] = (0, 0.5, 1, 1.1, 1.2, 1.3, 1.5, 2, 3, 5)
    within: tuple[float, ...] = (1.5, 2, 3)  # scales that are also measured in INTERVAL
    classifier: tuple[float, ...] = (0, 0.5, 1, 2, 5, 10)
    weaker: tuple[float, ...] = (1.25, 1.5, 2, 3)
    samples: int = 2000  # images a cell
    manifold: int = 2000  # real images that precision and recall are measured against, at most


FULL = Extent()
# Of images of more pixels, whose cells take minutes of a core each.
LARGER = Extent(scales=(1, 1.1, 1.25, 1.5, 2, 3, 5), within=(1.5, 2), samples=500)
QUICK = Extent((1, 1.5, 3), (1.5,), (0, 2), (1.5,), 80, 80)


@dataclass(frozen=True)
class Subjects:
    """The models of one data set, by their names below `models/`; None: not measured."""

    conditional: str
    unconditional: str | None = None
    classifier: str | None = None
    weaker: str | None = None


class GuidanceStudy:
    """A prepared project with trained models, and the figures of the settings that are asked for."""

    def __init__(self, params: Params, root: Path, cells: Path, subjects: Subjects, extent: Extent) -> None:
        """
        Args:
            root: a project with prepared/, extractor/ and models/; nothing is written there.
            cells: a directory for what was drawn.
        """
        self._params, self._root, self._subjects, self._extent = params, root, subjects, extent
        self._device = pick_device()
        self._judge = Judge(root, manifold=extent.manifold, seed=params.seed)
        self._data = self._judge.data
        self._cells = Cells(cells)
        self._trained = {
            ITSELF: self._read(subjects.conditional),
            CLASSIFIER: self._read(subjects.unconditional, subjects.classifier),
            WEAKER: self._read(subjects.conditional, subjects.weaker),
        }
        self._known: dict[tuple[Setting, int], dict[str, Estimate]] = {}

    def results(self) -> dict[str, Any]:
        """The table and the verdicts, as JSON."""
        table = {setting: self._figures(setting, self._seeds[0]) for setting in self._settings()}
        claims = guidance_claims(table, lambda setting: self._figures(setting, self._seeds[1]))
        return {
            "data": self._data.manifest.name,
            "protocol": self._protocol(),
            "settings": [
                {
                    "guide": setting.guide,
                    "scale": setting.scale,
                    "interval": setting.interval,
                    "figures": {name: figure.as_dict() for name, figure in figures.items()},
                }
                for setting, figures in table.items()
            ],
            "claims": [claim.as_dict() for claim in claims],
        }

    @property
    def _seeds(self) -> tuple[int, int]:
        """Of the tables, by which a best scale is chosen, and of the comparisons of what was chosen."""
        return self._params.seed, self._params.seed + 1

    def _settings(self) -> list[Setting]:
        extent = self._extent
        found = [Setting(ITSELF, scale) for scale in extent.scales]
        found += [Setting(ITSELF, scale, INTERVAL) for scale in extent.within]
        if self._subjects.classifier is not None:
            found += [Setting(CLASSIFIER, scale) for scale in extent.classifier]
        if self._subjects.weaker is not None:
            found += [Setting(WEAKER, scale) for scale in extent.weaker]
        return found

    def _read(self, name: str | None, guide: str | None = None) -> TrainedModel | None:
        if name is None:
            return None
        folder, plan = self._root / MODELS, self._params.variant(self._subjects.conditional).sampling
        plan = plan.model_copy(update={"guidance_scale": 1.0, "guidance_interval": None})
        return TrainedModel.read(folder / name, self._device, plan, None if guide is None else folder / guide)

    def _protocol(self) -> dict[str, Any]:
        params, extent, names = self._params, self._extent, self._subjects
        train, validation = self._data.split("train"), self._data.split("validation")
        own = params.variant(names.conditional)
        shown = {
            role: {"name": name, "training_steps": params.variant(name).training.steps}
            for role, name in vars(names).items()
            if name is not None
        }
        floor, real = self._judge.features(validation, len(validation)), self._judge.real
        return {
            "shape": self._data.manifest.shape,
            "models": shown,
            "sampler": {"name": own.sampling.sampler, "steps": own.sampling.steps},
            "samples": extent.samples,
            "seeds": self._seeds,
            "groups": GROUPS,
            "interval": INTERVAL,
            "reference": {"images": len(train), "sha256": train.sha256, "manifold": len(self._judge.manifold)},
            "extractor": read_json(self._root / EXTRACTOR / "extractor.json"),
            "real": {
                "images": len(validation),
                "fid": round(frechet_distance(floor.features, real.features), 4),
                "spatial_fid": round(frechet_distance(spatial(floor), spatial(real)), 4),
                "inception_score": round(inception_score(floor.logits, 1)[0], 4),
            },
        }

    def _figures(self, setting: Setting, seed: int) -> dict[str, Estimate]:
        """The figures of a setting on the samples of a seed."""
        if (setting, seed) not in self._known:
            self._known[setting, seed] = self._draw(setting, seed)
        return self._known[setting, seed]

    def _draw(self, setting: Setting, seed: int) -> dict[str, Estimate]:
        trained, count = self._trained[setting.guide], self._extent.samples
        assert trained is not None
        images = self._cells.samples(trained, count, seed, setting.overrides)
        features = self._judge.features(InMemoryImages(images), count)
        found = self._judge.estimates(features, _accuracy(features, trained.model.given(count, seed=seed)))
        said = ", ".join(f"{name} {figure.value:.3f} ± {figure.error:.3f}" for name, figure in found.items())
        print(f"{self._data.manifest.name}, guide: {setting.guide}, {setting}, seed {seed}: {said}", flush=True)
        return found


def _accuracy(features: Features, given: Given) -> MoreFigures:
    """The class accuracy of samples, if they are asked for classes."""
    if "label" not in given:
        return lambda kept: {}
    right = (features.logits.argmax(1) == torch.from_numpy(given["label"])).double()
    return lambda kept: {"class_accuracy": float(right[kept].mean())}
