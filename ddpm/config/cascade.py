"""params.yaml, `cascades` and `unclips`: models that draw as one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar, NamedTuple

from pydantic import Field

from ddpm.config.base import Float, Section
from ddpm.config.model import VariantConfig
from ddpm.errors import UserError, listed

_LOW_NOISE = Field(
    0.0,
    ge=0,
    le=1,
    description="standard deviation of the noise that is added to the image that the upsampler enlarges; at most the "
    "upsampler's condition.low.noise",
)


class Stages(NamedTuple):
    """The stages of dvc.yaml that make a composition, without the @ and its name."""

    trainings: Mapping[str, str]
    """By the link that each trains, in the order in which the links draw."""
    compose: str
    evaluate: str
    export: str

    def of(self, name: str) -> list[str]:
        """All of them, of the composition of this name."""
        stages = (*self.trainings.values(), self.compose, self.evaluate, self.export)
        return [f"{stage}@{name}" for stage in stages]


class Wires(NamedTuple):
    """What the columns of a link have that nobody is asked for.

    Attributes:
        fed: the name of the link whose data a column has, by the column's name.
        fixed: the value that a column has for all data, by the column's name.
    """

    fed: Mapping[str, str] = {}
    fixed: Mapping[str, float] = {}


class CompositionConfig(Section):
    """Models that draw one after the other, and are measured, exported and registered as one."""

    key: ClassVar[str]
    """Of params.yaml, under which they stand."""
    stages: ClassVar[Stages]
    leading: ClassVar[str]
    """The link whose plan users choose."""

    upsampler: str = Field(description="the model that enlarges what was drawn: with `condition.low`")
    low_noise: Float = _LOW_NOISE

    @property
    def links(self) -> dict[str, str]:
        """The names of its models, by their keys, in the order in which they draw. The keys name the links everywhere:
        in cascade.json, among the directories, in the stages of dvc.yaml.
        """
        return {link: getattr(self, link) for link in self.stages.trainings}

    @property
    def encoders(self) -> tuple[str, ...]:
        """The names of the models that are trained before its links, and draw nothing."""
        return ()

    @abstractmethod
    def wiring(self, models: Mapping[str, VariantConfig]) -> dict[str, Wires]:
        """What each link is fed, and what is fixed of it.

        Args:
            models: of params.yaml, by the links' names.
        """

    @abstractmethod
    def check(self, models: Mapping[str, VariantConfig], encoders: Mapping[str, VariantConfig]) -> None:
        """Check that the models fit together.

        Args:
            models: of params.yaml, by the links' names.
            encoders: of params.yaml, by their own names: those that are trained before the links.

        Raises:
            ValueError: they do not; the message goes on after the name of the composition.
        """

    def _check_upsampling(self, source: str, models: Mapping[str, VariantConfig]) -> None:
        """Check that the upsampler enlarges what a link draws."""
        side, low = models[source].codec.side, models["upsampler"].condition.low
        name = self.links[source]
        if low is None:
            raise ValueError(f"has the upsampler {self.upsampler}, which needs `condition: {{low: {{side: …}}}}`")
        if side != low.side:
            raise ValueError(
                f"has the {source} {name} with codec.side {side or 'null'}, and the upsampler {self.upsampler} with "
                f"condition.low.side {low.side}: the two must be equal"
            )
        if models["upsampler"].codec.side is not None:
            raise ValueError(f"has the upsampler {self.upsampler}, whose codec.side must be null")
        if self.low_noise > low.noise:
            raise ValueError(
                f"has low_noise {self.low_noise:g}, more than condition.low.noise of {self.upsampler}, {low.noise:g}"
            )

    def _check_alone(self, models: Mapping[str, VariantConfig], fed: Collection[str]) -> None:
        """Check that no link needs a picture that no link draws, or a guide.

        Args:
            fed: links whose `low` an earlier link draws.
        """
        for link, model in models.items():
            keys = ("mask", "control", *([] if link in fed else ["low"]))
            if pictures := [key for key in keys if getattr(model.condition, key)]:
                raise ValueError(f"has {self.links[link]}, with condition.{pictures[0]}: no link draws what it needs")
            if model.sampling.guide is not None:
                raise ValueError(f"has {self.links[link]}, whose sampling.guide must be null")

    def _check_prompts(self, models: Mapping[str, VariantConfig]) -> None:
        """Check that all read captions alike.

        Args:
            models: by their names. Those with a CLIP's own text encoder read as the CLIP does.
        """
        own = {name: model.condition.prompt for name, model in models.items()}
        prompts = {name: prompt for name, prompt in own.items() if prompt is not None and not prompt.of}
        for key in ("tokenizer", "length", "minimum_count", "vocabulary_size", "vocabulary"):
            (first, expected), *others = [(name, getattr(each, key)) for name, each in prompts.items()] or [("", None)]
            for name, found in others:
                if found != expected:
                    raise ValueError(
                        f"has {first} with condition.prompt.{key} {expected}, and {name} with {found}: the two must be "
                        "equal"
                    )


class CascadeConfig(CompositionConfig):
    """A model of small images, and one that makes them larger."""

    key = "cascades"
    stages = Stages(
        {"base": "train-base", "upsampler": "train-upsampler"}, "compose", "evaluate-cascade", "export-cascade"
    )
    leading = "base"

    base: str = Field(description="the model that draws first, in fewer pixels: with `codec: {side: 16}`, for example")

    def wiring(self, models: Mapping[str, VariantConfig]) -> dict[str, Wires]:
        return {"base": Wires(), "upsampler": Wires({"low": "base"}, {"low_noise": self.low_noise})}

    def check(self, models: Mapping[str, VariantConfig], encoders: Mapping[str, VariantConfig]) -> None:
        self._check_upsampling("base", models)
        self._check_alone(models, fed=["upsampler"])
        self._check_prompts({self.links[link]: model for link, model in models.items()})


class UnclipConfig(CompositionConfig):
    """DALL-E 2's unCLIP (Ramesh et al. 2022): a model draws a CLIP's embedding of an image, one draws a small image of
    it, and one makes that larger.
    """

    key = "unclips"
    stages = Stages(
        {"prior": "train-prior", "decoder": "train-decoder", "upsampler": "train-unclip-upsampler"},
        *("compose-unclip", "evaluate-unclip", "export-unclip"),
    )
    leading = "decoder"

    encoder: str = Field(description="the CLIP of the embeddings, of `encoders`; it is trained first and draws nothing")
    prior: str = Field(description="the model that draws the embeddings: with `codec.embedding`")
    decoder: str = Field(description="the model that draws small images of them: with `condition.embedding`")

    @property
    def encoders(self) -> tuple[str, ...]:
        return (self.encoder,)

    def wiring(self, models: Mapping[str, VariantConfig]) -> dict[str, Wires]:
        of_prior = {"embedding": "prior"}
        enlarging = {"low": "decoder"} | (of_prior if models["upsampler"].condition.embedding else {})
        return {
            "prior": Wires(),
            "decoder": Wires(of_prior),
            "upsampler": Wires(enlarging, {"low_noise": self.low_noise}),
        }

    def check(self, models: Mapping[str, VariantConfig], encoders: Mapping[str, VariantConfig]) -> None:
        encoder = f"{{embedding: {{encoder: models/{self.encoder}}}}}"
        if models["prior"].codec.embedding is None:
            raise ValueError(f"has the prior {self.prior}, which needs `codec: {encoder}`")
        if models["decoder"].condition.embedding is None:
            raise ValueError(f"has the decoder {self.decoder}, which needs `condition: {encoder}`")
        for link, model in models.items():
            for key, found in model.encoders.items():
                if found not in (self.encoder, f"models/{self.encoder}"):
                    raise ValueError(
                        f"has the encoder {self.encoder}, and {self.links[link]} with {key} {found}: the two must be "
                        "the same model"
                    )
        self._check_upsampling("decoder", models)
        self._check_alone(models, fed=["upsampler"])
        self._check_prompts({**encoders, **{self.links[link]: model for link, model in models.items()}})


COMPOSITIONS: tuple[type[CompositionConfig], ...] = (CascadeConfig, UnclipConfig)


def stages_of(links: Collection[str]) -> Stages:
    """The stages that make a composition of these links.

    Raises:
        UserError: there are no such ones.
    """
    known = {tuple(config.stages.trainings): config.stages for config in COMPOSITIONS}
    if tuple(links) not in known:
        raise UserError(f"dvc.yaml has no stages that make a model of the links {listed(links)}")
    return known[tuple(links)]
