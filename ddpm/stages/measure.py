"""The figures of an exported model, drawn by the runtime that ships."""

from __future__ import annotations

from pathlib import Path

from ddpm import tracking
from ddpm.compute.device import pick_device
from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.drawer import Drawer
from ddpm.evaluation.measure import Measurement, check_fit, facts_of, measure
from ddpm.files import write_json
from ddpm.layout import PREPARED, find_model, is_uri
from ddpm.opening import load
from ddpm.stages.progress import show


def measure_model(params: Params, model: str, out: Path, *, root: Path = Path()) -> Measurement:
    """Write the figures of a deploy directory or a registered model to a JSON file: `metrics` and `protocol`.

    Args:
        model: `deploy/V`, or a URI such as `models:/ddpm-digits@champion`.

    Raises:
        UserError: as `evaluate_deployed`; or there is no such model.
        UpstreamError: the MLflow server does not answer.
    """
    deploy = tracking.resolve(model, root) if is_uri(model) else find_model(model, trained=False, root=root)
    measured = evaluate_deployed(params, deploy, root=root, name=model)
    protocol = {"id": measured.protocol.id, **measured.protocol.as_dict()}
    write_json(out, {"metrics": measured.metrics, "protocol": protocol})
    return measured


def evaluate_deployed(params: Params, deploy: Path, *, root: Path = Path(), name: str | None = None) -> Measurement:
    """Measure a deploy directory as `ddpm evaluate` measures a model, against the present `prepared/` and
    `extractor/`, under the protocol of `params`; by the model's own plan where that has none.

    What needs the trained network itself is left out: the likelihood and the cost of an image.

    Args:
        name: what messages call it; None: its path.

    Raises:
        UserError: the directory, the extractor or the prepared data is missing or damaged, or the data are of another
            kind or shape.
    """
    sampler = measured_by(params, load(deploy))
    data, name = PreparedData.open(root / PREPARED), name or str(deploy)
    check_fit(sampler, data, name, "evaluation.sampling" if params.evaluation.sampling else "its own plan")
    return measure(
        sampler,
        params,
        facts_of(sampler),
        data=data,
        root=root,
        device=pick_device(),
        name=name,
        show=show,
    )


def measured_by(params: Params, drawer: Drawer) -> Drawer:
    """The model with the plan that it is measured under: the protocol's, or its own."""
    sampling = params.evaluation.sampling
    return drawer if sampling is None else drawer.sampled_by(sampling.model_dump())
