"""Whether a model can guide another, by the cards of both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ddpm.conditioning.columns import Column, LabelColumn, PromptColumn
from ddpm.diffusion.schedules import Schedule
from ddpm.errors import UserError, listed
from ddpm.first_stage import latents_in_words
from ddpm.model.card import DataFacts, ModelCard
from ddpm.model.process import levels_of


def check_guide(model: ModelCard, guide: ModelCard, name: str) -> None:
    """
    Args:
        name: what names the guide, for errors.

    Raises:
        UserError: it cannot guide the model.
    """
    whose = f"{name} cannot guide {model.variant}"
    _check_data(model.data, guide.data, whose)
    _check_process(model, guide, whose)
    if guide.config.contrasts:
        _check_clip(model, guide, whose)
    elif guide.config.classifies:
        _check_classifier(model, guide, whose)
    else:
        _check_weaker(model, guide, whose)


def _check_data(model: DataFacts, guide: DataFacts, whose: str) -> None:
    if (model.kind, model.shape, model.low, model.high) != (guide.kind, guide.shape, guide.low, guide.high):
        shapes = [f"{each.kind} of {'×'.join(map(str, each.shape))}" for each in (guide, model)]
        raise UserError(f"{whose}: it was trained on {shapes[0]}, and the model on {shapes[1]}")
    if guide.latent != model.latent:
        found, expected = map(latents_in_words, (guide.latent, model.latent))
        raise UserError(f"{whose}: it was trained on {found}, and the model on {expected}")


def _check_process(model: ModelCard, guide: ModelCard, whose: str) -> None:
    both = [each.config.process for each in (guide, model)]
    theirs, ours = (Schedule.of(process.model_dump()) for process in both)
    if ours.coordinates != theirs.coordinates or not np.array_equal(ours.alphas_cumprod, theirs.alphas_cumprod):
        found, expected = (f"{levels_of(process)} with {process.timesteps} timesteps" for process in both)
        raise UserError(f"{whose}: it was trained with {found}, and the model with {expected}")


def _check_clip(model: ModelCard, guide: ModelCard, whose: str) -> None:
    objective = guide.config.objective
    if objective is None or not objective.noised:
        raise UserError(f"{whose}: it has seen no noisy images; train a CLIP with objective.noised true")
    _check_tokenizer(model, guide, whose)


def _check_classifier(model: ModelCard, guide: ModelCard, whose: str) -> None:
    """A model without a label is guided to the classes of its data, where it knows them."""
    own, its = _classes(model.columns), _classes(guide.columns)
    if not own and model.data.classes is not None:
        own = (model.data.classes,)
    if own and own != its:
        raise UserError(f"{whose}: it has {_listed_classes(its)}, and the model {_listed_classes(own)}")


def _check_weaker(model: ModelCard, guide: ModelCard, whose: str) -> None:
    prediction, other = model.config.process.prediction, guide.config.process.prediction
    if prediction != other:
        raise UserError(f"{whose}: it predicts {other}, and the model {prediction}")
    own, its = _classes(model.columns), _classes(guide.columns)
    if own != its:
        raise UserError(f"{whose}: it has {_listed_classes(its)}, and the model {_listed_classes(own)}")
    own_names, its_names = ([column.name for column in card.columns] for card in (model, guide))
    if own_names != its_names:
        raise UserError(f"{whose}: it is conditioned on {_listed(its_names)}, and the model on {_listed(own_names)}")
    _check_tokenizer(model, guide, whose)


def _check_tokenizer(model: ModelCard, guide: ModelCard, whose: str) -> None:
    """A model without a prompt has none."""
    own, its = ([each.tokenizer for each in card.columns if isinstance(each, PromptColumn)] for card in (model, guide))
    if own and its and own != its:
        raise UserError(f"{whose}: it was trained with another tokenizer than the model")


def _classes(columns: Sequence[Column]) -> tuple[tuple[str, ...], ...]:
    """Those of the label, if it is among the columns."""
    return tuple(column.classes for column in columns if isinstance(column, LabelColumn))


def _listed_classes(classes: Sequence[Sequence[str]]) -> str:
    return f"the classes {listed(classes[0])}" if classes else "no classes"


def _listed(names: Sequence[str]) -> str:
    return listed(names) if names else "nothing"
