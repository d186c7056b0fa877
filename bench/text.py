"""`python -m bench.text`: what is claimed of captions, cascades and inpainting, measured on emoji.

It needs a project in which `make demo-text` has run, and trains there what the cascade is held against: the presets
`emoji`, `text-emoji` and `inpaint-emoji`, if they are not there. A run that was stopped goes on with the same command,
cell by cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.captioned import Setting, cost, hits, means, prompts, ranks, rows, said
from bench.cells import Cells
from bench.claims import Claim, Comparison, Estimate, below, estimate
from bench.judge import GROUPS, Judge
from bench.study import add_project, must_have_run, publish, run
from bench.text_page import markdown
from ddpm.conditioning.columns import PromptColumn
from ddpm.config.params import Params, load_params
from ddpm.data.loader import InMemoryImages
from ddpm.evaluation.image_to_image import masked_validation
from ddpm.evaluation.retrieval import evenly
from ddpm.files import read_json
from ddpm.layout import EXTRACTOR, MODELS
from ddpm.opening import load
from ddpm.stages.train import train_variant

DEMO = "demo-text"
CASCADE, SINGLE, UNCONDITIONAL, PAINTER = "glide", "text-emoji", "emoji", "inpaint-emoji"
TRAINED = (UNCONDITIONAL, SINGLE, PAINTER)  # in this order: the last begins with the weights of the first
SAME_COST = {SINGLE: 5, UNCONDITIONAL: 10}  # steps with which an image costs what it costs the cascade

RESULTS, PAGE = Path("bench/results/text.json"), Path("docs/text-to-image.md")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    scales: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    samples: int = 1000  # of training captions
    held_out: int = 200  # of held-out combinations
    filled: int = 300  # validation images with a part drawn again
    repaint: Mapping[str, Any] = field(default_factory=lambda: {"steps": 50, "resamples": 5, "jump": 5})


FULL = Extent()
QUICK = Extent((1.0, 2.0), 40, 20, 20, {"steps": 4, "resamples": 2, "jump": 2})


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.text", description=__doc__)
    add_project(parser, DEMO)
    project = parser.parse_args(argv).project
    return run("bench.text", lambda: write_study(project))


def write_study(project: Path) -> None:
    """Train and measure what is not there yet, and write it."""
    params = load_params(project / "params.yaml")
    must_have_run(DEMO, project, CASCADE)
    for name in TRAINED:
        if not (project / MODELS / name).is_dir():
            train_variant(params, name, root=project)
    results = TextStudy(params, project, FULL).results()
    publish("text", results, markdown(results), (RESULTS, PAGE))


class TextStudy:
    """A project with the trained models, and the figures of the settings that are asked for."""

    def __init__(self, params: Params, root: Path, extent: Extent) -> None:
        self._params, self._root, self._extent = params, root, extent
        self._judge = Judge(root, seed=params.seed)
        self._cells = Cells(root / ".ddpm" / "text-cells")
        self._drawers = {name: load(root / MODELS / name) for name in (CASCADE, *TRAINED)}

    def results(self) -> dict[str, Any]:
        """The tables and the verdicts, as JSON."""
        table = {setting.key: self._figures(setting, self._params.seed) for setting in self._settings()}
        filled = {name: self._filled(*chosen) for name, chosen in self._fillers.items()}
        costs = {setting.key: self._cost(setting) for setting in self._settings()}
        return {
            "protocol": self._protocol(),
            "settings": rows(table, costs),
            "inpainting": rows(filled, {name: self._cost(Setting(*way)) for name, way in self._fillers.items()}),
            "claims": [claim.as_dict() for claim in (*self._claims(table), *filling_claims(filled))],
        }

    def _scaled(self, scale: float) -> Setting:
        return Setting(CASCADE, {"guidance_scale": scale})

    def _settings(self) -> list[Setting]:
        single = [Setting(SINGLE, {"steps": SAME_COST[SINGLE], "guidance_scale": s}) for s in self._extent.scales[:4]]
        return [
            *(self._scaled(scale) for scale in self._extent.scales),
            *single,
            Setting(SINGLE, {}),
            Setting(UNCONDITIONAL, {"steps": SAME_COST[UNCONDITIONAL]}),
            Setting(UNCONDITIONAL, {}),
        ]

    @property
    def _fillers(self) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """What fills in a part of an image."""
        repaint = {"inpainting": "repaint", "sampler": "ancestral", **self._extent.repaint}
        return {
            "trained": (PAINTER, {}),
            "replace": (UNCONDITIONAL, {"inpainting": "replace"}),
            "repaint": (UNCONDITIONAL, repaint),
        }

    def _claims(self, table: Mapping[str, Mapping[str, Estimate]]) -> list[Claim]:
        """Best scales are chosen by the table and compared on other samples."""

        def best(model: str) -> Setting:
            own = [each for each in self._settings() if each.model == model]
            return min(own, key=lambda each: table[each.key]["fid"].value)

        def again(setting: Setting) -> dict[str, Estimate]:
            return self._figures(setting, self._params.seed + 1)

        def compare(figure: str, a: Setting, b: Setting) -> Comparison:
            return below(f"{figure}: {a.key} < {b.key}", again(a)[figure], again(b)[figure])

        glide, single, alone = best(CASCADE), best(SINGLE), best(UNCONDITIONAL)
        plain, middle, strong = (self._scaled(scale) for scale in (1.0, 2.0, self._extent.scales[-1]))
        return [
            Claim("Two stages have a lower FID than one of equal compute", (compare("fid", glide, single),)),
            Claim("… and find the asked picture more often", (compare("retrieval_5_pixels", single, glide),)),
            Claim("Captions lower the FID of a model of equal cost", (compare("fid", glide, alone),)),
            Claim(
                "Guidance makes pictures show their captions more often",
                (compare("retrieval_5_pixels", plain, middle),),
            ),
            Claim("Guidance raises precision", (compare("precision", plain, middle),)),
            Claim("Guidance lowers recall", (compare("recall", strong, plain),)),
            Claim("FID has its minimum below the largest guidance scale", (compare("fid", glide, strong),)),
        ]

    def _figures(self, setting: Setting, seed: int) -> dict[str, Estimate]:
        drawer, count = self._drawers[setting.model], self._extent.samples
        images = self._cells.drawn(drawer, count, seed, setting.plan)
        features = self._judge.features(InMemoryImages(images), count)
        column = prompts(drawer)
        if column is None:
            found = self._judge.estimates(features)
        else:
            asked = drawer.given(count, seed=seed)[PromptColumn.name]
            right = hits(ranks(self._judge, column, asked, images, features))
            found = self._judge.estimates(features, lambda kept: means(right, kept))
            found |= self._held_out(setting, column, seed)
        print(f"{setting.key}, seed {seed}: {said(found)}", flush=True)
        return found

    def _held_out(self, setting: Setting, column: PromptColumn, seed: int) -> dict[str, Estimate]:
        """R@5 of captions that training has not seen."""
        texts = evenly(self._judge.data.held_out_captions, self._extent.held_out)
        drawer = self._drawers[setting.model]
        images = self._cells.drawn(drawer, len(texts), seed, setting.plan, prompt=texts)
        features = self._judge.features(InMemoryImages(images), len(texts))
        right = hits(ranks(self._judge, column, column.tokenizer.encode(texts)[0], images, features))
        near = right["retrieval_5_pixels"]
        share = estimate(lambda kept: float(near[torch.from_numpy(kept)].mean()), len(texts), GROUPS)
        return {"held_out_retrieval_5_pixels": share}

    def _filled(self, model: str, plan: Mapping[str, Any]) -> dict[str, Estimate]:
        """How near validation images of which a part was drawn again are to what they were, and to the real ones."""
        count, seed = self._extent.filled, self._params.seed
        image, mask = masked_validation(self._judge.data, count, seed=seed)
        images = self._cells.drawn(self._drawers[model], count, seed, plan, image=image, mask=mask)
        error = torch.from_numpy(images.astype(np.float64) - image)
        drawn = torch.from_numpy(~mask)[..., None].expand(error.shape)

        def of(figure: Any) -> Estimate:
            return estimate(lambda kept: float(figure(torch.from_numpy(kept))), count, GROUPS)

        found = {
            "known_error": of(lambda kept: error[kept][~drawn[kept]].abs().max()),
            "rmse": of(lambda kept: error[kept][drawn[kept]].square().mean().sqrt()),
            "fid": self._judge.fid(images),
        }
        print(f"{model}, {dict(plan)}: {said(found)}")
        return found

    def _cost(self, setting: Setting) -> float:
        """10⁹ operations of an image."""
        return cost(self._drawers[setting.model], setting.plan)

    def _protocol(self) -> dict[str, Any]:
        extent, data = self._extent, self._judge.data
        train, validation = data.split("train"), data.split("validation")
        floor = self._judge.distance(validation, len(validation))
        return {
            "data": data.manifest.name,
            "shape": data.manifest.shape,
            "attribution": self._drawers[CASCADE].attribution,
            "extractor": read_json(self._root / EXTRACTOR / "extractor.json"),
            "reference": {"images": len(train), "sha256": train.sha256},
            "validation": {"images": len(validation), "fid": round(floor, 4)},
            "samples": extent.samples,
            "held_out": extent.held_out,
            "filled": extent.filled,
            "seeds": [self._params.seed, self._params.seed + 1],
            "groups": GROUPS,
            "steps": {name: self._params.variant(name).training.steps for name in TRAINED},
        }


def filling_claims(filled: Mapping[str, Mapping[str, Estimate]]) -> list[Claim]:
    """Of a model that was trained to fill in a part of an image, beside one that was not."""

    def compare(figure: str) -> tuple[Comparison, ...]:
        return tuple(
            below(f"{figure}: trained < {other}", filled["trained"][figure], filled[other][figure])
            for other in ("replace", "repaint")
        )

    return [
        Claim("Trained inpainting looks more real than untrained (FID of the whole images)", compare("fid")),
        Claim("Trained inpainting is nearer to what was there", compare("rmse")),
    ]


if __name__ == "__main__":
    sys.exit(main())
