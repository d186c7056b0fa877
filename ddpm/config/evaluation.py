"""params.yaml, `evaluation`: how a model is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    model_validator,
)

from ddpm.config.base import FilePath, Int, Positive, Section, Switch
from ddpm.config.sampling import SamplingConfig

# What `evaluation.protocol` stands for, where it differs from the defaults. inception-50k is the papers' on CIFAR-10,
# whose reference is the 50,000 published training images.
PROTOCOLS: dict[str, dict[str, Any]] = {
    "digits-2k": {},
    "inception-50k": {
        "features": "inception",
        "reference": "published",
        "samples": 50_000,
        "resamples": 50,
        "nll_samples": 1000,
        "nll_timesteps": None,
    },
    "quick": {"samples": 256, "splits": 2, "resamples": 50, "nll_samples": 0},
}


class EvaluationConfig(Section):
    """How a model is measured. All that decides a figure enters the protocol that each figure carries."""

    protocol: Literal["digits-2k", "inception-50k", "quick"] = Field(
        "digits-2k", description="values of the keys below, where they are not written"
    )
    features: Literal["any", "inception"] = Field(
        "any", description="any: of the extractor there is; inception: of InceptionV3 or none"
    )
    reference: Literal["train", "all", "published"] = Field(
        "train",
        description="real images that generated ones are held against: the training split, both splits, or the images "
        "published for training: train where validation has its own published images, else all",
    )
    samples: Int = Field(2000, ge=4, description="images drawn to be measured")
    sampling: SamplingConfig | None = Field(
        None, description="a plan that every model is measured under; null: each under its own"
    )
    labels: Literal["frequencies", "balanced"] = Field(
        "frequencies",
        description="what a conditional model is asked for: classes as often as in the training data, or all alike",
    )
    held_out_samples: Int = Field(
        200,
        ge=0,
        description="images drawn of captions that training has not seen, of a model with condition.prompt; 0: none",
    )
    clip: FilePath | None = Field(
        None,
        description="a model of network.kind clip, such as models/clip-emoji, by which models with condition.prompt "
        "get a CLIP score and an R-precision; null: none",
    )
    batch_size: Positive = Field(500, description="images a batch; does not change the samples")
    devices: Positive = Field(1, description="processes on this machine that draw the samples of `ddpm evaluate`")
    splits: Positive = Field(
        10, description="splits of the Inception Score, at most; each needs two samples and two validation images"
    )
    resamples: Int = Field(200, ge=2, description="of the bootstrap that gives FID and IS their intervals")
    nll_samples: Int = Field(
        40,
        ge=0,
        description="images of each split whose likelihood is bounded, a network evaluation a timestep; 0: none",
    )
    nll_timesteps: Annotated[Int, Field(ge=4)] | None = Field(
        100,
        description="timesteps that the bound is estimated from, with a standard error; null: all, the exact bound",
    )

    nll_ode: Switch = Field(
        "auto",
        description="the likelihood of these images by the probability-flow ODE; auto: of processes in continuous "
        "time, which have no bound",
    )
    nll_ode_steps: Positive = Field(
        64, description="of the ODE; each takes two evaluations of the network, and of its gradient"
    )

    @property
    def clip_name(self) -> str | None:
        """The CLIP's, if it is a model of the project: `models/NAME` or `NAME`."""
        path = Path(self.clip or "/")
        return path.name if path.parent in (Path("models"), Path()) else None

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, raw: Any) -> Any:
        """Put the protocol's values under the keys that are given."""
        name = raw.get("protocol") if isinstance(raw, dict) else None
        return {**PROTOCOLS[name], **raw} if isinstance(name, str) and name in PROTOCOLS else raw
