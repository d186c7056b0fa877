"""params.yaml of a CLIP of small pictures with captions, a prior, a decoder and an upsampler, which are one model."""

from __future__ import annotations

import copy
import json
from typing import Any

from tiny import TINY_PARAMS

CLIP = {
    "network": {
        "kind": "clip",
        "width": 8,
        "multipliers": [1, 2],
        "blocks": 1,
        "attention_resolutions": [4],
        "head_channels": 4,
        "groups": 4,
        "dropout": 0.0,
        "embedding": 8,
    },
    "condition": {"prompt": {"length": 4, "width": 12, "layers": 1, "heads": 2, "drop": 0}},
    "objective": {"loss": "contrastive"},
}
ENCODER = {"encoder": "models/clip"}


def unclip_params(**dalle: Any) -> dict[str, Any]:
    """Pictures of 8×8 from a prompt: their embeddings, pictures of 4×4 of these, then larger ones.

    Args:
        dalle: of `unclips.dalle`.
    """
    params = copy.deepcopy(TINY_PARAMS)
    tiny = params["models"]["tiny"]
    training = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 3, "log_every": 2}
    tiny |= {"training": {**tiny["training"], **training}}
    own = {key: {**tiny[key], **CLIP.get(key, {})} for key in ("training", "sampling", "process")}
    prior = {
        "network": {"kind": "prior", "width": 16, "layers": 1, "heads": 2},
        "condition": {"prompt": {"of": "models/clip", "drop": 0.2}},
        "codec": {"embedding": ENCODER},
        "process": {"timesteps": 50, "schedule": "cosine", "prediction": "x0", "variance": "fixed_small"},
        "objective": {},
        "training": own["training"],
        "sampling": {"sampler": "ddim", "steps": 5},
    }
    decoder = {"codec": {"side": 4}, "condition": {"embedding": {**ENCODER, "tokens": 2, "width": 12}}}
    larger = {"condition": {"low": {"side": 4, "noise": 0.2}}, "sampling": {"steps": 3, "sampler": "ddim"}}
    own_clip = {**CLIP, **own, "codec": {}, "objective": CLIP["objective"]}
    models = {"clip": own_clip, "prior": prior}
    models |= {name: copy.deepcopy(tiny) | parts for name, parts in (("decoder", decoder), ("larger", larger))}
    links = {"encoder": "clip", "prior": "prior", "decoder": "decoder", "upsampler": "larger", "low_noise": 0.1}
    built = {"variants": [], "encoders": ["clip"], "unclips": {"dalle": {**links, **dalle}}, "models": models}
    # Without shared parts, which YAML would write as aliases.
    data = {"source": "folder", "path": "pictures", "validation_fraction": 0.4}
    return json.loads(json.dumps({**params, **built, "data": data}))
