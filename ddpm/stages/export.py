"""`ddpm export V`: ONNX, held against the trained model before anyone can register it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from ddpm.conditioning.columns import PromptColumn
from ddpm.config.export import ExportConfig
from ddpm.config.params import Params
from ddpm.deploy.encoders import IMAGE_ENCODER, TEXT_ENCODER
from ddpm.deploy.runtime import Precision
from ddpm.drawer.cascade import Cascade
from ddpm.errors import NotFiniteError, UserError
from ddpm.export.cascade_parity import measure_cascade_parity
from ddpm.export.encoders import export_encoders
from ddpm.export.files import (
    describe_sampler,
    export_decoder,
    export_denoiser,
    export_guide,
    export_half,
    export_sampler,
)
from ddpm.export.parity import chain_parity, measure_parity
from ddpm.export.text_to_image import beside, export_text_to_image, link_of, links_of
from ddpm.files import atomic_directory, write_json
from ddpm.layout import CASCADE, DEPLOY, MODELS
from ddpm.model import Model, load
from ddpm.stages.compose import open_composed
from ddpm.stages.control import check_base
from ddpm.stages.progress import bar

WITHOUT_STEPS = (IMAGE_ENCODER, TEXT_ENCODER, "decoder.onnx")  # files that are compared by one evaluation


def export_variant(params: Params, variant: str, *, root: Path = Path()) -> None:
    """Write `deploy/V/`: denoiser.onnx, sampler.onnx; guide.onnx of a model with a guide, decoder.onnx of one of
    latents, text_to_image.onnx of one with prompts; with export.fp16 all but the decoder as .fp16.onnx; sampler.json,
    parity.json.

    Of a cascade: cascade.json, parity.json, and for each link a directory with its own files, but text_to_image.onnx,
    which is one of all links.

    Raises:
        UserError: there is no model, or no such guide, or an exported one differs from it by more than its tolerance;
            then nothing is written.
    """
    if variant in params.composed:
        _export_cascade(params, variant, root)
        return
    config = params.variant(variant)
    if config.draws_nothing is not None:
        raise UserError(f"{variant} is {config.draws_nothing.format(variant)}. There is nothing to export")
    model = load(root / MODELS / variant).sampled_by(config.sampling, root=root)
    check_base(model, root=root)
    try:
        model.plan()
    except ValueError as error:
        raise UserError(f"models/{variant} cannot be sampled by models.{variant}.sampling: {error}") from None
    with atomic_directory(root / DEPLOY / variant) as out:
        _export(model, out, params.export, variant)


def _export_cascade(params: Params, name: str, root: Path) -> None:
    """Write `deploy/NAME/` of a cascade."""
    cascade = open_composed(params, name, root=root)
    with atomic_directory(root / DEPLOY / name) as out:
        found = {}
        for link, model in cascade.links.items():
            (out / link).mkdir()
            found[link] = _export(cast(Model, model), out / link, params.export, f"{name}/{link}", is_link=True)
        shutil.copyfile(root / MODELS / name / CASCADE, out / CASCADE)
        texts = _export_text_to_image_of(cascade, out, params.export, name)
        parity = chain_parity(cascade, out, found, samples=params.export.parity_samples)
        chain = parity["chain"]
        if not chain["passed"]:
            raise UserError(
                f"{name}: the exported cascade draws images that differ by {chain['max_level_difference']} of 255 "
                f"levels from those of the trained one, more than {chain['tolerance']}; nothing was exported"
            )
        parity["files"] |= texts
        write_json(out / "parity.json", parity)
    print(f"{name}: its links together draw the same to {chain['max_level_difference']} of 255 levels")


def _export(model: Model, out: Path, options: ExportConfig, name: str, *, is_link: bool = False) -> dict[str, Any]:
    """Write the files of one model into a directory.

    Args:
        name: what messages call it.
        is_link: of a cascade, whose text_to_image.onnx has this model in it.

    Returns:
        What parity.json says.
    """
    tolerances: dict[Precision, float] = {"fp32": options.parity_tolerance}
    guided, decoder = model.guide is not None, out / "decoder.onnx" if model.autoencoder else None
    networks, loops = [out / "denoiser.onnx"], [out / "sampler.onnx"]
    steps = (2 if options.fp16 else 1) * (2 + guided) + 2 + (decoder is not None)
    with bar(steps, "steps", f"export of {name}") as progress:
        export_denoiser(model, networks[0])
        progress.update()
        if guided:
            networks.append(out / "guide.onnx")
            export_guide(model, *networks)
            progress.update()
        if decoder is not None:
            export_decoder(model, networks[0], decoder)
            progress.update()
        guide = networks[1] if guided else None
        export_sampler(model, networks[0], loops[0], guide, decoder)
        progress.update()
        if options.fp16:
            tolerances["fp16"] = options.fp16_tolerance
            halves = [file.with_suffix(".fp16.onnx") for file in networks]
            for file, half in zip(networks, halves, strict=True):
                export_half(file, half)
                progress.update()
            loops.append(loops[0].with_suffix(".fp16.onnx"))
            export_sampler(model, halves[0], loops[1], halves[1] if guided else None, decoder)
            progress.update()
        export_encoders(model, out)
        describe_sampler(model, out)
        left_out = None if is_link else _export_text_to_image(model, loops)
        progress.update()
        parity = measure_parity(
            model,
            out,
            samples=options.parity_samples,
            steps=min(options.parity_steps, len(model.schedule)),
            tolerances=tolerances,
        )
        progress.update()
    if left_out:
        print(f"{name}: text_to_image.onnx is left out: {left_out}")
    _check(parity["files"], name, f"over {parity['steps']} steps of {parity['sampler']}")
    write_json(out / "parity.json", parity)
    return parity


def _check(files: Mapping[str, Mapping[str, Any]], name: str, run: str) -> None:
    """Print how far each file is from the trained model.

    Args:
        files: as in parity.json.
        name: what messages call the model.
        run: by which they were compared.

    Raises:
        UserError: one is farther from it than is allowed.
    """
    for file_name, file in files.items():
        found, allowed = file["max_abs_difference"], file["tolerance"]
        how = "" if file_name in WITHOUT_STEPS else f" {run}"
        if not math.isfinite(found):
            advice = "; fp16 overflows with this model: set export.fp16 to false" if ".fp16." in file_name else ""
            raise NotFiniteError(f"{name}: {file_name} draws NaN or infinite values{how}{advice}; nothing was exported")
        if not file["passed"]:
            raise UserError(
                f"{name}: {file_name} differs from the trained model by {found:.3g}{how}, more than "
                f"{'export.fp16_tolerance' if '.fp16.' in file_name else 'export.parity_tolerance'} {allowed:g}; "
                "nothing was exported"
            )
        print(f"{name}: {file_name} is the trained model to {found:.1e}{how} (allowed: {allowed:g})")


def _export_text_to_image_of(cascade: Cascade, out: Path, options: ExportConfig, name: str) -> dict[str, Any]:
    """Write text_to_image.onnx of all links, if they take prompts, and hold it against them.

    Returns:
        What parity.json says of the file, by its name; nothing if there is none.
    """
    file = out / "text_to_image.onnx"
    if PromptColumn.name not in {column.name for column in cascade.columns}:
        return {}
    try:
        export_text_to_image(links_of(cascade, out), file)
    except ValueError as error:
        print(f"{name}: {file.name} is left out: {error}")
        return {}
    steps, tolerance = options.parity_steps, options.parity_tolerance
    found = measure_cascade_parity(cascade, file, samples=options.parity_samples, steps=steps, tolerance=tolerance)
    _check({file.name: found}, name, f"over at most {steps} steps of each link")
    return {file.name: found}


def _export_text_to_image(model: Model, samplers: Sequence[Path]) -> str | None:
    """Write text_to_image.onnx beside each sampler.onnx, if the model takes prompts.

    Returns:
        Why they are left out, in one line; None: they are not, or the model takes no prompts.
    """
    if PromptColumn.name not in {column.name for column in model.columns}:
        return None
    try:
        for sampler in samplers:
            export_text_to_image({model.card.variant: link_of(model, sampler)}, beside(sampler))
    except ValueError as error:
        return str(error)
    return None
