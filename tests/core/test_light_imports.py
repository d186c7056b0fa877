"""What imports what: each check runs in a fresh interpreter that refuses everything else."""

import subprocess
import sys

import pytest

# None in sys.modules: importing the name fails as if it were not installed.
REFUSE = "import sys; sys.modules.update(dict.fromkeys({blocked!r}))\n"
TOOLS = {"mlflow", "prefect", "dvc", "pydantic", "yaml", "safetensors", "PIL", "sklearn", "torch_fidelity", "tqdm"}
TOOLS |= {"torchvision", "onnx", "pandas", "matplotlib"}


def run(code: str, blocked: set[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", REFUSE.format(blocked=blocked) + code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_core_trains_and_samples_with_torch_and_numpy_alone():
    run(
        """
import numpy as np, torch
from ddpm.data.loader import InMemoryImages, TrainingData
from ddpm.diffusion.plans import sampling_plan
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.sampling import sample
from ddpm.diffusion.schedules import Schedule
from ddpm.nets import build
from ddpm.training.loop import train
from ddpm.training.options import TrainingOptions
from ddpm.training.tasks import Denoise
options = {"kind": "unet", "width": 8, "multipliers": (1, 2), "attention_resolutions": (4,), "groups": 4}
net = build(options, image_size=8, channels=1)
schedule = Schedule.named("linear", 20)
images = InMemoryImages(np.zeros((10, 8, 8, 1), np.uint8))
options = TrainingOptions(steps=4, batch_size=4, log_every=2)
curve = train(net, Denoise(GaussianProcess(schedule)), TrainingData(images), options)
assert "torch._dynamo" not in sys.modules, "its import takes seconds, up to 20 on a slow machine"
assert [point.step for point in curve] == [2, 4]
plan = sampling_plan(schedule, sampler="ddim", steps=5, prediction="epsilon", variance="fixed_small")
assert sample(net, plan, torch.randn(2, 1, 8, 8), lambda: None).shape == (2, 1, 8, 8)
""",
        TOOLS | {"onnxruntime"},
    )


def test_the_runtime_imports_with_numpy_alone():
    run("import ddpm, ddpm.cli, ddpm.deploy.integrity, ddpm.deploy.runtime", TOOLS | {"torch", "scipy"})


def test_the_watch_over_the_champion_needs_no_torch():
    run("import flows.monitor", {"torch", "scipy", "sklearn", "torchvision", "onnx"})


@pytest.mark.parametrize("tool", ["mlflow", "prefect", "dvc", "torch"])
def test_importing_the_package_imports_no_tool(tool):
    run(f"import sys, ddpm, ddpm.cli; assert {tool!r} not in sys.modules", set())
