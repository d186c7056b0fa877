"""Files made to harm: `ddpm import` answers in one line, exit code 2, in seconds, and in the memory of the file."""

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ddpm.errors import UserError
from ddpm.interop.published import Flags, shaped_like
from ddpm.interop.saved import read_saved, tensors_alone
from ddpm.stages.interop import import_model

SAID = Flags(image_size=8, num_heads=1, noise_schedule="cosine", diffusion_steps=1000)
STEM = {
    "time_embed.0.weight": torch.zeros(128, 32),
    "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3),
    "input_blocks.1.0.emb_layers.1.bias": torch.zeros(64),
    "input_blocks.1.0.out_layers.3.weight": torch.zeros(32, 32, 3, 3),
    "out.2.bias": torch.zeros(3),
}


class Bytes:
    def __reduce__(self):
        return (bytearray, (20 << 30,))


class Code:
    def __reduce__(self):
        return (print, ("executed",))


def pipe(path):
    os.mkfifo(path)


def repeated(path):
    """A stride of 0: a kilobyte that says it is four terabytes."""
    torch.save({**STEM, "out.0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, path)


def without_numbers(path):
    torch.save({**STEM, "out.0.weight": torch.zeros(1 << 40, device="meta")}, path)


def sparse(path):
    torch.save({**STEM, "out.0.weight": torch.sparse_coo_tensor([[0]], [1.0], (1 << 40,))}, path)


def quantised(path):
    save_file({**STEM, "out.0.weight": torch.zeros(32, dtype=torch.int8)}, path.with_suffix(".safetensors"))


def bytes_alone(path):
    torch.save({**STEM, "x": Bytes()}, path)


def bytes_in_the_older_format(path):
    torch.save({**STEM, "x": Bytes()}, path, _use_new_zipfile_serialization=False)


def compressed(path):
    torch.save(STEM | {"out.0.weight": torch.zeros(1 << 22)}, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for member in plain.infolist():
            out.writestr(member.filename, plain.read(member))


def high_numbers(path):
    torch.save({**STEM, "input_blocks.4000000000.0.op.weight": torch.zeros(1)}, path)


def code(path):
    torch.save({"a": Code()}, path)


def no_checkpoint(path):
    path.write_bytes(pickle.dumps(Code(), protocol=2))


def lines_in_a_name(path):
    torch.save({**STEM, "input_blocks.1.0.a\nb" + "x" * 10_000: torch.zeros(1)}, path)


def diffusers_of(path, scheduler=None, **config):
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [32]}
    (path / "scheduler").mkdir(parents=True)
    model = {"_class_name": "UNet2DModel", "sample_size": 8, **blocks, **config}
    (path / "config.json").write_text(json.dumps(model))
    (path / "scheduler" / "scheduler_config.json").write_text(
        json.dumps({"_class_name": "DDPMScheduler", **(scheduler or {})})
    )
    save_file({"conv_in.weight": torch.zeros(32, 3, 3, 3)}, path / "diffusion_pytorch_model.safetensors")


def many_layers(path):
    diffusers_of(path, layers_per_block=100_000)


def many_levels(path):
    count = 100_000
    diffusers_of(
        path,
        down_block_types=["DownBlock2D"] * count,
        up_block_types=["UpBlock2D"] * count,
        block_out_channels=[32] * count,
    )


def wide_layers(path):
    diffusers_of(path, block_out_channels=[32 * 10**11])


def many_timesteps(path):
    diffusers_of(path, scheduler={"num_train_timesteps": 10**9})


def nested(path):
    diffusers_of(path)
    (path / "config.json").write_text("[" * 100_000)


def piped_configuration(path):
    diffusers_of(path)
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


HOSTILE = {
    pipe: "a pipe or a device",
    repeated: "its tensors have 4,398,0",
    without_numbers: "out.0.weight is no plain tensor",
    sparse: "out.0.weight is no plain tensor",
    bytes_alone: "holds a byte array",
    bytes_in_the_older_format: "holds a byte array",
    compressed: "its parts are longer than the file",
    high_numbers: "a block number 4e+09 in 6 tensors",
    code: "holds the Python object print, not tensors",
    no_checkpoint: "holds the Python object print, not tensors",
    lines_in_a_name: "another network: missing",
    many_layers: "1 tensors, but layers_per_block is 100000 on 1 levels",
    many_levels: "on 100000 levels",
    wide_layers: "conv_in",
    many_timesteps: "`num_train_timesteps`: input should be less than or equal to 100000",
    nested: "nested too deeply",
    piped_configuration: "a pipe or a device",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_file_gets_one_line(make, tmp_path):
    source = tmp_path / "model.pt"
    make(source)
    flags = SAID if source.is_file() else Flags()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError) as caught:
        import_model(source, tmp_path / "out", flags)
    said = str(caught.value)
    assert HOSTILE[make] in said or make is wide_layers
    assert "\n" not in said
    assert len(said) < 600
    assert not (tmp_path / "out").exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_numbers_that_are_no_weights(tmp_path):
    quantised(tmp_path / "model.pt")
    state = {**STEM, "input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3, dtype=torch.int8)}
    assert tensors_alone(read_saved(tmp_path / "model.safetensors"), "here")
    stem = torch.nn.Conv2d(3, 32, 3)
    with pytest.raises(UserError, match=r"weight is torch.int8; expected floating-point numbers"):
        shaped_like({"weight": state["input_blocks.0.0.weight"], "bias": torch.zeros(32)}, stem, "here")


LIMITED = """
import json, resource, sys, time
import torch, ddpm.stages.interop
from ddpm.cli import main
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), now + (1 << 30)))
for arguments in json.loads(sys.argv[1]):
    began = time.process_time()
    code = main(arguments)
    assert code == 2, arguments
    assert time.process_time() - began < 10, arguments
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_the_command_keeps_within_limits(tmp_path):
    """In a process that may have one more gigabyte of addresses: exit code 2 and one line, in seconds, for each."""
    said = ["--image-size", "8", "--num-heads", "1", "--noise-schedule", "cosine", "--diffusion-steps", "1000"]
    commands = []
    for make in HOSTILE:
        (tmp_path / make.__name__).mkdir()
        source = tmp_path / make.__name__ / "model.pt"
        make(source)
        out = str(tmp_path / make.__name__ / "out")
        commands.append(["import", str(source), "--out", out, *(said if source.is_file() else [])])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(commands)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == len(HOSTILE)
    assert not list(tmp_path.glob("*/out"))
