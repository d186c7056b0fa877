"""`python -m bench.clip_guidance`: guidance by a CLIP of noisy images against classifier-free guidance, measured on
emoji (GLIDE, §5.1).

It needs a project in which `make demo-unclip` has run, and trains there the presets `clip-noised-emoji` and
`text-emoji`, if they are not there. A run that was stopped goes on with the same command, cell by cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from bench.captioned import (
    ALIGNMENT,
    ASKED,
    Asked,
    Captioned,
    Figures,
    Setting,
    Table,
    as_dear,
    best,
    cost,
    equally_aligned,
    rows,
)
from bench.claims import Claim, Comparison, below
from bench.clip_guidance_page import markdown
from bench.study import add_project, must_have_run, publish, run
from bench.unclip_models import training_facts
from ddpm.compute.device import pick_device
from ddpm.config.params import Params, load_params
from ddpm.layout import MODELS
from ddpm.model import Model
from ddpm.opening import load
from ddpm.stages.train import train_variant
from flows.demo_unclip import ENCODER, UNCLIP

DEMO = "demo-unclip"
CAPTIONS, GUIDE = "text-emoji", "clip-noised-emoji"
FREE, BY_CLIP = CAPTIONS, f"{CAPTIONS} by CLIP"  # how it is guided, in the settings

RESULTS, PAGE = Path("bench/results/clip-guidance.json"), Path("docs/clip-guidance.md")


@dataclass(frozen=True)
class Extent:
    """How much is measured. The scale 1 without a classifier, and 0 of a CLIP, is the model unguided."""

    free: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 5.0)
    by_clip: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    asked: Asked = ASKED


FULL = Extent()
QUICK = Extent((1.0, 2.0), (5.0,), Asked(20, 2, 20))


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.clip_guidance", description=__doc__)
    add_project(parser, DEMO)
    project = parser.parse_args(argv).project
    return run("bench.clip_guidance", lambda: write_study(project))


def write_study(project: Path) -> None:
    """Measure what is not there yet, and write it."""
    must_have_run(DEMO, project, UNCLIP)
    results = GuidanceStudy(load_params(project / "params.yaml"), project, FULL).results()
    publish("clip-guidance", results, markdown(results), (RESULTS, PAGE))


class GuidanceStudy:
    """A model of captions, guided in both ways, and the figures of the settings that are asked for."""

    def __init__(self, params: Params, root: Path, extent: Extent) -> None:
        self._params, self._extent = params, extent
        for name in (GUIDE, CAPTIONS):
            if not (root / MODELS / name).is_dir():
                train_variant(params, name, root=root)
        self._captioned = Captioned(root, "clip-guidance", encoder=ENCODER, asked=extent.asked, seed=params.seed)
        model = cast(Model, load(root / MODELS / CAPTIONS, pick_device()))
        self._models = {FREE: model, BY_CLIP: model.guided_by((root / MODELS / GUIDE).absolute())}

    def results(self) -> dict[str, Any]:
        """The table and the verdicts, as JSON."""
        settings = self._settings()
        table = {setting.key: self._figures(setting, self._params.seed) for setting in settings}
        trained = (self._captioned.clip, self._models[BY_CLIP].guide, self._models[FREE])
        return {
            "protocol": self._captioned.protocol(self._models[FREE].attribution),
            "training": training_facts(model for model in trained if model is not None),
            "settings": rows(table, {setting.key: self._cost(setting) for setting in settings}),
            "claims": [claim.as_dict() for claim in guidance_claims(settings, table, self._again)],
        }

    def _settings(self) -> list[Setting]:
        """Each scale of both ways. By the CLIP with as many steps as make an image about as dear as in the other."""
        free = [Setting(FREE, {"guidance_scale": scale}) for scale in self._extent.free]
        wanted = max(map(self._cost, free))

        def by_clip(scale: float) -> Setting:
            return as_dear(
                lambda steps: Setting(BY_CLIP, {"steps": steps, "guidance_scale": scale}), self._cost, wanted
            )

        return [*free, *map(by_clip, self._extent.by_clip)]

    def _cost(self, setting: Setting) -> float:
        return cost(self._models[setting.model], setting.plan)

    def _figures(self, setting: Setting, seed: int) -> Figures:
        return self._captioned.figures(setting, self._models[setting.model], seed)

    def _again(self, setting: Setting) -> Figures:
        return self._figures(setting, self._params.seed + 1)


def guidance_claims(settings: Sequence[Setting], table: Table, again: Callable[[Setting], Figures]) -> list[Claim]:
    """Of classifier-free guidance and guidance by a CLIP (Nichol et al. 2022, §5.1, figures 5 and 6).

    Args:
        settings: that at scale 1 of the classifier-free ones is the model unguided.
        table: the figures of all settings, by their keys. Best settings are chosen by it.
        again: the figures of a setting on other samples, on which what was chosen is compared.
    """
    (plain,) = (each for each in settings if each.model == FREE and each.plan["guidance_scale"] == 1)
    free = [each for each in settings if each.model == FREE and each != plain]
    by_clip = [each for each in settings if each.model == BY_CLIP]

    def lower(figure: str, a: Setting, b: Setting) -> tuple[Comparison, ...]:
        return (below(f"{figure}: {a.key} < {b.key}", again(a)[figure], again(b)[figure]),)

    def higher(text: str, figure: str, ones: Sequence[Setting], others: Sequence[Setting]) -> Claim:
        """That the best of the ones are above the best of the others."""
        best_one, best_other = (best(each, table, figure, -1) for each in (ones, others))
        return Claim(text, lower(figure, best_other, best_one))

    pairs = equally_aligned(by_clip, free, table)  # of classifier-free guidance and a CLIP's
    fid, recall = (
        tuple(below(f"{figure}: {a.key} < {b.key}", table[a.key][figure], table[b.key][figure]) for a, b in ordered)
        for figure, ordered in (("fid", pairs), ("recall", [(b, a) for a, b in pairs]))
    )

    return [
        higher("A CLIP's guidance makes pictures show their captions more often", ALIGNMENT, by_clip, [plain]),
        higher("Classifier-free guidance makes pictures show them more often", ALIGNMENT, free, [plain]),
        higher("… more often than a CLIP's", ALIGNMENT, free, by_clip),
        higher("… also of captions that training has not seen", f"held_out_{ALIGNMENT}", free, by_clip),
        Claim(
            "Classifier-free guidance has a lower FID than a CLIP's",
            lower("fid", best(free, table, "fid", 1), best(by_clip, table, "fid", 1)),
        ),
        Claim("… also at equal alignment", fid),
        Claim("At equal alignment classifier-free guidance has a higher recall than a CLIP's", recall),
        higher("A CLIP's guidance reaches a higher CLIP score", "clip_score", by_clip, free),
    ]


if __name__ == "__main__":
    sys.exit(main())
