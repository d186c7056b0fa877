"""The study of guidance by a CLIP: its claims, the whole at a scale of seconds, and from its cells."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path

import pytest
from test_text_study import estimate_of, quick

from bench import clip_guidance
from bench.captioned import ALIGNMENT, Setting
from bench.clip_guidance import BY_CLIP, CAPTIONS, FREE, GUIDE
from bench.clip_guidance_page import markdown
from ddpm.config.params import load_params
from ddpm.stages.extractor import fit_extractor
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare
from ddpm.stages.train import train_variant
from flows import demo_unclip
from flows.demo_text import make_project

ROOT = Path(__file__).parents[2]


def test_the_best_scale_of_either_way_is_compared_on_other_samples():
    def figures_of(aligned: float, fid: float, clip_score: float) -> dict:
        held_out = f"held_out_{ALIGNMENT}"
        values = {ALIGNMENT: aligned, held_out: 1 - aligned, "fid": fid, "clip_score": clip_score, "recall": 0.1 * fid}
        return {name: estimate_of(value) for name, value in values.items()}

    plain, weak, strong = (Setting(FREE, {"guidance_scale": scale}) for scale in (1.0, 2.0, 3.0))
    low, high = (Setting(BY_CLIP, {"steps": 4, "guidance_scale": scale}) for scale in (5.0, 9.0))
    table = {
        plain.key: figures_of(0.1, 1.0, 0.1),
        weak.key: figures_of(0.6, 2.0, 0.2),
        strong.key: figures_of(0.4, 3.0, 0.3),
        low.key: figures_of(0.2, 2.5, 0.4),
        high.key: figures_of(0.4, 6.0, 0.9),
    }
    asked: list[str] = []

    def again(setting: Setting) -> dict:
        asked.append(setting.key)
        return table[setting.key]

    claims = clip_guidance.guidance_claims([plain, weak, strong, low, high], table, again)
    by_clip, free, more, unseen, fid, at_equal, recall, score = claims
    assert [claim.verdict for claim in (by_clip, free, more, fid, at_equal, score)] == ["holds"] * 6
    assert unseen.verdict == recall.verdict == "does not hold"
    assert by_clip.comparisons[0].statement == f"{ALIGNMENT}: {plain.key} < {high.key}"
    assert more.comparisons[0].statement == f"{ALIGNMENT}: {high.key} < {weak.key}"
    assert fid.comparisons[0].statement == f"fid: {weak.key} < {low.key}"
    assert [each.statement for each in at_equal.comparisons] == [f"fid: {strong.key} < {high.key}"]
    assert [each.statement for each in recall.comparisons] == [f"recall: {high.key} < {strong.key}"]
    assert score.comparisons[0].statement == f"clip_score: {strong.key} < {high.key}"
    assert {plain.key, weak.key, strong.key, low.key, high.key} == {*asked}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_study_runs_to_its_page_and_draws_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    project = make_project(tmp_path, copy.deepcopy(demo_unclip.DEMO), demo_unclip.FOLDER)
    params = quick(load_params(project / "params.yaml"), [demo_unclip.ENCODER, CAPTIONS, GUIDE])
    with contextlib.chdir(project):
        for stage in (fetch, prepare, fit_extractor):
            stage(params)
        train_variant(params, demo_unclip.ENCODER)
    results = clip_guidance.GuidanceStudy(params, project, clip_guidance.QUICK).results()

    assert [*results["training"]] == [demo_unclip.ENCODER, GUIDE, CAPTIONS]
    costs = {row["setting"]: row["gflops_per_image"] for row in results["settings"]}
    plain, guided, by_clip = costs.values()
    assert guided == pytest.approx(2 * plain, rel=1e-3)
    steps = int(list(costs)[-1].split("steps ")[1].split(",")[0])
    assert by_clip == pytest.approx(guided, abs=by_clip / steps)
    for row in results["settings"]:
        assert {"clip_score", "r_precision", ALIGNMENT, f"held_out_{ALIGNMENT}"} <= {*row["figures"]}
    page = markdown(results)
    assert all(claim["claim"] in page for claim in results["claims"])
    assert "CC BY-SA 4.0" in page

    monkeypatch.setattr("ddpm.drawer.Drawer.draw", lambda *_, **__: pytest.fail("drawn again"))
    assert clip_guidance.GuidanceStudy(params, project, clip_guidance.QUICK).results() == results
