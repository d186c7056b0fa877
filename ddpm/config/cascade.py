"""params.yaml, `cascades`: two models that draw as one."""

from __future__ import annotations

from pydantic import Field

from ddpm.config.base import Float, Section
from ddpm.config.model import VariantConfig


class CascadeConfig(Section):
    """A model of small images, and one that makes them larger."""

    base: str = Field(description="the model that draws first, in fewer pixels: with `codec: {side: 16}`, for example")
    upsampler: str = Field(description="the model that enlarges what the base drew: with `condition.low`")
    low_noise: Float = Field(
        0.0,
        ge=0,
        le=1,
        description="standard deviation of the noise that is added to what the base drew; at most the upsampler's "
        "condition.low.noise",
    )

    @property
    def links(self) -> dict[str, str]:
        """The names of its models, by their keys, in the order in which they draw. The keys name the links everywhere:
        in cascade.json, among the directories, in the stages of dvc.yaml.
        """
        return {"base": self.base, "upsampler": self.upsampler}

    def check(self, base: VariantConfig, upsampler: VariantConfig) -> None:
        """Check that the two models fit together.

        Raises:
            ValueError: they do not; the message goes on after the name of the cascade.
        """
        side, low = base.codec.side, upsampler.condition.low
        if low is None:
            raise ValueError(f"has the upsampler {self.upsampler}, which needs `condition: {{low: {{side: …}}}}`")
        if side != low.side:
            raise ValueError(
                f"has the base {self.base} with codec.side {side or 'null'}, and the upsampler {self.upsampler} with "
                f"condition.low.side {low.side}: the two must be equal"
            )
        if upsampler.codec.side is not None:
            raise ValueError(f"has the upsampler {self.upsampler}, whose codec.side must be null")
        for name, model in ((self.base, base), (self.upsampler, upsampler)):
            pictures = [
                key for key in ("mask", *(["low"] if name == self.base else [])) if getattr(model.condition, key)
            ]
            if pictures:
                raise ValueError(f"has {name}, with condition.{pictures[0]}: no link draws what it needs")
            if model.sampling.guide is not None:
                raise ValueError(f"has {name}, whose sampling.guide must be null")
        if self.low_noise > low.noise:
            raise ValueError(
                f"has low_noise {self.low_noise:g}, more than condition.low.noise of {self.upsampler}, {low.noise:g}"
            )
        prompts = [model.condition.prompt for model in (base, upsampler)]
        for key in ("tokenizer", "length", "minimum_count", "vocabulary_size", "vocabulary"):
            values = [getattr(prompt, key) for prompt in prompts if prompt is not None]
            if len(values) == 2 and values[0] != values[1]:
                raise ValueError(
                    f"has links with condition.prompt.{key} {values[0]} and {values[1]}: the two must be equal"
                )
