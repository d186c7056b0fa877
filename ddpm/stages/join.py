"""`ddpm join-controls OUT MODEL MODEL`: the controls of several models as one model, which follows all hints together.

The outputs of the controls are added (Zhang et al. 2023, §3.4, "Composing multiple ControlNets").
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from ddpm.conditioning.network import ConditionalNetwork
from ddpm.config.base import validate
from ddpm.config.condition import ConditionConfig, ControlConfig
from ddpm.errors import UserError
from ddpm.files import atomic_directory
from ddpm.layout import find_model
from ddpm.model import Model, load, save
from ddpm.model.card import ModelCard
from ddpm.model.network import build_network
from ddpm.nets.controlled import Controlled
from ddpm.training.configured import parameter_count
from ddpm.training.start import check_same_base


def join_controls(models: Sequence[Path | str], out: Path, *, root: Path = Path()) -> Model:
    """Write a model directory with the controls of two or three models, in their order.

    Raises:
        UserError: one of them has no control, or they are of different bases or data, or have too many controls
            together, or encode their hints by networks of different widths.
    """
    if len(models) < 2:
        raise UserError(f"expected two models with a control or more, found {len(models)}")
    found = {str(name): load(find_model(name, exported=False, root=root)) for name in models}
    first, *others = found.values()
    base = first.card.training.control_of
    if base is None:
        raise UserError(f"{models[0]} controls no model: it was trained without `condition.control`")
    for name, other in list(found.items())[1:]:
        check_same_base(other.card.training.control_of, base, name)
        if other.card.data.train_sha256 != first.card.data.train_sha256:
            raise UserError(f"{name} and {models[0]} were trained on different data")
    with atomic_directory(root / out) as directory:
        joined = _joined(first, others, out)
        save(joined, directory)
    return joined


@torch.no_grad()
def _joined(first: Model, others: Sequence[Model], out: Path) -> Model:
    card = _card(first, others, out)
    network = cast(ConditionalNetwork, build_network(card.config, first.codec, str(out), card.columns))
    whole = cast(Controlled, network.network)
    parts = [_controlled(model) for model in (first, *others)]
    whole.base.load_state_dict(parts[0].base.state_dict())
    for name in network.saved_as:
        network.get_submodule(name).load_state_dict(first.network.get_submodule(name).state_dict())
    controls = [control for part in parts for control in part.controls]
    for own, control in zip(whole.controls, controls, strict=True):
        own.load_state_dict(control.state_dict())
    card = card.model_copy(update={"parameters": parameter_count(network)})
    return Model(network.eval().requires_grad_(False), card, first.plan_source, autoencoder=first.autoencoder)


def _card(first: Model, others: Sequence[Model], out: Path) -> ModelCard:
    config, control = first.card.config, _section(first)
    for other in others:
        if (theirs := _section(other).widths) != control.widths:
            raise UserError(
                f"{other.variant} has condition.control.widths {theirs}, and {first.variant} {control.widths}: the two "
                "must be equal"
            )
    hints = [
        hint.model_dump(include={"hint", "sigma", "side"})
        for section in map(_section, others)
        for hint in (section, *section.also)
    ]
    section = {**control.model_dump(), "also": [*(hint.model_dump() for hint in control.also), *hints]}
    condition = validate(ConditionConfig, {**config.condition.model_dump(), "control": section}, str(out))
    marks = " ".join(model.fingerprint for model in (first, *others))
    training = first.card.training.model_copy(update={"fingerprint": hashlib.sha256(marks.encode()).hexdigest()})
    config = config.model_copy(update={"condition": condition})
    return first.card.model_copy(update={"variant": out.name, "config": config, "training": training})


def _section(model: Model) -> ControlConfig:
    control = model.card.config.condition.control
    assert control is not None  # it controls a model
    return control


def _controlled(model: Model) -> Controlled:
    return cast(Controlled, cast(ConditionalNetwork, model.network).network)
