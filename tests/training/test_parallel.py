"""Several processes train what one would, and end as one does."""

import csv
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import run_cli, run_with_params_of_before, workers
from trainings import checkpoints, hashes, leftovers, set_training, start_training, wait_for_checkpoint

from ddpm.compute.parallel import launch
from ddpm.config.params import load_params
from ddpm.stages.train import train_variant

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


def torchrun(project: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Two processes, as a user starts them by hand."""
    command = [*TORCHRUN, *options, "-m", "ddpm", "train", "tiny"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300, check=False)


def without_dropout(project: Path) -> None:
    """Each process draws a dropout of its own, so that only without it the curves are comparable."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"]["network"]["dropout"] = 0.0
    (project / "params.yaml").write_text(yaml.safe_dump(params))


def curve(project: Path) -> list[float]:
    """Every loss and gradient norm of the loss curve."""
    with (project / "models/tiny/loss.csv").open() as stream:
        return [float(row[key]) for row in csv.DictReader(stream) for key in ("loss", "grad_norm")]


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_two_processes_take_the_steps_of_one(project: Path):
    """At the same batch. The sums of a batch's losses and gradients are made in another order, which costs each a
    rounding of float32, 6e-8; forty steps of Adam carried it to 1e-7 when measured, and a hundredfold is allowed. Wrong
    noise, data or weights of a single image show in the second digit.
    """
    without_dropout(project)
    set_training(project, batch_size=9, horizontal_flip=True)  # of which one process gets four, and one five
    train_variant(load_params(), "tiny")
    alone = curve(project)
    for path in (project / ".ddpm").rglob("step-*/state.json"):
        path.unlink()
    done = torchrun(project)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 1, "one speaks"
    assert curve(project) == pytest.approx(alone, rel=1e-5)
    assert curve(project) != alone, "two have done it"


@pytest.mark.slow
def test_the_caller_of_several_processes_keeps_its_log_and_its_threads(project: Path, monkeypatch, caplog):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with pytest.raises(SystemExit) as ended:
        launch(2, "train", "nosuch", load_params())
    assert ended.value.code == 2, "the processes have started, and refused"
    logging.getLogger("caller").error("still heard")
    assert caplog.messages[-1] == "still heard"
    assert "OMP_NUM_THREADS" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("model", ["imp", "vae"])
def test_so_it_is_with_every_objective(project: Path, model: str):
    """Timesteps by importance need the losses of all; a VAE is not trained through its `forward`."""
    params = yaml.safe_load((project / "params.yaml").read_text())
    tiny = params["models"]["tiny"]
    if model == "imp":
        tiny["network"]["dropout"] = 0.0
        tiny["process"] |= {"variance": "learned_range", "timesteps": 5}
        tiny["objective"] = {"loss": "vlb", "timestep_sampler": "importance"}
    else:
        tiny |= {
            "network": {"kind": "vae", "hidden": [32], "latent": 4},
            "process": {"timesteps": 1, "schedule": "cosine", "prediction": "x0", "variance": "fixed_small"},
            "objective": {"loss": "elbo"},
            "sampling": {"steps": 1},
        }
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    train_variant(load_params(), "tiny")
    alone = curve(project)
    for state in checkpoints(project):
        (state / "state.json").unlink()
    set_training(project, devices=2)
    done = run_with_params_of_before(project, "train")
    assert done.returncode == 0, done.stderr
    assert curve(project) == pytest.approx(alone, rel=1e-4)
    assert curve(project) != alone, "two have done it"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_is_killed_and_all_go_on_from_the_last_checkpoint(project: Path, rank: int):
    set_training(project, devices=2, steps=120, checkpoint_every=10)
    process = start_training(project)
    wait_for_checkpoint(project, process)
    os.kill(workers(process)[rank], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "one of 2 processes ended by SIGKILL; restart 1 of 3" in output
    assert "continuing tiny from step" in output
    assert "Traceback" not in output
    assert not leftovers(project)
    survived = hashes(project)
    for path in checkpoints(project):
        (path / "state.json").unlink()
    assert run_cli(project, "train", "tiny").returncode == 0
    assert hashes(project) == survived, "as if nobody had been killed"


@pytest.mark.slow
def test_two_machines_take_the_steps_of_one(project: Path, tmp_path: Path):
    """Two launchers that meet over the network, each in a folder of its own, as on two machines."""
    without_dropout(project)
    other = tmp_path / "other"
    shutil.copytree(project, other)
    train_variant(load_params(), "tiny")
    alone = curve(project)
    shutil.rmtree(project / "models")
    for path in checkpoints(project):
        (path / "state.json").unlink()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", address, "-m", "ddpm", "train", "tiny"]
    machines = [
        subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for cwd in (project, other)
    ]
    said = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert sum("2 processes" in each for each in said) == 1, "one speaks"
    # Which of the two is the first is torchrun's to say; it alone writes.
    [first] = [cwd for cwd in (project, other) if (cwd / "models").exists()]
    assert curve(first) == pytest.approx(alone, rel=1e-5)


@pytest.mark.slow
def test_torchrun_restarts_them_too(project: Path):
    set_training(project, steps=120, checkpoint_every=10)
    process = subprocess.Popen(
        [*TORCHRUN, "--max-restarts", "2", "-m", "ddpm", "train", "tiny"],
        cwd=project,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_checkpoint(project, process)
    os.kill(workers(process)[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "continuing tiny from step" in output
    assert (project / "models/tiny/model.safetensors").is_file()


@pytest.mark.slow
def test_asked_to_stop_all_stop_at_one_step(project: Path):
    set_training(project, devices=2, steps=2000, checkpoint_every=10)
    process = start_training(project)
    wait_for_checkpoint(project, process)
    pids = workers(process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.count("stopped at step") == 1
    stopped = int(output.split("stopped at step ")[1].split()[0])
    assert checkpoints(project)[-1].name == f"step-{stopped:09d}"
    wait_until_gone(pids)


@pytest.mark.slow
def test_without_their_launcher_they_save_and_stop(project: Path):
    """Else they would hold the variant's lock for days, and nobody could stop them by name."""
    set_training(project, devices=2, steps=2000, checkpoint_every=1000)
    process = start_training(project)
    deadline = time.monotonic() + 120
    while not (project / ".ddpm/training/tiny/lock").exists() or len(workers(process)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(2)
    pids = workers(process)
    process.kill()
    process.communicate(timeout=60)
    wait_until_gone(pids)
    assert len(checkpoints(project)) == 1, "before the first that was due"


@pytest.mark.slow
def test_what_goes_wrong_in_all_is_said_once(project: Path):
    set_training(project, devices=2, learning_rate=1e30, grad_clip=1e30, warmup_steps=0)
    done = run_cli(project, "train", "tiny")
    assert done.returncode == 2
    assert done.stderr.count("ddpm train: tiny: the ") == 1
    assert "restart" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"devices": 9}, "a batch_size of 8 cannot be shared by 9 devices"),
        ({"devices": 2, "micro_batch_size": "auto"}, "micro_batch_size: auto is for one device"),
        ({"cuda_graphs": True, "micro_batch_size": 3}, "cuda_graphs records one size"),
        ({"micro_batch_size": 0}, "micro_batch_size: expected a number above 0, auto or null, found 0"),
    ],
)
def test_what_cannot_be_shared_is_refused(project: Path, options: dict, complaint: str):
    from ddpm.errors import UserError

    set_training(project, **options)
    with pytest.raises(UserError, match=complaint):
        load_params()
