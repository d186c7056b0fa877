"""`ddpm export V`: ONNX, held against the trained model before anyone can register it."""

from __future__ import annotations

from pathlib import Path

from ddpm.config import Params
from ddpm.deploy.export import describe_sampler, export_denoiser, measure_parity
from ddpm.errors import UserError
from ddpm.files import atomic_directory, write_json
from ddpm.layout import DEPLOY, MODELS
from ddpm.model import load


def export_variant(params: Params, variant: str, *, root: Path = Path()) -> None:
    """Write `deploy/V/`: denoiser.onnx, sampler.json and parity.json.

    Raises:
        UserError: there is no model, or the exported one differs from it by more than export.parity_tolerance;
            then nothing is written.
    """
    config = params.variant(variant)
    model = load(root / MODELS / variant).sampled_by(config.sampling)
    options = params.export
    with atomic_directory(root / DEPLOY / variant) as out:
        export_denoiser(model, out / "denoiser.onnx")
        describe_sampler(model, out)
        parity = measure_parity(
            model,
            out,
            samples=options.parity_samples,
            steps=min(options.parity_steps, len(model.schedule)),
            tolerance=options.parity_tolerance,
        )
        print(
            f"{variant}: the exported model differs from the trained one by at most {parity['max_abs_difference']:.1e} "
            f"over {parity['steps']} DDIM steps (allowed: {options.parity_tolerance:g})"
        )
        if not parity["passed"]:
            raise UserError(
                f"{variant}: the ONNX model differs from the trained one by {parity['max_abs_difference']:.3g}, "
                f"more than export.parity_tolerance {options.parity_tolerance:g}; nothing was exported"
            )
        write_json(out / "parity.json", parity)
