"""The benchmark of guidance, from a model to its page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bench import guidance
from ddpm.cli.main import main


@pytest.mark.slow
def test_it_counts_two_evaluations_for_a_guided_step_and_writes_its_page(project: Path, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["condition"] = {"label": {}}
    params["models"]["tiny"]["training"]["steps"] = 2
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert main(["train", "tiny"]) == 0
    out = ["--results", str(project / "out"), "--page", str(project / "out.md")]
    assert guidance.main(["--quick", "--model", "models/tiny", *out]) == 0
    results = json.loads((project / "out/guidance-cpu.json").read_text())
    for case in results["cases"]:
        assert [row["evaluations"] for row in case["rows"]] == [4, 8, 6, 8] * 3
        assert [row["ratio"] for row in case["rows"]][::4] == [1.0] * 3
        assert 0 < case["same_in_both"] < 0.2
    assert (project / "out.md").read_text() in capsys.readouterr().out
