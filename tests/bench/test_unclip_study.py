"""The study of a prior and a decoder: its measures and claims, the whole at a scale of seconds, and from its cells."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
from test_text_study import estimate_of, quick

from bench import captioned, unclip
from bench.captioned import Setting
from bench.unclip_models import CAPTIONS, train_alone, training_teraflops
from bench.unclip_page import markdown
from ddpm.config.params import load_params
from ddpm.errors import UserError
from ddpm.model import load
from ddpm.stages.compose import compose
from ddpm.stages.embed import embed
from ddpm.stages.export import export_variant
from ddpm.stages.extractor import fit_extractor
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant
from flows import demo_unclip
from flows.demo_text import make_project

ROOT = Path(__file__).parents[2]


def settings_of(model: str, *scales: float) -> list[Setting]:
    return [Setting(model, {"guidance_scale": scale}) for scale in scales]


def figures_of(aligned: float, **figures: float) -> dict:
    values = {"fid": 1.0, **dict.fromkeys(unclip.DIVERSITY, 0.5), captioned.ALIGNMENT: aligned, **figures}
    return {name: estimate_of(value) for name, value in values.items()}


@pytest.fixture
def table() -> tuple[list[Setting], dict]:
    """Two scales of each model. The second of the one and the first of the other are equally aligned."""
    settings = [
        *settings_of(unclip.UNCLIP, 1, 2),
        *settings_of(unclip.ALONE, 1, 2),
        *settings_of(unclip.NO_PRIOR, 1),
    ]
    aligned = [
        figures_of(0.2, fid=3.0),
        figures_of(0.5, fid=2.0, spread_pixels=0.9, recall=0.3),
        figures_of(0.5, fid=1.0),
        figures_of(0.9, fid=4.0),
        figures_of(0.3, fid=9.0),
    ]
    return settings, {setting.key: figures for setting, figures in zip(settings, aligned, strict=True)}


def test_diversity_is_compared_where_the_alignment_is_equal(table):
    settings, figures = table
    claims = unclip.unclip_claims(settings, figures, lambda setting: figures[setting.key])
    lower_fid, more_aligned, than_texts, more_than_texts, recall, pixels, features = claims
    assert than_texts.verdict == more_than_texts.verdict == "holds"
    assert "`dalle without the prior`, guidance_scale 1" in than_texts.comparisons[0].statement
    assert lower_fid.verdict == "does not hold"
    assert "`dalle`, guidance_scale 2" in lower_fid.comparisons[0].statement
    assert more_aligned.verdict == "does not hold"
    assert [claim.verdict for claim in (recall, pixels, features)] == ["does not hold", "holds", "undecided"]
    (compared,) = pixels.comparisons
    assert compared.statement == (
        "spread_pixels: `alone`, guidance_scale 1 (R@5 50%) < `dalle`, guidance_scale 2 (R@5 50%)"
    )


def test_without_equal_alignment_nothing_is_compared(table):
    settings, figures = table
    apart = {**figures, settings[1].key: figures_of(0.45)}
    assert captioned.equally_aligned(settings[:2], settings[2:4], apart) == []
    claims = unclip.unclip_claims(settings, apart, lambda setting: apart[setting.key])
    assert [claim.verdict for claim in claims[-3:]] == ["not compared"] * 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_study_runs_to_its_page_and_draws_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    project = make_project(tmp_path, copy.deepcopy(demo_unclip.DEMO), demo_unclip.FOLDER)
    params = quick(load_params(project / "params.yaml"), [demo_unclip.ENCODER, CAPTIONS])
    with contextlib.chdir(project):
        for stage in (fetch, prepare, fit_extractor):
            stage(params)
        train_variant(params, demo_unclip.ENCODER)
        embed(params, demo_unclip.ENCODER)
        for name in (demo_unclip.PRIOR, demo_unclip.DECODER, demo_unclip.UPSAMPLER):
            train_variant(params, name)
        compose(params, demo_unclip.UNCLIP)
        export_variant(params, demo_unclip.UNCLIP)
    results = unclip.UnclipStudy(params, project, unclip.QUICK).results()

    trained = results["training"]
    equal = sum(trained[name]["teraflops"] for name in (demo_unclip.PRIOR, demo_unclip.DECODER))
    one = training_teraflops(load(project / "models" / CAPTIONS)) / trained[CAPTIONS]["steps"]
    assert trained[CAPTIONS]["teraflops"] == pytest.approx(equal, abs=one)
    costs = {row["setting"]: row["gflops_per_image"] for row in results["settings"]}
    assert len(costs) == 3 * len(unclip.QUICK.scales) + len(unclip.QUICK.weaker) + 1
    with_prior, without = (costs[f"`{name}`, guidance_scale 1.0"] for name in (unclip.UNCLIP, unclip.NO_PRIOR))
    assert without < with_prior
    for row in results["settings"]:
        assert row["figures"]["spread_pixels"]["value"] > 0
        assert "held_out_retrieval_5_pixels" in row["figures"]
    assert [row["candidates"] for row in results["prior"]] == [1, 2]
    files = {row["name"]: row for row in results["deployed"]["files"]}
    assert {"prior/denoiser.onnx", "decoder/image_encoder.onnx", "text_to_image.onnx"} <= {*files}
    assert all(row["megabytes"] > 0 and row["difference"] < 1e-3 for row in files.values())
    assert results["deployed"]["times"]["ratio"] > 0
    page = markdown(results)
    assert all(claim["claim"] in page for claim in results["claims"])
    assert "CC BY-SA 4.0" in page

    with pytest.raises(UserError, match=r"text-8 was trained with .* as of the prior and the decoder"):
        train_alone(params, project, 10 * equal)

    for name in ("prior_figures", "deployed"):
        monkeypatch.setattr(unclip, name, lambda *_, **__: {})  # draws again
    monkeypatch.setattr("ddpm.drawer.Drawer.draw", lambda *_, **__: pytest.fail("drawn again"))
    assert unclip.UnclipStudy(params, project, unclip.QUICK).results()["settings"] == results["settings"]
