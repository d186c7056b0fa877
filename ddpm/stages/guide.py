"""`ddpm record-guide V GUIDE`: by which weights a model is guided, as a file that DVC can depend on.

dvc.yaml has the same deps for all models, but each has another guide or none. So there is a small file for each pair of
a model and a guide, and only the file of a model's own guide changes when the guide does.
"""

from __future__ import annotations

from pathlib import Path

from ddpm.config.params import Params
from ddpm.errors import UserError
from ddpm.files import sha256_of, write_json
from ddpm.layout import GUIDES, MODELS, find_model


def record_guide(params: Params, variant: str, guide: str, *, root: Path = Path()) -> None:
    """Write `models/V/guides/GUIDE.json`: the SHA-256 of the guide's files if its plan, or the one that it is measured
    by, names it; else an empty object.

    Raises:
        UserError: there is no such model or guide in params.yaml, or one of them is not trained.
    """
    params.variant(variant)
    if guide not in params.guides:
        raise UserError(f"{guide} is not among the `guides` of params.yaml")
    model, guiding = (find_model(MODELS / name, exported=False, root=root) for name in (variant, guide))
    files = ("model.json", "model.safetensors") if guide in params.guides_of(variant) else ()
    (model / GUIDES).mkdir(exist_ok=True)
    write_json(model / GUIDES / f"{guide}.json", {name: sha256_of(guiding / name) for name in files})
