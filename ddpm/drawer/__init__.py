"""Everything that draws: batches, seeds, conditions and progress, written once (numpy only)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.codecs.scale import Codec
from ddpm.conditioning.columns import NAMES, PICTURE_NAMES, PICTURES, Column, Given, PromptColumn, united
from ddpm.conditioning.control_weights import WEIGHTS
from ddpm.conditioning.image_embedding import EmbeddingColumn
from ddpm.conditioning.pictures import MaskColumn, mask_columns, with_known
from ddpm.diffusion.noise import ImageNoise
from ddpm.diffusion.plans import SamplingPlan, plan_for, unguided_scale
from ddpm.drawer.likeness import Encoder, Likeness
from ddpm.drawer.parts import Drawn, Float32, Part, data_of, together
from ddpm.errors import NotFiniteError

_OF_CONTROLS = ("control_scale", "control_interval", "guess")
_FIRST_CANDIDATE = 100  # purposes of `noise.stream` from here on are of candidates after the first


class Drawer(ABC):
    """A model that draws data: a trained one, an exported one, a cascade of either.

    Everything that draws is a chain of `links`, of which a single model is the only one.
    """

    plan_source: str
    """Where its own sampling plan comes from."""

    @property
    @abstractmethod
    def codec(self) -> Codec:
        """What is drawn, and how the network sees it."""

    @property
    @abstractmethod
    def columns(self) -> tuple[Column, ...]:
        """What the model is conditioned on; empty of an unconditional one."""

    @property
    @abstractmethod
    def choices(self) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The sections `process` and `sampling`, as in params.yaml."""

    @property
    @abstractmethod
    def guidable(self) -> bool:
        """Whether a plan may have guidance."""

    @property
    def variant(self) -> str:
        """Its name in params.yaml; empty if nobody said."""
        return ""

    @property
    def fingerprint(self) -> str:
        """Of everything that decided its weights; empty if nobody said."""
        return ""

    @property
    def weights(self) -> str:
        """Which of a training's weights it has."""
        return "ema"

    @property
    def links(self) -> Mapping[str, Drawer]:
        """The models that draw, by their names, in the order in which they draw; of a single model itself, under the
        empty name.
        """
        return {"": self}

    @property
    def leading(self) -> str:
        """The link whose plan users choose."""
        return next(iter(self.links))

    def links_for(self, given: Collection[str]) -> Set[str]:
        """The links that have to draw where these columns are given: the last, and those that feed one of them."""
        return self.links.keys()

    def refuse_unread(self, asked: Collection[str]) -> None:
        """Refuse what is asked beside a picture's embedding and has no effect.

        Args:
            asked: names of columns.

        Raises:
            ValueError: no link reads one of them, since those that do have nothing to draw.
        """
        return

    @property
    def _without_text(self) -> dict[str, str]:
        """What is asked for beside an embedding if no text is: the empty prompt; nothing of a model that reads none."""
        drawing = self.links_for([EmbeddingColumn.name])
        read = {column.name for name in drawing for column in self.links[name].columns}
        return {name: "" for name in (PromptColumn.name,) if name in read}

    @property
    def other_plans(self) -> Mapping[str, Mapping[str, Any]]:
        """What decides how a cascade draws besides its plan: by the names of the other links, the choices of their
        plans and the inputs that the cascade fixes; empty of a single model.
        """
        return {}

    @property
    def where(self) -> str | None:
        """What an exported model runs on, in a line; None of others."""
        return None

    @property
    def attribution(self) -> str | None:
        """The credit for the training images, which goes into each picture's file; None: none is asked for."""
        return None

    @property
    def by_classifier(self) -> bool:
        """Whether guidance is by a classifier or a CLIP, whose scale is counted from 0."""
        return False

    @property
    def guide_mark(self) -> str | None:
        """The model that guides it, as protocols name it: its name and the start of its weights' SHA-256; None: no
        other model does.
        """
        return None

    @property
    def unguided_scale(self) -> float:
        """The guidance scale that is no guidance."""
        return unguided_scale(self.by_classifier)

    @property
    def encoder(self) -> Encoder | None:
        """What made the embeddings that the model is conditioned on; None: it is conditioned on none."""
        return None

    @property
    def embedded_by(self) -> str | None:
        """The SHA-256 of the weights of the CLIP whose embeddings the model draws or is conditioned on, or whose text
        encoder it has; None: it has none, or does not say."""
        return None

    @property
    def candidates(self) -> int:
        """Data drawn for each that is kept: the one with the highest of `scores`."""
        return int(self.choices[1].get("candidates", 1))

    def scores(self, x: Float32, given: Given) -> Float32:
        """How well data fit what they were asked for, [N]; of a model with several candidates.

        Args:
            x: as the network sees them, [N, ...].
            given: a value of each column, [N, ...].
        """
        raise NotImplementedError

    @property
    def largest_batch(self) -> int | None:
        """As many data as are drawn together at most, whatever is asked for; None: no limit."""
        return None

    @abstractmethod
    def sampled_by(self, sampling: Mapping[str, Any]) -> Drawer:
        """The same weights with another plan of their own.

        Args:
            sampling: the section `sampling` of params.yaml.

        Raises:
            UserError: it is not a section that the model can have.
        """

    @abstractmethod
    def draw_parts(self, plan: SamplingPlan, parts: Sequence[Part]) -> list[Drawn]:
        """Draw several parts as one batch: of each the data that it would get alone, to the rounding of floats. If the
        network's output is NaN or infinite for one part, the others still get theirs.
        """

    def draw(
        self, count: int, plan: SamplingPlan, *, seed: int, first: int = 0, given: Given | None = None
    ) -> NDArray[Any]:
        """The data `first` .. `first + count − 1` of a seed in one batch, [count, *shape] as they are stored.

        Args:
            given: a value of each of the model's columns, [count, ...]; None: as `given` draws them.

        Raises:
            NotFiniteError: the network's output is NaN or infinite.
        """
        (drawn,) = self.draw_parts(plan, [self.part(count, seed=seed, first=first, given=given)])
        return data_of(drawn)

    def part(self, count: int, *, seed: int, first: int = 0, given: Given | None = None) -> Part:
        """The arguments of `draw` as a part of a batch."""
        return Part(seed, first, count, self.given(count, seed=seed, first=first) if given is None else given)

    def part_of(self, link: str, part: Part, drawn: Mapping[str, NDArray[Any]]) -> Part:
        """The part as one of the links draws it: with the link's own seed and a value of each of its columns.

        Args:
            drawn: what the earlier links drew of the part, by their names.
        """
        return part

    def plans(self, plan: SamplingPlan) -> Mapping[str, SamplingPlan]:
        """The plan of each link, in their order, where the model's is `plan`."""
        return dict.fromkeys(self.links, plan)

    def draw_links(self, plan: SamplingPlan, parts: Sequence[Part]) -> list[dict[str, NDArray[Any]] | NotFiniteError]:
        """As `draw_parts`, of each part what the links draw that have to, by the links' names."""
        chains: list[dict[str, NDArray[Any]] | NotFiniteError] = [{} for _ in parts]
        wanted = [self.links_for(part.given) for part in parts]
        for name, own_plan in self.plans(plan).items():
            left = {
                number: drawn
                for number, drawn in enumerate(chains)
                if isinstance(drawn, dict) and name in wanted[number]
            }
            if not left:
                continue
            own = [self.part_of(name, parts[number], drawn) for number, drawn in left.items()]
            for number, found in zip(left, self.links[name].draw_parts(own_plan, own), strict=True):
                chains[number] = found if isinstance(found, NotFiniteError) else {**left[number], name: found}
        return chains

    def decode(self, x: Float32) -> NDArray[Any]:
        """What a network has drawn, [N, C, ...] in about [−1, 1], as data: images [N, H, W, C] uint8.

        Raises:
            NotFiniteError: it holds NaN or infinite values.
        """
        return self.codec.decode(x)

    def _in_one_run(
        self, parts: Sequence[Part], run: Callable[[Callable[[], Float32], dict[str, NDArray[Any]]], Float32]
    ) -> list[Drawn]:
        """`draw_parts` of a single model.

        Args:
            run: runs the plan: (draws of standard normal numbers [N, C, ...], the values of the columns) → x_0.
        """
        shape, given = self.codec.network_shape, together(self.askable, parts)

        def drawn(candidate: int) -> Float32:
            purpose = 0 if candidate == 0 else _FIRST_CANDIDATE + candidate
            noises = [ImageNoise(each.seed, each.count, shape, first=each.first, purpose=purpose) for each in parts]
            return run(lambda: np.concatenate([noise.draw() for noise in noises]), given)

        x = drawn(0) if self.candidates == 1 else self._best([drawn(each) for each in range(self.candidates)], given)
        ends = np.cumsum([part.count for part in parts])[:-1]
        return [self._decoded(own, part.given) for own, part in zip(np.split(x, ends), parts, strict=True)]

    def _best(self, candidates: Sequence[Float32], given: Given) -> Float32:
        """Of each datum the candidate with the highest score; of equal ones the first. One that is not finite is only
        chosen if none is."""

        def scores(x: Float32) -> Float32:
            finite = np.isfinite(x).all(axis=tuple(range(1, x.ndim)), keepdims=True)
            return np.where(finite.reshape(-1), self.scores(np.where(finite, x, 0), given), -np.inf)

        chosen = np.stack([scores(x) for x in candidates]).argmax(0)
        return np.stack(candidates)[chosen, np.arange(len(chosen))]

    def _decoded(self, x: Float32, given: Given) -> Drawn:
        try:
            return with_known(self.decode(x), given)
        except NotFiniteError as error:
            return error

    def plan(self, **overrides: Any) -> SamplingPlan:
        """The model's own sampling plan, or one with some of its choices (config's `sampling`) replaced.

        Raises:
            ValueError: a name or a number that no plan can be made of, a choice that the sampler does not use, or
                guidance of a model that cannot be guided.
        """
        process, sampling = self.choices
        plan = plan_for(process, sampling, by_classifier=self.by_classifier, bounded=self.codec.bounded, **overrides)
        if not self.guidable and plan.column("guidance").any():
            raise ValueError(f"guidance_scale must be 1: the model {self.why_not_guidable()}")
        steered = plan.control is not None or any(overrides.get(name) is not None for name in _OF_CONTROLS)
        if steered and all(column.name != WEIGHTS for column in self.columns):
            raise ValueError(
                "control_scale, control_interval and guess are for models with a control; this one has none"
            )
        return plan

    def evaluations(self, plan: SamplingPlan) -> int:
        """Evaluations of networks that a datum takes by a plan of the model's."""
        return sum(each.evaluations * self.links[name].candidates for name, each in self.plans(plan).items())

    def why_not_guidable(self) -> str:
        """Why a plan may have no guidance, to go on after "the model"."""
        kept = [f"condition.{c.key}.drop is 0" for c in self.columns if getattr(c, "droppable", None) is False]
        if kept:
            return f"was trained without dropping its condition ({', '.join(kept)})"
        return "has no guide, and its condition cannot be dropped" if self.columns else "has no condition and no guide"

    @property
    def askable(self) -> tuple[Column, ...]:
        """The model's columns, and `image` and `mask` of any model of pixels: what is known of an image is put back at
        each step, whether the model was trained for it or not. A number of a latent is of many pixels.
        """
        of_pixels = self.codec.pictures and self.codec.levels is not None
        inpainting = mask_columns({}, {"shape": self.codec.shape}) if of_pixels else ()
        return united(inpainting, self.columns)

    def column(self, name: str) -> Column:
        """One of the askable columns.

        Raises:
            ValueError: there is none of this name.
        """
        for column in self.askable:
            if column.name == name:
                return column
        names = [each for each in (*NAMES, *PICTURE_NAMES) if each in {column.name for column in self.askable}]
        names += ["like"] if self.encoder is not None else []
        raise ValueError(f"{name}: the model takes no such input; it takes: {', '.join(names) or 'none'}")

    def given(self, count: int, *, seed: int = 0, first: int = 0, **asked: Any) -> dict[str, NDArray[Any]]:
        """A value of each column for the data `first` .. `first + count − 1` of a seed, [count, ...]; also of `image`
        and `mask` that the model has no columns for, if they are asked for.

        Args:
            asked: what is asked for, by the column's name; None, or left out: drawn as often as in the training data,
                by the datum's own seed. A prompt beside an embedding is the empty one unless it is asked for.

        Raises:
            ValueError: it is not a value of the column, or the model has no such column.
        """
        asked = {name: value for name, value in asked.items() if value is not None}
        if EmbeddingColumn.name in asked:
            asked = {**self._without_text, **asked}
        own = {column.name: column for column in self.columns} | {name: self.column(name) for name in asked}
        for name in asked:
            other = getattr(own[name], "goes_with", name)
            if other not in asked:
                raise ValueError(f"{name} needs {other} as well: give both or neither")
        return {
            name: column.draw(count, seed=seed, first=first)
            if name not in asked
            else column.read(asked[name], count, first=first)
            for name, column in own.items()
        }

    def sample(
        self,
        count: int,
        *,
        seed: int = 0,
        batch_size: int = 64,
        on_batch: Callable[[int], object] = lambda done: None,
        **overrides: Any,
    ) -> NDArray[Any]:
        """Draw `count` data, images [count, H, W, C] uint8; the same ones whatever the batch size.

        Args:
            seed: of the noise, and of what a column is not asked for; image i of a seed is always the same.
            batch_size: at most; fewer where so many would not fit the memory.
            on_batch: called with the number of images done after every batch.
            overrides: as for `plan`, and a value of a column, such as `label=7` or `label=["cat", "dog"]`: of several,
                datum i gets the one at i modulo their number.

        Raises:
            ValueError: as `plan` and `given`.
            NotFiniteError: the network's output is NaN or infinite.
        """
        images = np.empty((count, *self.codec.shape), dtype=self.codec.dtype)
        done = 0
        for batch in self.batches(count, seed=seed, batch_size=batch_size, **overrides):
            images[done : done + len(batch)] = batch
            done += len(batch)
            on_batch(done)
        return images

    def batches(self, count: int, *, seed: int = 0, batch_size: int = 64, **overrides: Any) -> Iterator[NDArray[Any]]:
        """As `sample`, in the memory of one batch: [≤ batch_size, *shape] at a time."""
        asked, plan = self._split(overrides)
        batch_size = self._at_once(batch_size)
        for first in range(0, count, batch_size):
            size = min(batch_size, count - first)
            given = self.given(size, seed=seed, first=first, **asked)
            yield self.draw(size, plan, seed=seed, first=first, given=given)

    def _at_once(self, batch_size: int) -> int:
        """A batch size that fits the memory."""
        return min(batch_size, self.largest_batch or batch_size)

    def alike(
        self,
        likeness: Likeness,
        count: int,
        *,
        seed: int = 0,
        batch_size: int = 64,
        on_batch: Callable[[int], object] = lambda done: None,
        **overrides: Any,
    ) -> NDArray[Any]:
        """Draw data like given pictures, [count, *shape]; of an interpolation or a difference of texts as many as it
        has steps, all of the noise of datum 0.

        A prior draws nothing then. A prompt that nobody asks for is the empty one.

        Args:
            seed, batch_size, on_batch, overrides: as of `sample`.

        Raises:
            ValueError: the model is conditioned on no embeddings, or as `sample`.
            NotFiniteError: the network's output is NaN or infinite.
        """
        if self.encoder is None:
            raise ValueError("like: the model is conditioned on no embeddings of pictures (condition.embedding)")
        found = likeness.embeddings(self.encoder)
        overrides = {name: value for name, value in overrides.items() if value is not None}
        self.refuse_unread(overrides)
        if likeness.steps is None:
            asked = {**overrides, EmbeddingColumn.name: found}
            return self.sample(count, seed=seed, batch_size=batch_size, on_batch=on_batch, **asked)
        asked, plan = self._split(overrides)
        for name, value in asked.items():
            if isinstance(value, (list, tuple)) and len(value) > 1:
                raise ValueError(f"{name}: with mix, or from and to, all images have the same; found {len(value)}")
        batch_size, drawn = self._at_once(batch_size), []
        for first in range(0, len(found), batch_size):
            parts = [
                self.part(1, seed=seed, given=self.given(1, seed=seed, **asked, embedding=each))
                for each in found[first : first + batch_size]
            ]
            drawn += [data_of(each) for each in self.draw_parts(plan, parts)]
            on_batch(len(drawn))
        return np.concatenate(drawn)

    def check(self, overrides: Mapping[str, Any]) -> None:
        """Refuse what `sample` would refuse, before anything is drawn.

        Raises:
            ValueError: as `sample`.
        """
        asked, _ = self._split(overrides)
        self.given(1, **asked)

    def _split(self, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], SamplingPlan]:
        """What is asked of the columns, and the plan."""
        asked = {name: overrides[name] for name in (*NAMES, *PICTURES, EmbeddingColumn.name) if name in overrides}
        refuse_without_mask(overrides.get("inpainting"), asked)
        return asked, self.plan(**{name: value for name, value in overrides.items() if name not in asked})


def refuse_without_mask(inpainting: str | None, asked: Mapping[str, Any]) -> None:
    """
    Args:
        inpainting: as asked for.
        asked: of the columns.

    Raises:
        ValueError: there is no image of which a part is kept.
    """
    if inpainting is not None and asked.get(MaskColumn.name) is None:
        raise ValueError("inpainting is how a part of an image is kept: it needs image and mask")
