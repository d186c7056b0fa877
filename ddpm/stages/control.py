"""Whether the model that a ControlNet controls is still the one that it was trained on."""

from __future__ import annotations

from pathlib import Path

from ddpm.errors import UserError
from ddpm.files import sha256_of
from ddpm.layout import find_model
from ddpm.model import Model


def check_base(model: Model, *, root: Path = Path()) -> None:
    """Check that the base of a model with a control has not been trained again since. Nothing is said where it is gone:
    the model has its weights.

    Raises:
        UserError: it has; both hashes are said.
    """
    control, facts = model.card.config.condition.control, model.card.training.control_of
    if control is None or facts is None:
        return
    try:
        directory = find_model(control.of, exported=False, root=root)
    except UserError:
        return
    found = sha256_of(directory / "model.safetensors")
    if found != facts.sha256:
        raise UserError(
            f"{model.variant} was trained to control {facts.variant} with the SHA-256 {facts.sha256[:12]}…, and "
            f"{directory} has {found[:12]}… now: run `ddpm train {model.variant}`"
        )
