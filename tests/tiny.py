"""A pipeline of seconds: its parameters, and running its stages as a user does."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import command_server
import yaml

# Tests compare bytes: one thread makes a run independent of how many cores the machine has.
os.environ["OMP_NUM_THREADS"] = "1"

# The network of models that are built without a configuration, for images of 8×8.
UNET = {
    "kind": "unet",
    "width": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_resolutions": (4,),
    "groups": 4,
    "dropout": 0.0,
}
# Such a network as diffusers describes it.
UNET_OF_DIFFUSERS = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
# The sizes of a small network of any kind, in params.yaml: two levels of 8 and 16 channels.
LEVELS = {"width": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4}
TINY_PARAMS = {
    "seed": 3,
    "data": {"source": "digits"},
    "extractor": {"steps": 40},
    "evaluation": {"samples": 64, "batch_size": 32, "splits": 2, "resamples": 20, "nll_samples": 4},
    "export": {"parity_samples": 2, "parity_steps": 5},
    "variants": ["tiny"],
    "guides": [],
    "autoencoders": [],
    "encoders": [],
    "latents": {},
    "cascades": {},
    "unclips": {},
    "controls": {},
    "models": {
        "tiny": {
            "network": {**LEVELS, "attention_resolutions": [4], "dropout": 0.1},
            "condition": {},
            "codec": {},
            "process": {"timesteps": 50, "variance": "fixed_small"},
            "objective": {"loss": "simple"},
            "training": {
                "steps": 40,
                "batch_size": 8,
                "warmup_steps": 2,
                "learning_rate": 1e-3,
                "ema_decay": 0.9,
                "log_every": 7,
                "checkpoint_every": 5,
            },
            "sampling": {"steps": 5},
        }
    },
}


def cascade_params(**glide: float | str) -> dict:
    """params.yaml of a cascade from 4×4 to 8×8 digits, both conditioned on their class."""
    tiny = copy.deepcopy(TINY_PARAMS["models"]["tiny"])
    tiny["process"] |= {"prediction": "x0", "schedule": "cosine"}
    tiny["training"] |= {"steps": 60, "batch_size": 32, "learning_rate": 5e-3}
    small = {**tiny, "codec": {"side": 4}, "condition": {"label": {"drop": 0.2}}}
    low = {"label": {"drop": 0}, "low": {"side": 4, "noise": 0.2}}
    large = {**copy.deepcopy(tiny), "condition": low, "sampling": {"steps": 4, "sampler": "ddim", "eta": 1.0}}
    cascades = {"glide": {"base": "small", "upsampler": "large", "low_noise": 0.1, **glide}}
    return {**TINY_PARAMS, "variants": [], "cascades": cascades, "models": {"small": small, "large": large}}


def run_cli(cwd: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `ddpm` as a user does, in its own process."""
    return command_server.run(arguments, cwd, {**os.environ, **environment})


def run_with_params_of_before(cwd: Path, stage: str) -> subprocess.CompletedProcess[str]:
    """Run a stage's function as a program does that has read params.yaml before somebody else spoils it."""
    program = (
        f"from ddpm.stages.{stage} import {stage}_variant as run; "
        "from ddpm.config.params import PARAMS_FILE, load_params; "
        "params = load_params(); PARAMS_FILE.write_text('seed: none'); run(params, 'tiny')"
    )
    command = [sys.executable, "-c", program]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def workers(launcher: subprocess.Popen[str]) -> list[int]:
    """The processes that a stage has started, the first of them first."""
    listed = subprocess.run(
        ["ps", "-o", "pid=", "--sort", "pid", "--ppid", str(launcher.pid)], capture_output=True, text=True, check=False
    )
    return [int(pid) for pid in listed.stdout.split()]


def write_params(directory: Path, params: dict) -> None:
    (directory / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
