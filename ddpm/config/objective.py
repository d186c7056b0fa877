"""params.yaml, `models.V.objective`: what training minimises."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    model_validator,
)

from ddpm.config.base import Bool, FilePath, Float, Int, Later, Positive, Section


class ReconstructionConfig(Section):
    """The loss of an autoencoder: the mean absolute error and, with weights, what makes its images sharp and its
    latents simple (Rombach et al. 2022, §3.1)."""

    perceptual: Float = Field(
        1.0, ge=0, description="weight of the distance in the features of the pipeline's extractor, or of LPIPS"
    )
    lpips: FilePath | None = Field(
        None,
        description='a file of lpips.LPIPS(net="vgg").state_dict(), for perceptual; null: the extractor\'s features. '
        "DVC does not track it",
    )
    kl: Float = Field(1e-6, ge=0, description="weight of the KL to the standard normal, summed over a latent")
    adversarial: Float = Field(
        0.5, ge=0, description="weight of the adversarial loss, beside the one that equals both gradients; 0: none"
    )
    adversarial_from: Int = Field(50_000, ge=0, description="the step from which there is an adversarial loss")
    discriminator_width: Positive = Field(64, description="channels of the discriminator's first layer")
    discriminator_layers: Positive = Field(3, description="layers of the discriminator that halve the side")


class ObjectiveConfig(Section):
    """What training minimises, and which timesteps it looks at."""

    loss: Literal["simple", "vlb", "hybrid", "elbo", "cross_entropy", "reconstruction", "contrastive"] = Field(
        "simple",
        description="simple: squared error; vlb: the variational bound; hybrid: simple, and 0.001 vlb for the variance;"
        " elbo: the bound of network.kind vae; cross_entropy: of network.kind classifier; reconstruction: of "
        "network.kind autoencoder; contrastive: of network.kind clip",
    )
    noised: Later[Bool] = Field(
        False,
        description="of loss: contrastive. true: the images are noised to any timestep of the process, so that the "
        "model can guide others (GLIDE); false: they are as they are, at timestep 0",
    )
    reconstruction: ReconstructionConfig | None = Field(None, description="of loss: reconstruction, what it is made of")
    reconstruction_weight: Float = Field(
        1.0, gt=0, description="of the squared error beside the KL in elbo: 1/(2 variance) of a pixel given z"
    )
    weighting: Literal["none", "min_snr"] = Field("none", description="of the squared error over the timesteps")
    gamma: Float = Field(5.0, gt=0, description="the SNR above which min_snr weighs all alike")
    timestep_sampler: Literal["uniform", "importance"] = Field(
        "uniform", description="importance: by the size of each timestep's latest losses, as the vlb needs it"
    )

    dropping: Literal["together", "apart"] = Field(
        "together",
        description="how several conditions of a datum are dropped; together: by the same random number, so that the "
        "rarer only with the others; apart: each by its own",
    )

    @model_validator(mode="after")
    def _a_reconstruction_is_described(self) -> ObjectiveConfig:
        if (self.loss == "reconstruction") != (self.reconstruction is not None):
            raise ValueError(
                "`loss: reconstruction` and the section `reconstruction` go together: give both or neither"
            )
        return self

    @model_validator(mode="after")
    def _a_clip_looks_at_all_timesteps_alike(self) -> ObjectiveConfig:
        if self.noised and self.loss != "contrastive":
            raise ValueError(f"`noised` is for `loss: contrastive`, found `loss: {self.loss}`")
        if self.loss == "contrastive" and self.timestep_sampler != "uniform":
            raise ValueError("`loss: contrastive` needs `timestep_sampler: uniform`: a loss is of the whole batch")
        return self

    @model_validator(mode="after")
    def _weighting_has_an_error_to_weigh(self) -> ObjectiveConfig:
        without = ("vlb", "elbo", "cross_entropy", "reconstruction", "contrastive")
        if self.loss in without and self.weighting != "none":
            raise ValueError(
                f"`weighting: {self.weighting}` is over the timesteps of a squared error, which `loss: {self.loss}` "
                "has none of"
            )
        return self
