"""The page of `dvc plots show` draws its curves in a browser that reaches no other machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from service import wait_until

ROOT = Path(__file__).parents[2]
PIPELINE = "plots:\n  - loss.csv: {x: step, y: loss, title: Training loss}\n"

# Of each line in a chart, how wide and high it is on the screen.
LINES = """[...document.querySelectorAll("svg .mark-line path")].map(line => {
    const {width, height} = line.getBoundingClientRect()
    return [width, height]
})"""
ASKED = 'performance.getEntriesByType("resource").map(entry => entry.name).filter(name => !name.startsWith("file:"))'


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("the page is tested in chromium, which is not installed: `apt-get install chromium`")
    browser = Browser(tmp_path_factory.mktemp("browser"), online=False)
    yield browser
    browser.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of DVC with a curve, in a folder whose name is no plain word."""
    directory = tmp_path / "a project, ü"
    directory.mkdir()
    python(directory, "-m", "dvc", "init", "--no-scm", "--quiet")
    (directory / "dvc.yaml").write_text(PIPELINE)
    (directory / "loss.csv").write_text("step,loss\n" + "".join(f"{step},{1 / step}\n" for step in range(1, 30)))
    return directory


def python(cwd: Path, *arguments: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def show(browser: Browser, project: Path) -> None:
    python(project, "-m", "dvc", "plots", "show")
    browser.open((project / "dvc_plots/index.html").as_uri())
    wait_until(lambda: browser.run("document.readyState") == "complete")


def test_the_curves_are_drawn_without_a_network(offline: Browser, project: Path):
    show(offline, project)
    assert offline.run("typeof vegaEmbed") == "undefined", "DVC's own page draws without a network: no need of ours"

    python(project, "-m", "flows.plots_page")
    moved = project.rename(project.with_name("moved"))
    show(offline, moved)
    wait_until(lambda: len(offline.run(LINES)) > 0)
    assert max(min(size) for size in offline.run(LINES)) > 100
    assert "Training loss" in offline.run("document.body.innerText")
    assert offline.run(ASKED) == []


def test_a_folder_without_dvc_is_refused_in_a_line(tmp_path: Path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "flows.plots_page"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (
        2,
        "plots_page: .dvc: no such folder; `python -m flows.plots_page` is for a project of DVC\n",
    )
