"""The processes that tests run commands in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import run_cli


@pytest.mark.parametrize("arguments", [["--version"], ["config", "--changed"], ["nonsense"]])
@pytest.mark.parametrize("params", [None, "models: {a: {}}\nvariants: [a]\n", "models: ["])
def test_a_forked_command_answers_as_a_fresh_one(arguments: list[str], params: str | None, tmp_path: Path):
    if params is not None:
        (tmp_path / "params.yaml").write_text(params)
    forked = run_cli(tmp_path, *arguments, COLUMNS="60")
    fresh = subprocess.run(
        [sys.executable, "-m", "ddpm", *arguments],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "60"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
