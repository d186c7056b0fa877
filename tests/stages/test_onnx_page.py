"""The examples of docs/onnx.md, run as they stand, against a conditional model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from ddpm.cli import main
from ddpm.deploy.runtime import Sampler

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs/onnx.md"


@pytest.fixture
def conditional(project: Path) -> Path:
    """The deploy directory of a conditional model, hardly trained."""
    path = project / "params.yaml"
    params = yaml.safe_load(path.read_text())
    (model,) = params["models"].values()
    model["condition"] = {"label": {}}
    model["training"]["steps"] = 3
    params["models"], params["variants"] = {"conditional": model}, ["conditional"]
    path.write_text(yaml.safe_dump(params))
    for stage in ("train", "export"):
        assert main([stage, "conditional"]) == 0
    return project / "deploy/conditional"


def test_its_examples_draw_a_class_with_guidance_without_this_project(conditional: Path):
    whole, loop = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    alone = "import sys\nfor name in ('ddpm', 'torch', 'onnx'): sys.modules[name] = None\n"
    program = f"{alone}{whole}{loop}\nnp.savez('drawn.npz', images=images, x0=x0, x=x)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    drawn = np.load("drawn.npz")
    sampler = Sampler(conditional)
    expected = sampler.sample(16, seed=0, label="7", guidance_scale=3.0).astype(int)
    assert np.abs(drawn["images"] - expected).max() <= 1  # a level, where rounding falls the other way
    np.testing.assert_allclose(drawn["x"], drawn["x0"], atol=1e-5)
    for other in ({"label": "8", "guidance_scale": 3.0}, {"label": "7"}):
        assert np.abs(drawn["images"] - sampler.sample(16, seed=0, **other)).max() > 1
