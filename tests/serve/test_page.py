"""The page at `/`, in a real browser."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddpm.deploy.runtime import Sampler

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

Browse = Callable[..., str]


@pytest.fixture
def browse(server, tmp_path: Path) -> Browse:
    """Open the page in a window; returns what has become of it."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium")

    def browse(*options: str) -> str:
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        command += [f"--user-data-dir={tmp_path / 'browser'}", "--virtual-time-budget=5000", *options, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return browse


def test_the_page_asks_for_the_model_and_shows_what_it_draws(browse: Browse, deploy: Path):
    page = browse("--dump-dom")
    pictures = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)
    drawn = np.stack([np.array(Image.open(io.BytesIO(base64.b64decode(png)))) for png in pictures])
    np.testing.assert_array_equal(drawn[..., None], Sampler(deploy).sample(16, seed=0))
    assert re.search(r'id="steps" min="1" max="20"', page)
    assert re.findall(r'<option value="(\w+)"', page) == ["ancestral", "ddim", "dpmpp_2m", "dpmpp_2s", "unipc"]
    assert re.search(r'role="status"[^>]*>16 of seed 0 in [\d.]+ s, by ddpm-dots@', page)


def test_pixels_stay_pixels_when_enlarged(browse: Browse, tmp_path: Path):
    """A smoothed enlargement of black and white would be full of greys."""
    browse(f"--screenshot={tmp_path / 'page.png'}", "--window-size=1100,900")
    screen = np.array(Image.open(tmp_path / "page.png").convert("L"))[300:700, 500:900]
    _, counts = np.unique(screen, return_counts=True)
    assert np.sort(counts)[-3:].sum() > 0.99 * screen.size


@pytest.mark.slow
@pytest.mark.parametrize("width", [500, 1100])
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_it_fits_any_window_and_follows_the_systems_colours(browse: Browse, tmp_path: Path, width: int, scheme: int):
    shot = tmp_path / "page.png"
    browse(f"--screenshot={shot}", f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}")
    screen = np.array(Image.open(shot).convert("L"))
    assert screen.shape[1] == width
    assert (screen[2, 2] > 128) == bool(scheme)
    # The right margin is empty: nothing reaches beyond the window.
    assert np.ptp(screen[:, -8:]) == 0


def test_it_takes_nothing_from_anywhere_else(server):
    answer = server.client.get("/")
    assert "connect-src 'self'" in answer.headers["Content-Security-Policy"]
    assert not re.search(r"https?://|//[a-z]+\.[a-z]+", answer.text)
