"""The samplers side by side: they draw the same pictures, and the way to the page."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from untrained import ONE_LEVEL, untrained

import ddpm
from bench import sampling
from bench.contestants import DIFFUSERS, LUCIDRAINS, RUNTIME, TORCH, ddim, of_all_steps, write_files
from ddpm.diffusion.sampling import sample
from ddpm.model.card import DataFacts


def test_they_draw_with_one_network_from_one_noise(tmp_path):
    """Theirs draw x_T from torch's generator. Every second timestep is the same ones to all."""
    facts = DataFacts(name="dots", shape=(8, 8, 1), classes=None)
    model = ddpm.load(untrained("model", tmp_path, facts, network=ONE_LEVEL))
    steps = len(model.schedule) // 2
    write_files(model, tmp_path / "files")
    contestants = ddim(model, tmp_path / "files", steps)
    assert list(contestants) == [RUNTIME, TORCH, DIFFUSERS, LUCIDRAINS]
    torch.manual_seed(0)
    x = torch.randn(3, 1, 8, 8)
    ours = sample(model.network, model.plan(sampler="ddim", eta=0.0, steps=steps), x, partial(torch.randn, 3, 1, 8, 8))
    expected = ((ours + 1) / 2).clamp(0, 1).numpy().transpose(0, 2, 3, 1)
    torch.manual_seed(0)
    np.testing.assert_allclose(contestants[DIFFUSERS](3), expected, atol=1e-4)
    torch.manual_seed(0)
    np.testing.assert_allclose(contestants[LUCIDRAINS](3).numpy().transpose(0, 2, 3, 1), expected, atol=1e-4)
    np.testing.assert_allclose(contestants[RUNTIME](3) / 255, contestants[TORCH](3) / 255, atol=1.01 / 255)
    for draw in of_all_steps(model, tmp_path / "files").values():
        assert np.asarray(draw(2)).size == 2 * 8 * 8


@pytest.mark.slow
def test_the_benchmark_runs_to_its_page(trained, capsys):
    arguments = [
        "--quick",
        "--model",
        "models/tiny",
        "--results",
        str(trained / "out"),
        "--page",
        str(trained / "out.md"),
    ]
    assert sampling.main(arguments) == 0
    results = json.loads((trained / "out/sampling-cpu.json").read_text())
    for race in results["equal_steps"]:
        first, *others = race["contestants"]
        assert (first["name"], first["times_of_first"]) == (RUNTIME, 1.0)
        assert {row["name"] for row in others} == {TORCH, DIFFUSERS, LUCIDRAINS}
    page = (trained / "out.md").read_text()
    assert page in capsys.readouterr().out
    assert f"FID {results['equal_fid']['reference']['fid']:.3f}" in page


def test_without_a_model_it_says_what_makes_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sampling.main(["--quick"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench-sampling: models/ddpm is not a model directory")
    assert "make demo" in line


def test_the_search_ends_at_the_first_that_is_near_enough(capsys):
    fids = {5: (9.0, 0.1), 10: (2.0, 0.1), 20: (1.0, 0.1)}
    way = sampling._until(lambda steps: fids[steps], fids, 2.5)
    assert list(way) == [(5, 9.0), (10, 2.0)]
