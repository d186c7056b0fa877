"""The figures of an exported model, drawn by the runtime that ships."""

from __future__ import annotations

from pathlib import Path

from ddpm.config import Params, SamplingConfig, validate
from ddpm.data.store import PreparedData
from ddpm.deploy.runtime import Sampler
from ddpm.device import pick_device
from ddpm.layout import PREPARED
from ddpm.stages.evaluate import Measurement, measure


def evaluate_deployed(params: Params, deploy: Path, *, root: Path = Path()) -> Measurement:
    """Measure a deploy directory as `ddpm evaluate` measures a model, against the present `prepared/` and
    `extractor/`, under the protocol of `params`; by the model's own plan where that has none.

    What needs the trained network itself is left out: the likelihood and the cost of an image.

    Raises:
        UserError: the directory, the extractor or the prepared data is missing, damaged or of another kind.
    """
    sampler = Sampler(deploy)
    own = validate(SamplingConfig, sampler.facts["sampling"], str(deploy / "sampler.json"))
    return measure(
        sampler,
        params,
        sampling=params.evaluation.sampling or own,
        variance=sampler.facts["process"]["variance"],
        weights=sampler.facts.get("training", {}).get("weights", "ema"),
        data=PreparedData.open(root / PREPARED),
        root=root,
        device=pick_device(),
        name=str(deploy),
    )
