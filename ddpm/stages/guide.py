"""`ddpm record-guide V GUIDE` and `ddpm record-judge V CLIP`: by which weights a model is guided, and by which it is
measured, as files that DVC can depend on.

dvc.yaml has the same deps for all models, but each has another guide or none. So there is a small file for each pair of
a model and a guide, and only the file of a model's own guide changes when the guide does. The same holds of the CLIP
that measures models with captions.
"""

from __future__ import annotations

from pathlib import Path

from ddpm.config.params import Params
from ddpm.errors import UserError
from ddpm.files import sha256_of, write_json
from ddpm.layout import GUIDES, JUDGES, MODELS, find_model

# The stages that record what measures a model, and where in params.yaml those models are. Models with a control are not
# among them: they are shown what to draw.
JUDGED = {"judge": "variants", "judge-latent": "latents", "judge-cascade": "cascades", "judge-unclip": "unclips"}


def record_guide(params: Params, variant: str, guide: str, *, root: Path = Path()) -> None:
    """Write `models/V/guides/GUIDE.json`: the SHA-256 of the guide's files if its plan, or the one that it is measured
    by, names it; else an empty object.

    Raises:
        UserError: there is no such model or guide in params.yaml, or one of them is not trained.
    """
    params.variant(variant)
    if guide not in params.guides:
        raise UserError(f"{guide} is not among the `guides` of params.yaml")
    _record(variant, guide, GUIDES, guide in params.guides_of(variant), root)


def record_judge(params: Params, variant: str, clip: str, *, root: Path = Path()) -> None:
    """Write `models/V/judges/CLIP.json`: the SHA-256 of the CLIP's files if `evaluation.clip` names it and the model
    has captions; else an empty object.

    Raises:
        UserError: there is no such model or CLIP in params.yaml, or one of them is not trained.
    """
    links = params.composed[variant].links.values() if variant in params.composed else (variant,)
    prompted = any(params.variant(link).condition.prompt is not None for link in links)
    if clip not in params.encoders:
        raise UserError(f"{clip} is not among the `encoders` of params.yaml")
    _record(variant, clip, JUDGES, prompted and clip == params.evaluation.clip_name, root)


def _record(variant: str, other: str, folder: str, counts: bool, root: Path) -> None:
    """Write the file of a pair.

    Args:
        folder: below the model's directory.
        counts: whether the other decides anything for the model.
    """
    model, used = (find_model(MODELS / name, exported=False, root=root) for name in (variant, other))
    files = ("model.json", "model.safetensors") if counts else ()
    (model / folder).mkdir(exist_ok=True)
    write_json(model / folder / f"{other}.json", {name: sha256_of(used / name) for name in files})
