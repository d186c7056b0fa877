"""What can be known before a training: whether its model can be measured, sampled and exported afterwards."""

from __future__ import annotations

from pathlib import Path

from ddpm.config.model import ModelConfig
from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.diffusion.plans import plan_for
from ddpm.errors import UserError
from ddpm.evaluation.requirements import check_enough, check_extractor
from ddpm.layout import PREPARED


def check_all_plans(params: Params) -> None:
    """Check the plans of all models that the pipeline builds, before `ddpm prepare` reads images.

    Raises:
        UserError: a plan is not one of its model's.
    """
    without = {*params.guides, *params.autoencoders, *params.encoders}
    for variant in params.trained:
        if variant not in without:
            _check_plans(params, variant)


def check_all_networks(params: Params, *, root: Path = Path()) -> None:
    """Check the networks of all models that the pipeline builds, before anything is fitted to the prepared data.

    Raises:
        UserError: a network does not fit the data.
    """
    # These import torch, which takes 2 seconds; plans need none.
    from ddpm.model.network import codec_of, columns_for
    from ddpm.stages.memory import without_memory
    from ddpm.stages.train import data_facts

    data = PreparedData.open(root / PREPARED)
    for variant in params.trained:
        config = params.variant(variant)
        where = f"models.{variant}"
        if needs_another(config):
            continue  # an autoencoder or a CLIP says its shapes, and may have yet to be trained
        columns = columns_for(config, data_facts(data, config, where, root), where)
        without_memory(config, codec_of(config, data.codec, where), columns, f"params.yaml: {where}")


def needs_another(config: ModelConfig) -> bool:
    """Whether another model, which has to be trained first, decides the shapes of this one."""
    prompt = config.condition.prompt
    return not config.codec.bounded or config.condition.embedding is not None or bool(prompt and prompt.of)


def check_model(params: Params, variant: str, *, root: Path = Path()) -> None:
    """Check that a model can be measured and exported once it is trained on the prepared data.

    Raises:
        UserError: there are too few images, no extractor of the kind asked for can be made, or a plan is not one of
            the model's.
    """
    _check_plans(params, variant)
    data = PreparedData.open(root / PREPARED)
    if data.codec.pictures:
        manifest = data.manifest
        published = manifest.rules.validation_fraction is None
        check_enough(params.evaluation, len(data.split("train")), len(data.split("validation")), published=published)
        check_extractor(params.extractor.kind, labelled=manifest.classes is not None, channels=manifest.shape[2])


def _check_plans(params: Params, variant: str) -> None:
    """The plan that the model is exported with, and the one that it is measured by; an upsampler or a prior in a
    cascade is measured by its own."""
    config = params.variant(variant)
    for sampling, key in ((config.sampling, f"models.{variant}.sampling"), params.measured_plan(variant)):
        why = config.condition.why_not_guidable
        if sampling.guide is None and sampling.guidance_scale != 1 and why:
            raise UserError(f"{key}.guidance_scale is {sampling.guidance_scale:g}, but models.{variant}.{why}")
        try:
            bounded = config.codec.bounded
            plan_for(config.process.model_dump(), sampling.model_dump(), bounded=bounded)
        except ValueError as error:
            raise UserError(f"{key} does not fit models.{variant}.process: {error}") from None
