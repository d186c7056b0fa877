"""Two models that draw as one: a base, and an upsampler of what it draws (numpy only).

Nichol & Dhariwal 2021, appendix C; Ho et al. 2022, "Cascaded diffusion models".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import Column, Derived, Given, needed, united
from ddpm.conditioning.pictures import KNOWN, LowColumn, LowNoiseColumn, known_in_fewer_pixels
from ddpm.diffusion.plans import SamplingPlan, decisive_choices
from ddpm.drawer import Drawer
from ddpm.errors import UserError, brief
from ddpm.files import read_json, write_json
from ddpm.layout import CASCADE, LINKS, MODELS

FORMAT = 1


class Cascade(Drawer):
    """A base, whose images an upsampler makes larger.

    Both are told what is asked for, such as a label or a prompt, if they have that column. The upsampler's column `low`
    is what the base draws. What is known of an image is known to both, to the base in its own size. `plan` and its
    overrides are the base's; the upsampler has its own plan.

    The base draws what it draws alone. The upsampler's seed follows from the base's, so that they share no noise.
    """

    def __init__(self, base: Drawer, upsampler: Drawer, *, name: str = "cascade", low_noise: float = 0.0) -> None:
        """
        Args:
            low_noise: standard deviation of the noise that is added to what the base draws, if the upsampler was
                trained with some.

        Raises:
            ValueError: the two do not fit together.
        """
        self.base, self.upsampler, self.low_noise = base, upsampler, float(low_noise)
        self.plan_source = base.plan_source
        self._name = name
        _check_links(base, upsampler, self.low_noise)

    @property
    def links(self) -> dict[str, Drawer]:
        """In the order in which they draw, by their keys in params.yaml."""
        return dict(zip(LINKS, (self.base, self.upsampler), strict=True))

    def with_base(self, base: Drawer) -> Cascade:
        """The same cascade with another base, such as the same weights with another plan."""
        return Cascade(base, self.upsampler, name=self._name, low_noise=self.low_noise)

    @property
    def variant(self) -> str:
        return self._name

    @property
    def fingerprint(self) -> str:
        """A hash of those of the links."""
        return united_fingerprint(link.fingerprint for link in self.links.values())

    @property
    def where(self) -> str | None:
        found = {name: link.where for name, link in self.links.items() if link.where}
        return "; ".join(f"{name}: {where}" for name, where in found.items()) or None

    @property
    def codec(self) -> Codec:
        return self.upsampler.codec

    @property
    def columns(self) -> tuple[Column, ...]:
        """Those of both, each once, without the low image and its noise."""
        return tuple(column for column in united(self.upsampler.columns, self.base.columns) if not _is_low(column))

    @property
    def choices(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self.base.choices

    @property
    def guidable(self) -> bool:
        return self.base.guidable

    @property
    def by_classifier(self) -> bool:
        return self.base.by_classifier

    @property
    def guide_mark(self) -> str | None:
        return self.base.guide_mark

    @property
    def weights(self) -> str:
        return self.base.weights

    @property
    def upsampling(self) -> dict[str, Any]:
        """The upsampler's plan, and the noise that it is told."""
        process, sampling = self.upsampler.choices
        return {**decisive_choices(sampling, variance=process["variance"]), "low_noise": self.low_noise}

    @property
    def attribution(self) -> str | None:
        return self.upsampler.attribution

    @property
    def largest_batch(self) -> int | None:
        return min((link.largest_batch for link in self.links.values() if link.largest_batch), default=None)

    def plan(self, **overrides: Any) -> SamplingPlan:
        """The base's, as of `Drawer`."""
        _ = self.second_plan  # what is wrong with it is to be said before anything is drawn
        return self.base.plan(**overrides)

    @cached_property
    def second_plan(self) -> SamplingPlan:
        """The upsampler's own."""
        return self.upsampler.plan()

    def evaluations(self, plan: SamplingPlan) -> int:
        return plan.evaluations + self.second_plan.evaluations

    def draw(
        self, count: int, plan: SamplingPlan, *, seed: int, first: int = 0, given: Given | None = None
    ) -> NDArray[Any]:
        if given is None:
            given = self.given(count, seed=seed, first=first)
        low = self.base.draw(count, plan, seed=seed, first=first, given=self.to_base(given))
        return self.upsample(low, seed=seed, first=first, given=given)

    def upsample(self, low: NDArray[np.uint8], *, seed: int, first: int = 0, given: Given) -> NDArray[Any]:
        """What `draw` makes of the images that the base has drawn.

        Args:
            low: [count, h, w, C].
            seed: of the cascade.
            given: a value of each of the cascade's columns, [count, ...].
        """
        told = self.to_upsampler(low, given, seed=seed, first=first)
        return self.upsampler.draw(len(low), self.second_plan, seed=link_seed(seed, 1), first=first, given=told)

    def to_base(self, given: Given) -> dict[str, NDArray[Any]]:
        """What the base is told: of what the cascade is given its own columns, and what is known in fewer pixels."""
        own = {column.name: given[column.name] for column in self.base.columns}
        return own | known_in_fewer_pixels(given, self.base.codec.shape[0])

    def to_upsampler(
        self, low: NDArray[np.uint8], given: Given, *, seed: int, first: int = 0
    ) -> dict[str, NDArray[Any]]:
        """What the upsampler is told; the arguments are those of `upsample`."""
        count, own_seed = len(low), link_seed(seed, 1)
        known = {name: given[name] for name in KNOWN if name in given}
        fed = {**given, LowColumn.name: low, LowNoiseColumn.name: np.full(count, self.low_noise, np.float32)}
        return known | {
            column.name: fed[column.name] if column.name in fed else column.draw(count, seed=own_seed, first=first)
            for column in self.upsampler.columns
        }


def united_fingerprint(fingerprints: Iterable[str]) -> str:
    """A hash of the fingerprints of a cascade's links, in their order; of a single model its own."""
    first, *others = fingerprints
    return hashlib.sha256(" ".join([first, *others]).encode()).hexdigest() if others else first


def link_seed(seed: int, link: int) -> int:
    """The seed of a cascade's link, in 0..2⁶⁴−1: of the first link the cascade's own.

    Args:
        link: its place, from 0.
    """
    return seed if link == 0 else int(np.random.SeedSequence([seed, link]).generate_state(1, np.uint64)[0])


def _is_low(column: Column) -> bool:
    return column.key == LowColumn.key


def _check_links(base: Drawer, upsampler: Drawer, low_noise: float) -> None:
    """
    Raises:
        ValueError: the two do not fit together.
    """
    low: Any = next((column for column in upsampler.columns if column.name == LowColumn.name), None)
    if low is None:
        raise ValueError("the upsampler is not told a low image: it was trained without `condition.low`")
    if base.codec.shape != low.shape:
        drawn, expected = ("×".join(map(str, shape)) for shape in (base.codec.shape, low.shape))
        raise ValueError(f"the base draws images of {drawn}, and the upsampler needs low images of {expected}")
    others = [*base.columns, *(column for column in upsampler.columns if not _is_low(column))]
    if pictures := [column.name for column in others if isinstance(column, Derived) or column in needed(others)]:
        raise ValueError(f"a link is told a picture that no link draws: {pictures[0]}")
    own = {column.name: column for column in base.columns}
    for column in upsampler.columns:
        for what in ("classes", "tokenizer"):
            if column.name in own and getattr(column, what, None) != getattr(own[column.name], what, None):
                raise ValueError(f"the links were trained with different {what} of the column {column.name}")
    most = next((column.most for column in upsampler.columns if isinstance(column, LowNoiseColumn)), 0.0)
    if not 0 <= low_noise <= most:
        raise ValueError(f"low_noise must be in 0..{most:g}, the noise that the upsampler was trained with")


# --- cascade.json ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinkFacts:
    """What a link is, beside its directory.

    Attributes:
        variant: its name in params.yaml.
        fingerprint: of its training.
        sha256: of its weights' file.
    """

    variant: str
    fingerprint: str
    sha256: str


@dataclass(frozen=True)
class CascadeFacts:
    """cascade.json, beside the directories of the links."""

    name: str
    links: Mapping[str, LinkFacts]
    low_noise: float = 0.0

    def write(self, directory: Path) -> None:
        links = {link: asdict(self.links[link]) for link in LINKS}
        write_json(
            directory / CASCADE, {"format": FORMAT, "name": self.name, "low_noise": self.low_noise, "links": links}
        )

    @classmethod
    def read(cls, directory: Path) -> CascadeFacts:
        """
        Raises:
            UserError: the file is missing, damaged or of another format.
        """
        path = directory / CASCADE
        try:
            found = read_json(path)
            if (version := found.get("format")) != FORMAT:
                raise ValueError(f"its format is {brief(version)}, and this version of ddpm knows {FORMAT}")
            links = {link: LinkFacts(**found["links"][link]) for link in LINKS}
            facts = cls(found["name"], links, found["low_noise"])
            texts = [facts.name, *(text for link in links.values() for text in asdict(link).values())]
            if not all(isinstance(text, str) for text in texts) or type(facts.low_noise) not in (int, float):
                raise TypeError("expected texts, and a number `low_noise`")
        except FileNotFoundError:
            raise UserError(
                f"{directory} is not a cascade: {CASCADE} is missing; `ddpm compose {directory.name}` makes "
                f"{MODELS / directory.name}"
            ) from None
        except KeyError as error:
            raise UserError(f"{path}: damaged: the key {error} is missing") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged: {error}") from None
        return facts


def open_cascade(directory: Path, open_link: Callable[[Path], Drawer]) -> Cascade:
    """A cascade of models/ or of deploy/, whose links are in the directory.

    Args:
        open_link: opens the directory of a link.

    Raises:
        UserError: a file is missing or damaged, or a link is of another training than cascade.json says.
    """
    facts = CascadeFacts.read(directory)
    links = {link: open_link(directory / link) for link in LINKS}
    for link, opened in links.items():
        if opened.fingerprint != facts.links[link].fingerprint:
            raise UserError(f"{directory / link} is of another training than {directory / CASCADE} says")
    try:
        return Cascade(**links, name=facts.name, low_noise=facts.low_noise)
    except ValueError as error:
        raise UserError(f"{directory}: {error}") from None
