"""Models that draw as one: each link after the first is conditioned on what earlier links draw (numpy only).

Nichol & Dhariwal 2021, appendix C; Ho et al. 2022, "Cascaded diffusion models".
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import PICTURES, Column, Derived, needed, united
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.conditioning.pictures import LowColumn, LowNoiseColumn, known_in_fewer_pixels
from ddpm.diffusion.plans import SamplingPlan, decisive_choices
from ddpm.drawer import Drawer
from ddpm.drawer.likeness import Encoder
from ddpm.drawer.parts import Drawn, Part
from ddpm.errors import NotFiniteError, UserError, brief, listed
from ddpm.files import read_json, write_json
from ddpm.layout import CASCADE, MODELS

FORMAT = 3


class Link(NamedTuple):
    """A model in a cascade. Its columns that are not fed or fixed are the cascade's.

    Attributes:
        drawer: the model.
        fed: its columns that have the data of an earlier link: that link's name by the column's.
        fixed: its columns that have the same value for all data, by their names; as of `Column.read`.
    """

    drawer: Drawer
    fed: Mapping[str, str] = {}
    fixed: Mapping[str, Any] = {}

    @property
    def asked(self) -> tuple[Column, ...]:
        """The cascade's columns: neither fixed nor fed, nor of the same key of `condition` as one that is fed."""
        fed = {column.key for column in self.drawer.columns if column.name in self.fed}
        return tuple(each for each in self.drawer.columns if each.name not in self.fixed and each.key not in fed)

    @property
    def replaceable(self) -> tuple[Column, ...]:
        """What is fed to it, unless it is asked for: all but pictures, such as an embedding."""
        return tuple(each for each in self.drawer.columns if each.name in self.fed and each.name not in PICTURES)


class Cascade(Drawer):
    """Models that draw one after the other, the last one what the cascade draws.

    All links have what is asked for, such as a label or a prompt, if they have that column. What is known of an image
    is known to all links of images, to each in its own size. `plan` and its overrides are those of the leading link;
    the others have their own plans. Whoever asks for what a link would draw, such as an embedding, skips that link.

    The first link draws what it draws alone. The seeds of the others follow from its seed, so that no two links share
    noise.
    """

    def __init__(self, links: Mapping[str, Link], *, name: str = "cascade", leading: str | None = None) -> None:
        """
        Args:
            links: by their names, in the order in which they draw.
            leading: the link whose plan users choose; None: the first.

        Raises:
            ValueError: they do not fit together, or there is no such link.
        """
        self.wiring = dict(links)
        self._name, self._leads = name, next(iter(links)) if leading is None else leading
        _check_links(self.wiring)
        if self._leads not in links:
            raise ValueError(f"leading is {brief(leading)}; expected a link: {listed(links)}")
        self.plan_source = self._leading.plan_source

    @classmethod
    def of(cls, base: Drawer, upsampler: Drawer, *, name: str = "cascade", low_noise: float = 0.0) -> Cascade:
        """A base, and an upsampler that enlarges its images.

        Args:
            low_noise: standard deviation of the noise that is added to what the base draws, if the upsampler was
                trained with some.

        Raises:
            ValueError: the two do not fit together.
        """
        enlarging = Link(upsampler, {LowColumn.name: "base"}, {LowNoiseColumn.name: float(low_noise)})
        return cls({"base": Link(base), "upsampler": enlarging}, name=name)

    @property
    def links(self) -> Mapping[str, Drawer]:
        return {name: link.drawer for name, link in self.wiring.items()}

    @property
    def leading(self) -> str:
        return self._leads

    @property
    def _leading(self) -> Drawer:
        return self.links[self._leads]

    @property
    def _last(self) -> Drawer:
        return [*self.links.values()][-1]

    def sampled_by(self, sampling: Mapping[str, Any]) -> Cascade:
        """The same weights with another plan of the leading link's own."""
        own = self.wiring[self._leads]._replace(drawer=self._leading.sampled_by(sampling))
        return Cascade({**self.wiring, self._leads: own}, name=self._name, leading=self._leads)

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
        return self._last.codec

    @property
    def columns(self) -> tuple[Column, ...]:
        """What is asked for of the links, each column once."""
        return reduce(united, [link.asked for link in reversed(self.wiring.values())])

    @property
    def askable(self) -> tuple[Column, ...]:
        return united([column for link in self.wiring.values() for column in link.replaceable], super().askable)

    @property
    def choices(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return self._leading.choices

    @property
    def guidable(self) -> bool:
        return self._leading.guidable

    def why_not_guidable(self) -> str:
        return self._leading.why_not_guidable()

    @property
    def by_classifier(self) -> bool:
        return self._leading.by_classifier

    @property
    def guide_mark(self) -> str | None:
        return self._leading.guide_mark

    @property
    def weights(self) -> str:
        return self._leading.weights

    @property
    def other_plans(self) -> dict[str, dict[str, Any]]:
        found = {}
        for name, link in self._others.items():
            process, sampling = link.drawer.choices
            found[name] = {**decisive_choices(sampling, variance=process["variance"]), **link.fixed}
        return found

    @property
    def attribution(self) -> str | None:
        return self._last.attribution

    @property
    def encoder(self) -> Encoder | None:
        return next((link.encoder for link in self.links.values() if link.encoder is not None), None)

    @property
    def largest_batch(self) -> int | None:
        return min((link.largest_batch for link in self.links.values() if link.largest_batch), default=None)

    def plan(self, **overrides: Any) -> SamplingPlan:
        """The leading link's, as of `Drawer`."""
        _ = self._own_plans  # what is wrong with one is to be said before anything is drawn
        return self._leading.plan(**overrides)

    @cached_property
    def _own_plans(self) -> dict[str, SamplingPlan]:
        """Those of the links whose plans users do not choose."""
        return {name: link.drawer.plan() for name, link in self._others.items()}

    @property
    def _others(self) -> dict[str, Link]:
        """The links whose plans users do not choose."""
        return {name: link for name, link in self.wiring.items() if name != self._leads}

    def plans(self, plan: SamplingPlan) -> dict[str, SamplingPlan]:
        return {name: self._own_plans.get(name, plan) for name in self.wiring}

    def links_for(self, given: Collection[str]) -> Set[str]:
        *_, last = self.wiring
        wanted = {last}
        for name, link in reversed(self.wiring.items()):
            if name in wanted:
                wanted |= {source for column, source in link.fed.items() if column not in given}
        return wanted

    def refuse_unread(self, asked: Collection[str]) -> None:
        drawing = self.links_for([*asked, EmbeddingColumn.name])
        for name in asked:
            readers = [link for link, own in self.links.items() if name in {column.name for column in own.columns}]
            if readers and not drawing & {*readers}:
                raise ValueError(
                    f"{name} has no effect with `like`: only the {listed(readers)} reads it, which is skipped then; "
                    f"leave out {name} or like"
                )

    def draw_parts(self, plan: SamplingPlan, parts: Sequence[Part]) -> list[Drawn]:
        *_, last = self.wiring
        return [drawn if isinstance(drawn, NotFiniteError) else drawn[last] for drawn in self.draw_links(plan, parts)]

    def part_of(self, link: str, part: Part, drawn: Mapping[str, NDArray[Any]]) -> Part:
        (drawer, fed, fixed), count = self.wiring[link], part.count
        seed = link_seed(part.seed, [*self.wiring].index(link))

        def value(column: Column) -> NDArray[Any]:
            if column.name in fixed:
                return column.read(fixed[column.name], count, first=part.first)
            if column.name in part.given:
                return part.given[column.name]
            if column.name in fed:
                return drawn[fed[column.name]]
            return column.draw(count, seed=seed, first=part.first)

        known = known_in_fewer_pixels(part.given, drawer.codec.shape[0]) if drawer.codec.pictures else {}
        return Part(seed, part.first, count, {column.name: value(column) for column in drawer.columns} | known)


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


def _check_links(links: Mapping[str, Link]) -> None:
    """
    Raises:
        ValueError: they do not fit together.
    """
    earlier: dict[str, Link] = {}
    for name, link in links.items():
        _check_inputs(name, link, earlier)
        for other in earlier.values():
            _check_common(link.asked, other.asked)
        earlier[name] = link


def _check_inputs(name: str, link: Link, earlier: Mapping[str, Link]) -> None:
    """Check what is fed to a link and fixed.

    Raises:
        ValueError: it is not what the link needs.
    """
    own = {column.name: column for column in link.drawer.columns}
    for fed, source in link.fed.items():
        if fed not in own:
            raise ValueError(f"the {name} has no column {fed}: it was trained without `condition.{fed}`")
        if source not in earlier:
            raise ValueError(f"the {name} needs the {source}, which does not draw before it")
        shape, wanted = earlier[source].drawer.codec.shape, own[fed].shape
        if shape != wanted:
            drawn, expected = ("×".join(map(str, each)) for each in (shape, wanted))
            raise ValueError(f"the {source} draws data of {drawn}, and the {name} needs {fed} of {expected}")
        if fed == EmbeddingColumn.name:
            _check_space(name, link.drawer, source, earlier[source].drawer)
    for fixed, value in link.fixed.items():
        if fixed in own:
            own[fixed].read(value, 1)
        elif value:
            raise ValueError(f"{fixed} must be 0, found {value:g}: the {name} was trained without it")
    shown = needed(link.asked)
    if pictures := [column.name for column in link.asked if isinstance(column, Derived) or column in shown]:
        raise ValueError(f"the {name} needs a picture that no link draws: {pictures[0]}")


def _check_space(name: str, link: Drawer, source: str, drawing: Drawer) -> None:
    """Check that an embedding is read in the space in which it was drawn.

    Raises:
        ValueError: it is of another CLIP.
    """
    drawn, read = drawing.embedded_by, link.embedded_by
    if drawn is not None and read is not None and drawn != read:
        raise ValueError(
            f"the {source} draws embeddings of the CLIP with SHA-256 {drawn[:12]}…, and the {name} was trained on "
            f"those of another, {read[:12]}…: train both after `ddpm embed` of the same CLIP"
        )


def _check_common(columns: Sequence[Column], others: Sequence[Column]) -> None:
    """Check that columns of the same name take the same values.

    Raises:
        ValueError: they do not.
    """
    own = {column.name: column for column in columns}
    for column in others:
        for what in ("classes", "tokenizer"):
            if column.name in own and getattr(column, what, None) != getattr(own[column.name], what, None):
                raise ValueError(f"the links were trained with different {what} of the column {column.name}")


# --- cascade.json ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LinkFacts:
    """What a link is, beside its directory.

    Attributes:
        variant: its name in params.yaml.
        fingerprint: of its training.
        sha256: of its weights' file.
        fed, fixed: as of `Link`.
    """

    variant: str
    fingerprint: str
    sha256: str
    fed: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)

    def is_current(self, models: Path) -> bool:
        """Whether the model of this name below `models` is of the same training, or is not there."""
        card = models / self.variant / "model.json"
        return not card.is_file() or read_json(card)["training"]["fingerprint"] == self.fingerprint

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError: a value is not of its type.
        """
        texts = [self.variant, self.fingerprint, self.sha256, *self.fed.values()]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("expected texts")
        for name, value in self.fixed.items():
            if type(value) not in (int, float):
                raise TypeError(f"expected a number `{name}`")


@dataclass(frozen=True)
class CascadeFacts:
    """cascade.json, beside the directories of the links.

    Attributes:
        leading: the link whose plan users choose.
        links: by their names, in the order in which they draw.
    """

    name: str
    leading: str
    links: Mapping[str, LinkFacts]

    def write(self, directory: Path) -> None:
        links = {name: asdict(link) for name, link in self.links.items()}
        write_json(directory / CASCADE, {"format": FORMAT, "name": self.name, "leading": self.leading, "links": links})

    @classmethod
    def read(cls, directory: Path) -> CascadeFacts:
        """
        Raises:
            UserError: the file is missing, damaged or of another format.
        """
        path = directory / CASCADE
        try:
            found = _of_today(read_json(path))
            links = {name: LinkFacts(**link) for name, link in found["links"].items()}
            facts = cls(found["name"], found["leading"], links)
            if not (isinstance(facts.name, str) and isinstance(facts.leading, str)):
                raise TypeError("expected texts")
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


def _of_today(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content of cascade.json in today's format. Before format 3 the first link leads. In format 1 the links are
    always `base` and `upsampler`, and the noise of the low image stands beside them.

    Raises:
        ValueError: it is of a later format.
    """
    version = found.get("format")
    if version == 1:
        base, upsampler = (found["links"][name] for name in ("base", "upsampler"))
        inputs = {"fed": {LowColumn.name: "base"}, "fixed": {LowNoiseColumn.name: found["low_noise"]}}
        return {**found, "leading": "base", "links": {"base": base, "upsampler": {**upsampler, **inputs}}}
    if version == 2:
        return {**found, "leading": next(iter(found["links"]), None)}
    if version != FORMAT:
        raise ValueError(f"its format is {brief(version)}, and this version of ddpm knows 1 to {FORMAT}")
    return found


def open_cascade(directory: Path, open_link: Callable[[Path], Drawer]) -> Cascade:
    """A cascade of models/ or of deploy/, whose links are in the directory.

    Args:
        open_link: opens the directory of a link.

    Raises:
        UserError: a file is missing or damaged, or a link is of another training than cascade.json says.
    """
    facts, links = CascadeFacts.read(directory), {}
    for name, link in facts.links.items():
        opened = open_link(directory / name)
        if opened.fingerprint != link.fingerprint:
            raise UserError(f"{directory / name} is of another training than {directory / CASCADE} says")
        links[name] = Link(opened, link.fed, link.fixed)
    try:
        return Cascade(links, name=facts.name, leading=facts.leading)
    except ValueError as error:
        raise UserError(f"{directory}: {error}") from None
