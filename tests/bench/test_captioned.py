"""What the studies of models of captions share: their measures, and how settings are chosen."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_text_study import estimate_of

from bench import captioned, clip_guidance, unclip
from bench.captioned import Setting
from bench.cells import Cells
from bench.judge import GROUPS
from ddpm.diffusion.plans import SamplingPlan


def test_the_spread_is_the_mean_distance_between_samples_of_a_caption():
    points = torch.tensor([[0.0], [10.0], [3.0], [10.0], [6.0], [10.0]])  # of two captions in turn
    assert captioned.spread(points, 3).tolist() == [4.5, 0, 3, 0, 4.5, 0]


def test_the_groups_of_the_jackknife_are_of_whole_captions():
    """A caption's samples are as far apart as there are captions, which is a multiple of the groups."""
    for study in (unclip, clip_guidance):
        for extent in (study.FULL, study.QUICK):
            assert extent.asked.captions % GROUPS == 0


def test_alignment_is_the_cosine_to_the_own_text_and_whether_no_other_is_nearer():
    vectors = {"red": [1.0, 0.0], "blue": [0.0, 1.0]}
    space = SimpleNamespace(
        images=lambda images: np.array([[0.8, 0.6], [0.8, 0.6]], np.float32),
        texts=lambda texts: np.array([vectors[text] for text in texts], np.float32),
    )
    found = captioned.alignment(space, np.zeros((2, 4, 4, 3), np.uint8), ["red", "blue"])
    torch.testing.assert_close(found["clip_score"], torch.tensor([0.8, 0.6]).double(), atol=1e-6, rtol=0)
    assert found["r_precision"].tolist() == [1, 0]


def test_a_setting_as_dear_as_another_has_the_steps_that_cost_as_much():
    def of_steps(steps: int) -> Setting:
        return Setting("model", {"steps": steps})

    def cost(setting: Setting) -> float:
        return 0.5 + 2.0 * setting.plan["steps"]

    assert captioned.as_dear(of_steps, cost, 20.5) == of_steps(10)
    assert captioned.as_dear(of_steps, cost, 21.4) == of_steps(10)
    assert captioned.as_dear(of_steps, cost, 0.1) == of_steps(1)


def test_the_best_setting_has_the_lowest_figure_or_the_highest():
    settings = [Setting("model", {"guidance_scale": scale}) for scale in (1, 2, 3)]
    table = {setting.key: {"fid": estimate_of(fid)} for setting, fid in zip(settings, (2.0, 1.0, 3.0), strict=True)}
    assert captioned.best(settings, table, "fid", 1) == settings[1]
    assert captioned.best(settings, table, "fid", -1) == settings[2]


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "another"},
        {"guide_mark": "clip 12ab"},
        {"other_plans": {"upsampler": {"steps": 2}}},
        {"candidates": 2},
    ],
)
def test_samples_of_another_model_guide_upsampler_or_choice_are_drawn_anew(tmp_path: Path, changed: dict[str, Any]):
    drawn = []

    def draw(count: int, plan: SamplingPlan, **asked: Any) -> np.ndarray:
        drawn.append(count)
        return np.zeros((count, 1, 1, 1), np.uint8)

    plan = SimpleNamespace(known=None, timesteps=np.arange(2), table=np.zeros((2, 3)))
    facts: dict[str, Any] = {"fingerprint": "one", "guide_mark": None, "other_plans": {}, "candidates": 1}
    for own in (facts, facts, {**facts, **changed}):
        drawer = SimpleNamespace(plan=lambda **_: plan, given=lambda *_, **__: {}, draw=draw, **own)
        Cells(tmp_path).drawn(drawer, 3, 0, {})
    assert drawn == [3, 3], "the second time what was drawn is read again"
