"""params.yaml of a CLIP of small pictures with captions, a prior, a decoder and an upsampler, which are one model."""

from __future__ import annotations

import copy
import json
from typing import Any

from captioned import CLIP
from tiny import TINY_PARAMS

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
    prior = {
        "network": {"kind": "prior", "width": 16, "layers": 1, "heads": 2},
        "condition": {"prompt": {"of": "models/clip", "drop": 0.2}},
        "codec": {"embedding": ENCODER},
        "process": {"timesteps": 50, "schedule": "cosine", "prediction": "x0", "variance": "fixed_small"},
        "objective": {},
        "training": tiny["training"],
        "sampling": {"sampler": "ddim", "steps": 5},
    }
    decoder = {"codec": {"side": 4}, "condition": {"embedding": {**ENCODER, "tokens": 2, "width": 12}}}
    larger = {"condition": {"low": {"side": 4, "noise": 0.2}}, "sampling": {"steps": 3, "sampler": "ddim"}}
    models = {"clip": {**tiny, **CLIP, "training": tiny["training"]}, "prior": prior}
    models |= {name: copy.deepcopy(tiny) | parts for name, parts in (("decoder", decoder), ("larger", larger))}
    links = {"encoder": "clip", "prior": "prior", "decoder": "decoder", "upsampler": "larger", "low_noise": 0.1}
    built = {"variants": [], "encoders": ["clip"], "unclips": {"dalle": {**links, **dalle}}, "models": models}
    # Without shared parts, which YAML would write as aliases.
    data = {"source": "folder", "path": "pictures", "validation_fraction": 0.4}
    return json.loads(json.dumps({**params, **built, "data": data}))
