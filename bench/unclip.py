"""`python -m bench.unclip`: a prior and a decoder (DALL-E 2) against a model of captions alone, measured on emoji.

It needs a project in which `make demo-unclip` has run, and trains there what that is held against: the preset `text-8`,
if it is not there, with as many operations as the prior and the decoder together. A run that was stopped goes on with
the same command, cell by cell.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.captioned import Setting, cost, hits, means, prompts, ranks, rows, said
from bench.cells import BATCH, Cells
from bench.claims import Claim, Comparison, Estimate, below, estimate
from bench.judge import GROUPS, Judge
from bench.unclip_models import ALONE, train_alone, training_of, training_teraflops
from bench.unclip_page import markdown
from ddpm import tracking
from ddpm.compute.device import pick_device
from ddpm.config.params import Params, load_params
from ddpm.data.embeddings import Embeddings
from ddpm.data.loader import InMemoryImages
from ddpm.errors import Interrupted, UpstreamError, UserError
from ddpm.evaluation.accessory import open_space
from ddpm.evaluation.extractor import Features
from ddpm.evaluation.pictures import save_png
from ddpm.evaluation.prior import prior_figures
from ddpm.evaluation.retrieval import evenly
from ddpm.files import read_json, write_bytes, write_json
from ddpm.joint_space import JointSpace
from ddpm.layout import EMBEDDINGS, EXTRACTOR, MODELS
from ddpm.model import Model
from ddpm.opening import load
from ddpm.stages.sample import origin_of
from flows.demo_unclip import ENCODER, UNCLIP, likeness_picture

RESULTS, PAGE = Path("bench/results/unclip.json"), Path("docs/unclip.md")
PICTURE = PAGE.with_name("unclip.png")
ALIGNMENT = "retrieval_5_pixels"  # by which settings are called equally aligned: no CLIP has a part in it
DIVERSITY = ("recall", "spread_pixels", "spread_features")


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    captions: int = 60  # of the training captions
    each: int = 4  # samples of a caption
    held_out: int = 48  # samples of held-out combinations
    candidates: tuple[int, ...] = (1, 2)  # of the prior
    embeddings: int = 200  # captions of each split that the prior is asked for


FULL = Extent()
QUICK = Extent((1.0, 2.0), 20, 2, 20, (1, 2), 20)

Figures = Mapping[str, Estimate]
Table = Mapping[str, Figures]  # by the settings' keys


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.unclip", description=__doc__)
    parser.add_argument(
        "--project",
        type=Path,
        default=Path(".demo-unclip"),
        help="where `make demo-unclip` has run (default: %(default)s)",
    )
    arguments = parser.parse_args(argv)
    try:
        project = arguments.project
        params = load_params(project / "params.yaml")
        if not (project / MODELS / UNCLIP).is_dir():
            raise UserError(f"{project / MODELS / UNCLIP} is missing: `make demo-unclip` makes it")
        study = UnclipStudy(params, project, FULL)
        study.save_picture(PICTURE)
        results = study.results()
        write_json(RESULTS, results)
        write_bytes(PAGE, markdown(results).encode())
        print(f"\n{PAGE.read_text(encoding='utf-8')}\n{RESULTS}, {PAGE} and {PICTURE} written", flush=True)
        run = tracking.log_study("unclip", results["protocol"], [], [RESULTS, PAGE, PICTURE])
        print(f"in MLflow: {tracking.run_url(run)}")
    except (UserError, UpstreamError, Interrupted) as error:
        print(f"bench.unclip: {error}", file=sys.stderr)
        return error.exit_code
    return 0


class UnclipStudy:
    """A project with the trained models, and the figures of the settings that are asked for."""

    def __init__(self, params: Params, root: Path, extent: Extent) -> None:
        self._params, self._root, self._extent = params, root, extent
        self._judge = Judge(root, seed=params.seed)
        self._cells = Cells(root / ".ddpm" / "unclip-cells")
        codec, where = self._judge.data.codec, f"models/{ENCODER}"
        self._clip, self._space = open_space(ENCODER, codec, where, root, pick_device())
        unclip = load(root / MODELS / UNCLIP)
        self._parts = {name: cast(Model, link) for name, link in unclip.links.items()}
        equal = sum(training_teraflops(self._parts[link]) for link in ("prior", "decoder"))
        self._drawers = {UNCLIP: unclip, ALONE: train_alone(params, root, equal)}
        captions = self._judge.data.split("train").captions or ()
        # Groups of the jackknife are every so many samples: a caption's are all in one.
        self._texts = evenly(captions, extent.captions - extent.captions % GROUPS) * extent.each

    def results(self) -> dict[str, Any]:
        """The tables and the verdicts, as JSON."""
        settings = self._settings()
        table = {setting.key: self._figures(setting, self._params.seed) for setting in settings}
        return {
            "protocol": self._protocol(),
            "training": self._training(),
            "settings": rows(table, {setting.key: self._cost(setting) for setting in settings}),
            "prior": [{"candidates": count, **self._of_prior(count)} for count in self._extent.candidates],
            "claims": [claim.as_dict() for claim in unclip_claims(settings, table, self._again)],
        }

    def save_picture(self, path: Path) -> None:
        """Variations, interpolations and differences of texts."""
        unclip, seed = self._drawers[UNCLIP], self._params.seed
        save_png(
            likeness_picture(unclip, self._judge.data, seed=seed), path, origin_of(unclip, seed, {}), optimize=True
        )

    def _settings(self) -> list[Setting]:
        """Both models at each scale, the other one with as many steps as cost what the first one costs; and the other
        one as it is by itself."""
        unclip = [Setting(UNCLIP, {"guidance_scale": scale}) for scale in self._extent.scales]
        return [*unclip, *map(self._as_dear, unclip), Setting(ALONE, {})]

    def _as_dear(self, unclip: Setting) -> Setting:
        def alone(steps: int) -> Setting:
            return Setting(ALONE, {"steps": steps, **unclip.plan})

        one, two = (self._cost(alone(steps)) for steps in (1, 2))
        return alone(max(1, 1 + round((self._cost(unclip) - one) / (two - one))))

    def _cost(self, setting: Setting) -> float:
        return cost(self._drawers[setting.model], setting.plan)

    def _again(self, setting: Setting) -> Figures:
        return self._figures(setting, self._params.seed + 1)

    def _figures(self, setting: Setting, seed: int) -> Figures:
        images, features, right = self._drawn(setting, seed, self._texts)
        values = {
            **right,
            **alignment(self._space, images, self._texts),
            "spread_pixels": spread(torch.from_numpy(images).flatten(1) / 255, self._extent.each),
            "spread_features": spread(features.features, self._extent.each),
        }
        found = self._judge.estimates(features, lambda kept: means(values, kept))
        texts = evenly(self._judge.data.held_out_captions, self._extent.held_out)
        *_, unseen = self._drawn(setting, seed, texts)
        share = estimate(lambda kept: means(unseen, torch.from_numpy(kept))[ALIGNMENT], len(texts), GROUPS)
        found[f"held_out_{ALIGNMENT}"] = share
        print(f"{setting.key}, seed {seed}: {said(found)}", flush=True)
        return found

    def _drawn(
        self, setting: Setting, seed: int, texts: Sequence[str]
    ) -> tuple[NDArray[np.uint8], Features, dict[str, Tensor]]:
        """A sample of each text, its features, and whether it shows what was asked for."""
        drawer = self._drawers[setting.model]
        column = prompts(drawer)
        assert column is not None
        images = self._cells.drawn(drawer, len(texts), seed, setting.plan, prompt=list(texts))
        features = self._judge.features(InMemoryImages(images), len(images))
        return images, features, hits(ranks(self._judge, column, column.tokenizer.encode(texts)[0], images, features))

    def _of_prior(self, candidates: int) -> dict[str, float]:
        """The figures of the prior alone, if it keeps the best of so many candidates."""
        prior, data = self._parts["prior"], self._judge.data
        chosen = prior.card.config.sampling.model_copy(update={"candidates": candidates})
        found = prior_figures(
            prior.sampled_by(chosen),
            self._space,
            Embeddings.open(self._root / EMBEDDINGS / ENCODER, data, self._space.sha256),
            data,
            count=self._extent.embeddings,
            seed=self._params.seed,
            batch_size=BATCH,
        )
        return {name: round(value, 4) for name, value in found.items()}

    def _training(self) -> dict[str, dict[str, float]]:
        """What each training took, by the models' names."""
        captions = cast(Model, self._drawers[ALONE].links["base"])
        return {
            model.variant: {
                "steps": training_of(model).steps,
                "batch_size": training_of(model).batch_size,
                "teraflops": round(training_teraflops(model), 3),
            }
            for model in (self._clip, *self._parts.values(), captions)
        }

    def _protocol(self) -> dict[str, Any]:
        extent, data = self._extent, self._judge.data
        train, validation = data.split("train"), data.split("validation")
        return {
            "data": data.manifest.name,
            "shape": data.manifest.shape,
            "attribution": self._drawers[UNCLIP].attribution,
            "extractor": read_json(self._root / EXTRACTOR / "extractor.json"),
            "clip": {"name": ENCODER, "sha256": self._space.sha256},
            "reference": {"images": len(train), "sha256": train.sha256},
            "validation": {
                "images": len(validation),
                "fid": round(self._judge.distance(validation, len(validation)), 4),
            },
            "captions": len(self._texts) // extent.each,
            "each": extent.each,
            "held_out": extent.held_out,
            "embeddings": extent.embeddings,
            "seeds": [self._params.seed, self._params.seed + 1],
            "groups": GROUPS,
        }


def alignment(space: JointSpace, images: NDArray[np.uint8], texts: Sequence[str]) -> dict[str, Tensor]:
    """Of each image the cosine to its text in the space of a CLIP, and whether no other of the texts is nearer, [N]."""
    unique = sorted({*texts})
    cosines = torch.from_numpy(space.images(images) @ space.texts(unique).T).double()
    own = cosines[torch.arange(len(texts)), [unique.index(text) for text in texts]]
    return {"clip_score": own, "r_precision": (own >= cosines.amax(1)).double()}


def spread(points: Tensor, each: int) -> Tensor:
    """How far the samples of a caption are from each other: of each sample the mean distance to the others of the same
    caption, [N].

    Args:
        points: [N, D], of which those at i, i + N / each, … are of one caption.
    """
    own = points.double().reshape(each, -1, points.shape[1]).transpose(0, 1)
    return (torch.cdist(own, own).sum(2) / (each - 1)).T.flatten()


def unclip_claims(settings: Sequence[Setting], table: Table, again: Callable[[Setting], Figures]) -> list[Claim]:
    """Of a prior and a decoder (Ramesh et al. 2022, §5.2 and 5.3).

    Args:
        table: the figures of all settings, by their keys. Best settings are chosen by it.
        again: the figures of a setting on other samples, on which what was chosen is compared.
    """
    of = {name: [each for each in settings if each.model == name] for name in (UNCLIP, ALONE)}

    def best(model: str, figure: str, sign: int) -> Setting:
        return min(of[model], key=lambda each: sign * table[each.key][figure].value)

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

    return [
        Claim(
            "A prior and a decoder have a lower FID than a model of captions",
            lower("fid", best(UNCLIP, "fid", 1), best(ALONE, "fid", 1)),
        ),
        Claim(
            "… and find the asked picture more often",
            lower(ALIGNMENT, best(ALONE, ALIGNMENT, -1), best(UNCLIP, ALIGNMENT, -1)),
        ),
        *(
            Claim(f"At equal alignment a prior and a decoder are more diverse ({figure})", diversity(figure))
            for figure in DIVERSITY
        ),
    ]


def equally_aligned(unclip: Sequence[Setting], alone: Sequence[Setting], table: Table) -> list[tuple[Setting, Setting]]:
    """For each setting of the first model the one of the second whose alignment is nearest, as pairs of the second and
    the first: those whose difference is within the noise, or if there are none, the nearest pair.
    """

    def gap(pair: tuple[Setting, Setting]) -> float:
        return abs(table[pair[0].key][ALIGNMENT].value - table[pair[1].key][ALIGNMENT].value)

    def equal(pair: tuple[Setting, Setting]) -> bool:
        a, b = (table[each.key][ALIGNMENT] for each in pair)
        return below("", a, b).outcome == "within the noise"

    nearest = [min(((other, own) for other in alone), key=gap) for own in unclip]
    return [pair for pair in nearest if equal(pair)] or [min(nearest, key=gap)]


if __name__ == "__main__":
    sys.exit(main())
