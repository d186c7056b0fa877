"""`python -m bench.unclip`: a prior and a decoder (DALL-E 2) against a model of captions alone, measured on emoji.

It needs a project in which `make demo-unclip` has run, and trains there what that is held against: the preset `text-8`,
if it is not there, with as many operations as the prior and the decoder together. A run that was stopped goes on with
the same command, cell by cell.
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
    by_prompt,
    cost,
    equally_aligned,
    rows,
)
from bench.cells import BATCH
from bench.claims import Claim, Comparison, below
from bench.study import add_project, must_have_run, publish, run
from bench.unclip_deployed import deployed
from bench.unclip_models import ALONE, train_alone, training_facts, training_teraflops
from bench.unclip_page import markdown
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.config.params import Params, load_params
from ddpm.data.embeddings import Embeddings
from ddpm.evaluation.pictures import save_png
from ddpm.evaluation.prior import prior_figures
from ddpm.layout import DEPLOY, EMBEDDINGS, MODELS
from ddpm.model import Model
from ddpm.opening import load
from ddpm.stages.sample import origin_of
from flows.demo_unclip import ENCODER, UNCLIP, likeness_picture

DEMO = "demo-unclip"
RESULTS, PAGE = Path("bench/results/unclip.json"), Path("docs/unclip.md")
PICTURE = PAGE.with_name("unclip.png")
NO_PRIOR = f"{UNCLIP} without the prior"  # the text's embedding in place of that which the prior draws
DIVERSITY = ("recall", "spread_pixels", "spread_features")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    weaker: tuple[float, ...] = (0.25, 0.5)  # of the model of captions alone, at which it follows them less
    asked: Asked = ASKED
    candidates: tuple[int, ...] = (1, 2)  # of the prior
    embeddings: int = 200  # captions of each split that the prior is asked for
    timed: tuple[int, int] = (8, 7)  # images of a batch, and rounds


FULL = Extent()
QUICK = Extent((1.0, 2.0), (0.5,), Asked(20, 2, 20), (1, 2), 20, (2, 2))


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.unclip", description=__doc__)
    add_project(parser, DEMO)
    project = parser.parse_args(argv).project
    return run("bench.unclip", lambda: write_study(project))


def write_study(project: Path) -> None:
    """Measure what is not there yet, and write it."""
    must_have_run(DEMO, project, UNCLIP)
    study = UnclipStudy(load_params(project / "params.yaml"), project, FULL)
    study.save_picture(PICTURE)
    results = study.results()
    publish("unclip", results, markdown(results), (RESULTS, PAGE), pictures=[PICTURE])


class UnclipStudy:
    """A project with the trained models, and the figures of the settings that are asked for."""

    def __init__(self, params: Params, root: Path, extent: Extent) -> None:
        self._params, self._root, self._extent = params, root, extent
        self._captioned = Captioned(root, "unclip", encoder=ENCODER, asked=extent.asked, seed=params.seed)
        unclip = load(root / MODELS / UNCLIP)
        self._parts = {name: cast(Model, link) for name, link in unclip.links.items()}
        equal = sum(training_teraflops(self._parts[link]) for link in ("prior", "decoder"))
        self._drawers = {UNCLIP: unclip, NO_PRIOR: unclip, ALONE: train_alone(params, root, equal)}

    def results(self) -> dict[str, Any]:
        """The tables and the verdicts, as JSON."""
        settings, captions = self._settings(), cast(Model, self._drawers[ALONE].links["base"])
        table = {setting.key: self._figures(setting, self._params.seed) for setting in settings}
        return {
            "protocol": self._protocol(),
            "training": training_facts([self._captioned.clip, *self._parts.values(), captions]),
            "settings": rows(table, {setting.key: self._cost(setting) for setting in settings}),
            "prior": [{"candidates": count, **self._of_prior(count)} for count in self._extent.candidates],
            "deployed": self._deployed(),
            "claims": [claim.as_dict() for claim in unclip_claims(settings, table, self._again)],
        }

    def save_picture(self, path: Path) -> None:
        """Variations, interpolations and differences of texts."""
        unclip, seed = self._drawers[UNCLIP], self._params.seed
        save_png(
            likeness_picture(unclip, self._captioned.judge.data, seed=seed),
            path,
            origin_of(unclip, seed, {}),
            optimize=True,
        )

    def _settings(self) -> list[Setting]:
        """Both models at each scale, the other one with as many steps as cost what the first one costs, and also at
        weaker scales; the first one without the prior; and the other one as it is by itself."""
        unclip, no_prior = (_at(model, self._extent.scales) for model in (UNCLIP, NO_PRIOR))
        guided = next(each for each in unclip if each.plan["guidance_scale"] > 1)
        weaker = [self._as_dear(each, guided) for each in _at(ALONE, self._extent.weaker)]
        strong = [self._as_dear(each, each) for each in unclip]
        return [*unclip, *no_prior, *weaker, *strong, Setting(ALONE, {})]

    def _as_dear(self, plan: Setting, wanted: Setting) -> Setting:
        """The model of captions alone by the plan of one setting, as dear as another one."""
        return as_dear(lambda steps: Setting(ALONE, {"steps": steps, **plan.plan}), self._cost, self._cost(wanted))

    def _cost(self, setting: Setting) -> float:
        without = ["prior"] if setting.model == NO_PRIOR else []
        return cost(self._drawers[setting.model], setting.plan, without=without)

    def _figures(self, setting: Setting, seed: int) -> Figures:
        ask = self._by_embedding if setting.model == NO_PRIOR else by_prompt
        return self._captioned.figures(setting, self._drawers[setting.model], seed, ask)

    def _by_embedding(self, texts: Sequence[str]) -> dict[str, Any]:
        """Captions as prompts, and their embeddings in place of the prior's."""
        return {**by_prompt(texts), EmbeddingColumn.name: self._captioned.space.texts(texts)}

    def _again(self, setting: Setting) -> Figures:
        return self._figures(setting, self._params.seed + 1)

    def _of_prior(self, candidates: int) -> dict[str, float]:
        """The figures of the prior alone, if it keeps the best of so many candidates."""
        prior, data = self._parts["prior"], self._captioned.judge.data
        chosen = prior.card.config.sampling.model_copy(update={"candidates": candidates})
        found = prior_figures(
            prior.sampled_by(chosen),
            self._captioned.space,
            Embeddings.open(self._root / EMBEDDINGS / ENCODER, data, self._captioned.space.sha256),
            data,
            count=self._extent.embeddings,
            seed=self._params.seed,
            batch_size=BATCH,
        )
        return {name: round(value, 4) for name, value in found.items()}

    def _deployed(self) -> dict[str, Any]:
        count, rounds = self._extent.timed
        directory = self._root / DEPLOY / UNCLIP
        return deployed(self._drawers[UNCLIP], directory, prompt="red heart", count=count, rounds=rounds)

    def _protocol(self) -> dict[str, Any]:
        protocol = self._captioned.protocol(self._drawers[UNCLIP].attribution)
        return protocol | {"embeddings": self._extent.embeddings}


def _at(model: str, scales: Sequence[float]) -> list[Setting]:
    """A setting of the model for each guidance scale."""
    return [Setting(model, {"guidance_scale": scale}) for scale in scales]


def unclip_claims(settings: Sequence[Setting], table: Table, again: Callable[[Setting], Figures]) -> list[Claim]:
    """Of a prior and a decoder (Ramesh et al. 2022, §5.1 to 5.3).

    Args:
        table: the figures of all settings, by their keys. Best settings are chosen by it.
        again: the figures of a setting on other samples, on which what was chosen is compared.
    """
    of = {name: [each for each in settings if each.model == name] for name in (UNCLIP, NO_PRIOR, ALONE)}

    def lower(figure: str, a: Setting, b: Setting) -> tuple[Comparison, ...]:
        return (below(f"{figure}: {a.key} < {b.key}", again(a)[figure], again(b)[figure]),)

    pairs = equally_aligned(of[UNCLIP], of[ALONE], table)

    def diversity(figure: str) -> tuple[Comparison, ...]:
        return tuple(
            below(
                f"{figure}: {a.key} (R@5 {table[a.key][ALIGNMENT].value:.0%}) < "
                f"{b.key} (R@5 {table[b.key][ALIGNMENT].value:.0%})",
                table[a.key][figure],
                table[b.key][figure],
            )
            for a, b in pairs
        )

    def better_than(other: str, text: str) -> list[Claim]:
        return [
            Claim(text, lower("fid", best(of[UNCLIP], table, "fid", 1), best(of[other], table, "fid", 1))),
            Claim(
                "… and find the asked picture more often",
                lower(ALIGNMENT, best(of[other], table, ALIGNMENT, -1), best(of[UNCLIP], table, ALIGNMENT, -1)),
            ),
        ]

    return [
        *better_than(ALONE, "A prior and a decoder have a lower FID than a model of captions"),
        *better_than(NO_PRIOR, "A prior's embeddings have a lower FID than the texts' own, drawn by the same decoder"),
        *(
            Claim(f"At equal alignment a prior and a decoder are more diverse ({figure})", diversity(figure))
            for figure in DIVERSITY
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
