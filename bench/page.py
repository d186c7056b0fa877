"""The results of the ablation as a page of Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.guidance_claims import NAMES, Setting

Row = Mapping[str, Any]

SAMPLER_TITLES = {
    "ancestral-large": "ancestral, σ² = β (σ̂)",
    "ancestral-small": "ancestral, σ² = β̃",
    "ddim-0": "DDIM, η = 0",
    "ddim-0.5": "DDIM, η = 0.5",
    "ddim-1": "DDIM, η = 1",
    "dpmpp_2m": "DPM-Solver++(2M)",
}
VARIANCE_TITLES = {"fixed_large": "β", "fixed_small": "β̃", "learned_range": "learned"}


def markdown(results: Mapping[str, Any]) -> str:
    """What `ablation.json` holds, for readers."""
    protocol = results["protocol"]
    parts = [
        "# The papers' claims at the scale of the digits",
        "`make ablation` measures it and writes this page and `bench/results/ablation.json`.",
        _protocol(protocol),
        "## FID of L_simple with the linear schedule, by sampler and number of steps S",
        *(
            f"S steps, `{spacing}` spacing:\n\n{_sampler_table(results['samplers'], spacing)}"
            for spacing in protocol["spacing"]["samplers"]
        ),
        f"Lower is better; all cells start from the same noise. {_floor(protocol)} DDIM with η = 1 is ancestral "
        "sampling with β̃: one table of coefficients, and so one figure. `leading`, DDIM's own spacing, ends on t = 0, "
        "where the network removes hardly any noise; `trailing` on t = T/S − 1.",
        "## Bits/dim and FID by objective and schedule",
        _model_table(results["bits_per_dim"], results["fid"]),
        f"Bits/dim at S = {protocol['timesteps']} is the full bound; at fewer steps that of the respaced process. Σ of "
        "L_simple is fixed: both choices are shown, and the better one stands for it below. FID is of ancestral "
        "sampling with the model's own Σ, which for L_simple is β̃.",
        "## What holds",
        table(["claim", "verdict"], ([row["claim"], f"**{row['verdict']}**"] for row in results["claims"])),
        "Comparison by comparison, with the margin by which the inequality is true:",
        *(comparisons(row) for row in results["claims"]),
        *(part for study in results["guidance"] for part in _guidance(study)),
    ]
    return "\n\n".join(parts) + "\n"


def _protocol(protocol: Mapping[str, Any]) -> str:
    training, extractor, reference = protocol["training"], protocol["extractor"], protocol["reference"]
    likelihood = protocol["likelihood"]
    lines = [
        f"Data: `{protocol['data']}`, 8×8 grey, {reference['images']} training images; T = {protocol['timesteps']}.",
        f"Models: the network of the preset `ddpm` at width {protocol['network']['width']}, each trained once: "
        f"{training['steps']} steps of "
        f"{training['batch_size']} images, seed {protocol['seed']}, EMA weights. L_vlb draws its timesteps by "
        "importance.",
        f"FID: {protocol['samples']} images a cell (seed {protocol['seed']}) against "
        f"the training split, in the features of the pipeline's own extractor ({extractor['kind']}, "
        f"{extractor['validation_accuracy']:.1%} of the validation images right, SHA-256 {extractor['sha256'][:12]}…). "
        "It does not compare with a FID under InceptionV3.",
        f"Models are compared under `{protocol['spacing']['models']}` spacing, which is improved DDPM's up to one step "
        "(its own is `even`). x̂₀ is clipped throughout.",
        f"Bits/dim: {likelihood['images']} validation images.",
        f"±: standard error by the jackknife that leaves out one of {protocol['groups']} groups of images "
        f"({likelihood['groups']} for bits/dim). The margin of a comparison is that of the same images, or of images "
        "from the same noise; it counts where 0 is outside its 95 % interval. How much another training of the same "
        "model would differ is not in it.",
    ]
    return "\n".join(f"- {line}" for line in lines)


GUIDE_TITLES = {
    "itself": "the model without its label",
    "classifier": "a classifier; the model has no labels",
    "weaker model": "a weaker model",
}


def _guidance(study: Row) -> list[str]:
    """The part about guidance, of one data set."""
    title = f"## Guidance, on `{study['data']}`"
    if "left_out" in study:
        return [title, f"Left out: {study['left_out']}. `python -m bench.ablation --help` says what it takes."]
    names = [name for name in NAMES if any(name in row["figures"] for row in study["settings"])]
    return [
        title,
        _guidance_protocol(study["protocol"]),
        table(
            ["guided by", "setting", *(NAMES[name] for name in names)],
            (
                [
                    GUIDE_TITLES[row["guide"]],
                    str(Setting(row["guide"], row["scale"], row["interval"])),
                    *(number(row["figures"][name], 3) if name in row["figures"] else "" for name in names),
                ]
                for row in study["settings"]
            ),
        ),
        table(["claim", "verdict"], ([row["claim"], f"**{row['verdict']}**"] for row in study["claims"])),
        *(comparisons(row) for row in study["claims"]),
    ]


def _guidance_protocol(protocol: Row) -> str:
    models, reference, real = protocol["models"], protocol["reference"], protocol["real"]
    extractor, sampler, (first, second) = protocol["extractor"], protocol["sampler"], protocol["seeds"]
    trained = ", ".join(f"`{model['name']}` ({model['training_steps']} steps)" for model in models.values())
    lines = [
        f"{'×'.join(map(str, protocol['shape']))}; models, each trained once: {trained}.",
        f"{protocol['samples']} images a setting by {sampler['name']} in {sampler['steps']} steps, from the same noise "
        f"and with the same labels. The table is of seed {first}. A best scale is the one with the lowest FID in the "
        f"table; it is compared on images of seed {second}, by which nothing was chosen.",
        "Scale 1 is the model as it was trained, and 0 the model without its label or the weaker model; by a "
        f"classifier 0 is the model as it was trained. The interval is {protocol['interval'][0]:g} to "
        f"{protocol['interval'][1]:g} of the process, 0 is data and 1 is noise.",
        f"Features of the pipeline's own extractor ({extractor['kind']}, {extractor['validation_accuracy']:.1%} of the "
        f"validation images right, SHA-256 {extractor['sha256'][:12]}…), against {reference['images']} training "
        f"images; precision and recall against {reference['manifold']} of them. IS is of one split.",
        "Spatial FID stands for sFID, which needs InceptionV3: the Fréchet distance of the first seven channels of the "
        "last convolution's map.",
        f"The {real['images']} real validation images score FID {real['fid']:.3f}, spatial FID "
        f"{real['spatial_fid']:.3f}, IS {real['inception_score']:.2f}.",
        f"±: standard error by the jackknife over {protocol['groups']} groups of images, as above.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _floor(protocol: Mapping[str, Any]) -> str:
    floor = protocol["fid_floor"]
    return f"The {floor['images']} real validation images score {floor['value']:.2f}."


def _sampler_table(rows: Sequence[Row], spacing: str) -> str:
    cells = {(row["sampler"], row["steps"]): row for row in rows if row["spacing"] == spacing}
    names, steps = (list(dict.fromkeys(key[part] for key in cells)) for part in (0, 1))
    return table(
        ["S", *(SAMPLER_TITLES[name] for name in names)],
        ([str(s), *(number(cells[name, s], 2) for name in names)] for s in steps),
    )


def _model_table(bits: Sequence[Row], fid: Sequence[Row]) -> str:
    bound = {(row["loss"], row["schedule"], row["variance"], row["steps"]): row for row in bits}
    score = {(row["loss"], row["schedule"], row["steps"]): row for row in fid}
    models = list(dict.fromkeys(key[:3] for key in bound))
    many, few = (sorted({key[-1] for key in cells}, reverse=True) for cells in (bound, score))

    def fid_of(loss: str, schedule: str, variance: str, steps: int) -> str:
        return "" if variance == "fixed_large" else number(score[loss, schedule, steps], 2)

    return table(
        ["objective", "schedule", "Σ", *(f"bits/dim, S = {s}" for s in many), *(f"FID, S = {s}" for s in few)],
        (
            [
                f"L_{model[0]}",
                model[1],
                VARIANCE_TITLES[model[2]],
                *(number(bound[*model, s], 3) for s in many),
                *(fid_of(*model, s) for s in few),
            ]
            for model in models
        ),
    )


def comparisons(claim: Row) -> str:
    """A claim's comparisons as a table."""
    rows = ([c["statement"], f"{c['margin']:.3g} ± {c['error']:.2g}", c["outcome"]] for c in claim["comparisons"])
    return f"{claim['claim']}: {claim['verdict']}.\n\n{table(['', 'margin', 'true'], rows)}"


def number(row: Row, digits: int) -> str:
    """A figure with its standard error."""
    return f"{row['value']:.{digits}f} ± {row['error']:.{digits}f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
