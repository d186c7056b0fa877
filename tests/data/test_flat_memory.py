"""Memory does not grow with the data: ten times the images, 106 MB more of them, and less than 15 MB more memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ALLOWED_GROWTH = 15e6
SIDE, FEW, TIMES = 256, 60, 10

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")

PROGRAM = """
import re, sys
from pathlib import Path

def kilobytes(key):
    return int(re.search(rf"{key}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""

PREPARE = (
    PROGRAM
    + """
from ddpm.config.params import Params
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare

params = Params.model_validate({"data": {"source": "folder", "path": sys.argv[1]}, "models": {"ddpm": {}}})
fetch(params)
prepare(params)
print(kilobytes("VmHWM") * 1024)  # the highest resident set ever
"""
)

# Anonymous memory: the mapped pages are the kernel's cache, which it takes back when it needs room.
READ = (
    PROGRAM
    + """
import numpy as np
from ddpm.data.store import PreparedData

split = PreparedData.open(Path("prepared")).split("train")
out, random, highest = np.empty((32, 256, 256, 3), np.uint8), np.random.RandomState(0), 0
for step in range(3 * len(split) // len(out)):
    split.rows(random.randint(0, len(split), len(out)), out)
    highest = max(highest, kilobytes("RssAnon"))
print(highest * 1024)
"""
)


def measure(program: str, root: Path, *arguments: str) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_prepare_and_random_batches(tmp_path: Path) -> None:
    random = np.random.RandomState(0)
    few, many = tmp_path / "few", tmp_path / "many"
    for group in range(TIMES):
        (many / f"group{group}").mkdir(parents=True)
    for number in range(FEW):
        file = few / f"group{number % 2}" / f"{number}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.randint(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)).save(file)
        for group in range(TIMES):
            os.link(file, many / f"group{group}" / file.name)

    peaks, anonymous, sizes = [], [], []
    for folder in (few, many):
        root = tmp_path / f"{folder.name}-project"
        root.mkdir()
        peaks.append(measure(PREPARE, root, str(folder)))
        anonymous.append(measure(READ, root))
        sizes.append((root / "prepared/images.npy").stat().st_size)
    print(f"images.npy {sizes}, peak of prepare {peaks}, anonymous memory of a reader {anonymous}")
    assert sizes[1] - sizes[0] > 100e6
    assert peaks[1] - peaks[0] < ALLOWED_GROWTH
    assert anonymous[1] - anonymous[0] < ALLOWED_GROWTH


def test_the_measure_sees_what_is_held(tmp_path: Path) -> None:
    """The same measure of a program that keeps all images in memory grows with them."""
    hold = PROGRAM + "held = b'x' * int(sys.argv[1])\nprint(kilobytes('VmHWM') * 1024, kilobytes('RssAnon') * 1024)"
    assert measure(hold, tmp_path, "100000000") - measure(hold, tmp_path, "1000") > 90e6
