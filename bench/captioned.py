"""What the studies of models that draw from captions share: settings, what an image costs, and how well samples show
what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.cells import Cells
from bench.claims import Estimate, below, estimate
from bench.judge import GROUPS, Judge
from ddpm.compute.device import pick_device
from ddpm.conditioning.columns import PromptColumn
from ddpm.data.loader import InMemoryImages
from ddpm.drawer import Drawer
from ddpm.evaluation.accessory import open_space
from ddpm.evaluation.extractor import Features
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.evaluation.retrieval import PLACES, evenly, retrieval
from ddpm.files import read_json
from ddpm.joint_space import JointSpace
from ddpm.layout import EXTRACTOR, MODELS
from ddpm.model import Model

ALIGNMENT = "retrieval_5_pixels"  # by which settings are called equally aligned: no CLIP has a part in it

Asking = Callable[[Sequence[str]], Mapping[str, Any]]  # captions as values of a drawer's columns
Figures = Mapping[str, Estimate]
Table = Mapping[str, Figures]  # by the settings' keys


class Setting(NamedTuple):
    """A model with a plan (overrides of its own)."""

    model: str
    plan: Mapping[str, Any]

    @property
    def key(self) -> str:
        return ", ".join([f"`{self.model}`", *(f"{name} {value}" for name, value in self.plan.items())])


@dataclass(frozen=True)
class Asked:
    """How many samples are drawn of how many captions."""

    captions: int = 160  # of the training captions, at even distances; a multiple of the jackknife's groups
    each: int = 4  # samples of a caption
    held_out: int = 100  # samples of held-out combinations


ASKED = Asked()


def by_prompt(texts: Sequence[str]) -> Mapping[str, Any]:
    """Captions as prompts."""
    return {PromptColumn.name: list(texts)}


class Captioned:
    """A project's captions and a CLIP that judges, and the figures of what models draw of these captions.

    Attributes:
        judge: of the project.
        clip: the CLIP, of which `space` is the space of embeddings.
    """

    def __init__(self, root: Path, study: str, *, encoder: str, asked: Asked, seed: int) -> None:
        """
        Args:
            root: a project with prepared/, extractor/ and the CLIP.
            study: names the folder of its cells.
            encoder: the CLIP's name below models/.
        """
        self.judge, self._asked = Judge(root, seed=seed), asked
        self._root, self._seed, self._encoder = root, seed, encoder
        self._cells = Cells(root / ".ddpm" / f"{study}-cells")
        self._found: dict[tuple[str, int], Figures] = {}
        where = f"{MODELS}/{encoder}"
        self.clip, self.space = open_space(encoder, self.judge.data.codec, where, root, pick_device())
        # Groups of the jackknife are every so many samples: a caption's are all in one.
        assert asked.captions % GROUPS == 0
        self._texts = evenly(self.judge.data.split("train").captions or (), asked.captions) * asked.each

    def figures(self, setting: Setting, drawer: Drawer, seed: int, ask: Asking = by_prompt) -> Figures:
        """FID, precision and recall, how far the samples of a caption are from each other, and how well they show what
        was asked for, by pixels, features and the CLIP."""
        key = (setting.key, seed)
        if key not in self._found:
            self._found[key] = self._measured(setting, drawer, seed, ask)
            print(f"{setting.key}, seed {seed}: {said(self._found[key])}", flush=True)
        return self._found[key]

    def _measured(self, setting: Setting, drawer: Drawer, seed: int, ask: Asking) -> Figures:
        images, features, right = self._drawn(setting, drawer, seed, self._texts, ask)
        values = {
            **right,
            **alignment(self.space, images, self._texts),
            "spread_pixels": spread(torch.from_numpy(images).flatten(1) / 255, self._asked.each),
            "spread_features": spread(features.features, self._asked.each),
        }
        found = self.judge.estimates(features, lambda kept: means(values, kept))
        texts = evenly(self.judge.data.held_out_captions, self._asked.held_out)
        *_, unseen = self._drawn(setting, drawer, seed, texts, ask)
        share = estimate(lambda kept: means(unseen, torch.from_numpy(kept))[ALIGNMENT], len(texts), GROUPS)
        return found | {f"held_out_{ALIGNMENT}": share}

    def _drawn(
        self, setting: Setting, drawer: Drawer, seed: int, texts: Sequence[str], ask: Asking
    ) -> tuple[NDArray[np.uint8], Features, dict[str, Tensor]]:
        """A sample of each text, its features, and whether it shows what was asked for."""
        column = prompts(drawer)
        assert column is not None
        images = self._cells.drawn(drawer, len(texts), seed, setting.plan, **ask(texts))
        features = self.judge.features(InMemoryImages(images), len(images))
        return images, features, hits(ranks(self.judge, column, column.tokenizer.encode(texts)[0], images, features))

    def protocol(self, attribution: str | None) -> dict[str, Any]:
        """What decides the figures, as JSON."""
        asked, data = self._asked, self.judge.data
        train, validation = data.split("train"), data.split("validation")
        return {
            "data": data.manifest.name,
            "shape": data.manifest.shape,
            "attribution": attribution,
            "extractor": read_json(self._root / EXTRACTOR / "extractor.json"),
            "clip": {"name": self._encoder, "sha256": self.space.sha256},
            "reference": {"images": len(train), "sha256": train.sha256},
            "validation": {
                "images": len(validation),
                "fid": round(self.judge.distance(validation, len(validation)), 4),
            },
            "captions": len(self._texts) // asked.each,
            "each": asked.each,
            "held_out": asked.held_out,
            "seeds": [self._seed, self._seed + 1],
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


def equally_aligned(ones: Sequence[Setting], others: Sequence[Setting], table: Table) -> list[tuple[Setting, Setting]]:
    """For each setting of the first the one of the second whose alignment is nearest, as pairs of the second and the
    first: those whose difference is within the noise.
    """

    def gap(pair: tuple[Setting, Setting]) -> float:
        return abs(table[pair[0].key][ALIGNMENT].value - table[pair[1].key][ALIGNMENT].value)

    def equal(pair: tuple[Setting, Setting]) -> bool:
        a, b = (table[each.key][ALIGNMENT] for each in pair)
        return below("", a, b).outcome == "within the noise"

    nearest = [min(((other, own) for other in others), key=gap) for own in ones]
    return [pair for pair in nearest if equal(pair)]


def best(settings: Sequence[Setting], table: Table, figure: str, sign: int) -> Setting:
    """The setting with the lowest figure (sign 1) or the highest (−1)."""
    return min(settings, key=lambda each: sign * table[each.key][figure].value)


def as_dear(of_steps: Callable[[int], Setting], cost: Callable[[Setting], float], wanted: float) -> Setting:
    """The setting whose number of steps makes an image cost about what is wanted; at least one step."""
    one, two = (cost(of_steps(steps)) for steps in (1, 2))
    return of_steps(max(1, 1 + round((wanted - one) / (two - one))))


def prompts(drawer: Drawer) -> PromptColumn | None:
    """The captions that a model is asked for; None: it is not."""
    return next((column for column in drawer.columns if isinstance(column, PromptColumn)), None)


def cost(drawer: Drawer, plan: Mapping[str, Any], *, without: Sequence[str] = ()) -> float:
    """10⁹ operations of an image of all links, but for some."""
    plans = drawer.plans(drawer.plan(**plan))
    models = {name: cast(Model, drawer.links[name]) for name in plans if name not in without}
    return sum(gigaflops_per_image(model, plans[name]) for name, model in models.items())


def ranks(
    judge: Judge,
    column: PromptColumn,
    asked: NDArray[np.int64],
    images: NDArray[np.uint8],
    features: Features,
) -> dict[str, Tensor]:
    """The place of the asked picture among all real ones, by the space in which they are compared, [N].

    Args:
        column: of the model that drew.
        asked: the tokens of each sample's caption, [N, L].
        images: the samples, [N, H, W, C].
        features: of these.
    """
    validation = judge.data.split("validation")
    real = torch.cat([judge.real.features, judge.features(validation, len(validation)).features])
    found = retrieval(column.tokenizer, asked, judge.data, real)
    found.add(images, features.features)
    return found.ranks


def hits(ranks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whether the asked picture is the nearest one, or among the nearest five, [N]: their means are R@1 and R@5."""
    return {f"retrieval_{place}_{space}": (own <= place).double() for space, own in ranks.items() for place in PLACES}


def means(values: Mapping[str, Tensor], kept: Tensor) -> dict[str, float]:
    """The means of some samples' values [N]."""
    return {name: float(own[kept].mean()) for name, own in values.items()}


def said(figures: Mapping[str, Estimate]) -> str:
    """Figures in a line."""
    return ", ".join(f"{name} {figure.value:.3f} ± {figure.error:.3f}" for name, figure in figures.items())


def rows(table: Mapping[str, Mapping[str, Estimate]], costs: Mapping[str, float]) -> list[dict[str, Any]]:
    """A table by the names of its settings, as JSON has it."""
    return [
        {
            "setting": name,
            "gflops_per_image": round(costs[name], 3),
            "figures": {figure: value.as_dict() for figure, value in figures.items()},
        }
        for name, figures in table.items()
    ]
