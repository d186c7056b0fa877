"""`ddpm tune-guidance` and `ddpm compare --guidance-scale`: what is searched, and on which samples it is reported."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tiny import TINY_PARAMS, run_cli, write_params

from ddpm.config.params import load_params
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.figures.seeds import seeds_of
from ddpm.model import Model, save
from ddpm.model.card import DataFacts, ModelCard, TrainingFacts
from ddpm.model.network import build_network, columns_for
from ddpm.stages.compare import compare
from ddpm.stages.tune_guidance import tune_guidance

pytestmark = pytest.mark.slow

CONDITIONS = {"told": {"label": {}}, "never": {"label": {"drop": 0}}, "plain": {}}


@pytest.fixture
def models(project: Path) -> Path:
    """Models with random weights: one that can be guided, one trained without dropping, an unconditional one."""
    tiny = TINY_PARAMS["models"]["tiny"]
    # Copies: what is shared becomes a YAML alias, of which a warning tells.
    described = {name: deepcopy({**tiny, "condition": condition}) for name, condition in CONDITIONS.items()}
    evaluation = {**TINY_PARAMS["evaluation"], "samples": 24, "nll_samples": 0}
    write_params(project, {**TINY_PARAMS, "evaluation": evaluation, "variants": ["told"], "models": described})
    manifest = PreparedData.open(project / "prepared").manifest
    facts = DataFacts(name="digits", shape=manifest.shape, classes=manifest.classes)
    for name, config in load_params().models.items():
        torch.manual_seed(0)
        network = build_network(config, facts.codec, columns=columns_for(config, facts, name))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        training = TrainingFacts(fingerprint=name)
        save(
            Model(network, ModelCard(variant=name, config=config, data=facts, training=training, parameters=0)),
            project / "models" / name,
        )
    return project


def test_figures_are_of_other_seeds_than_the_search_and_the_evaluation(models):
    tuned = tune_guidance(load_params(), "told", scales=[0.5, 1, 4], intervals=[None, (0.2, 0.8)])
    assert tuned.tried == 5, "at scale 1 the interval says nothing"
    seeds = {load_params().seed, tuned.search_seed, *(found.protocol.seed for found in tuned.measured)}
    assert len(seeds) == 3
    first = tuned.measured[0]
    assert {"fid_low", "fid_high", "class_accuracy"} <= first.metrics.keys()
    assert (first.protocol.guidance_scale, first.protocol.samples) == (tuned.best.guidance_scale, 24)
    if tuned.best != tuned.own:
        assert tuned.measured[1].protocol.guidance_scale == 1
    lines = tuned.lines("told")
    assert lines[-2] == f"  guidance_scale: {tuned.best.guidance_scale:g}"
    assert lines[-1] in ("  guidance_interval: null", "  guidance_interval: [0.2, 0.8]")


def test_a_guide_is_searched_from_the_scale_without_it(models):
    """A weaker model; that a classifier's scale counts from 0 is of `unguided_scale`."""
    params = load_params()
    (models / "models/weak").mkdir()
    for file in ("model.json", "model.safetensors"):
        shutil.copy(models / "models/plain" / file, models / "models/weak")
    plain = params.models["plain"]
    own = plain.sampling.model_copy(update={"guide": "models/weak", "guidance_scale": 2.0})
    described = {**params.models, "plain": plain.model_copy(update={"sampling": own})}
    tuned = tune_guidance(params.model_copy(update={"models": described}), "plain", scales=[1, 2])
    assert tuned.tried == 3
    assert tuned.measured[0].protocol.guide.startswith("plain ")
    assert tuned.own.guide == "models/weak"


def test_the_winner_is_the_one_with_the_lowest_figure_of_the_search(models):
    """Each alone on the seed of the search."""
    params = load_params()
    tuned = tune_guidance(params, "told", scales=[0, 8], intervals=[None])
    # Whose comparison draws with the seed of the search.
    seeds = seeds_of(params.seed)
    searched = params.model_copy(update={"seed": seeds.search - (seeds.comparison - seeds.evaluation)})
    assert seeds_of(searched.seed).comparison == tuned.search_seed
    own = searched.models["told"].sampling
    found = compare(searched, ["told"], Path("out"), steps=[2], guidance_scales=[0, 8]).over_guidance["fid"][0]
    assert own.guidance_scale == 1
    assert tuned.best.guidance_scale == min(found, key=lambda point: point[1])[0]


def test_the_current_setting_is_measured_once(models):
    tuned = tune_guidance(load_params(), "told", scales=[1], intervals=[None])
    assert len(tuned.measured) == 1
    assert "this is the current setting" in tuned.lines("told")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plain"], "models/plain cannot be guided: it has no condition and no guide"),
        (
            ["never"],
            "models/never cannot be guided: it was trained without dropping its condition (condition.label",
        ),
        (["told", "--scales", "nan"], "`guidance_scale`: input should be a finite number, found nan"),
        (["told", "--intervals", "0.8,0.2"], "0 <= low <= high <= 1, found [0.8, 0.2]"),
        (["told", "--samples", "3"], "--samples must be at least 4, found 3"),
    ],
)
def test_what_cannot_be_searched_is_said_in_one_line(models, arguments, words):
    done = run_cli(models, "tune-guidance", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_page_has_curves_of_the_models_that_can_be_guided(models):
    comparison = compare(load_params(), ["told", "plain"], Path("out"), steps=[2], guidance_scales=[3, 1])
    assert list(comparison.over_guidance) == ["fid", "inception_score", "precision", "recall"]
    for told, plain in comparison.over_guidance.values():
        assert [scale for scale, _ in told] == [1, 3]
        assert plain == []
    text = Path("out/report.html").read_text(encoding="utf-8")
    assert text.count("over the guidance scale") == 8  # a caption and an alternative text each
    with pytest.raises(UserError, match="--guidance-scale: plain cannot be guided"):
        compare(load_params(), ["plain"], Path("other"), guidance_scales=[2])
    with pytest.raises(UserError, match="--guidance-scale: `guidance_scale`"):
        compare(load_params(), ["told"], Path("other"), guidance_scales=[-1])
