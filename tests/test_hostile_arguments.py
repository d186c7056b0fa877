"""Whatever stands on the command line: exit code 2, the reason in one line, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TINY_PARAMS, write_params

from ddpm import cli

FILES = {
    "missing": None,
    "empty": b"",
    "junk": bytes(range(256)) * 4,
    "list.json": b"[1]",
    "ро́ж 🦊": b"x",
}
VALUES = [*FILES, "folder", "damaged", "loop", "a\0b", "x" * 5000, "", "\udcff", "~nosuch/x", "9" * 400]
COMMANDS = {
    **{f"{name} V": [name, "?"] for name in ("train", "evaluate", "export", "register", "promote", "config")},
    **{f"{name} --params": [name, "tiny", "--params", "?"] for name in ("train", "evaluate")},
    "sample": ["sample", "?", "--out", "o.png"],
    "sample --out": ["sample", "models/none", "--out", "?"],
    "compare": ["compare", "?", "--out", "c"],
    "compare --out": ["compare", "nosuch", "--out", "?"],
    "measure": ["measure", "?", "--out", "m.json"],
    "measure --out": ["measure", "deploy/none", "--out", "?"],
    "import": ["import", "?", "--out", "imported"],
    "import --out": ["import", "junk", "--out", "?"],
    "export-diffusers": ["export-diffusers", "?", "given"],
    "export-diffusers OUT": ["export-diffusers", "models/none", "?"],
    "init": ["init", "?", "--images", "folder"],
    "init --images": ["init", "made", "--images", "?"],
    "serve": ["serve", "?", "--port", "0"],
    "serve --host": ["serve", "deploy/none", "--host", "?"],
    "completion": ["completion", "?"],
}
NUMBERS = ["", "x", "-1", "nan", "1e999", "9" * 18, "9" * 400, "9" * 5000, "½", "1\0"]
NUMBERED = {
    **{f"sample {option}": ["sample", "models/none", "--out", "o.png", option, "?"]
       for option in ("--n", "--seed", "--steps", "--eta", "--batch-size")},
    **{f"compare {option}": ["compare", "nosuch", option, "?"] for option in ("--samples", "--steps")},
    **{f"serve {option}": ["serve", "deploy/none", option, "?"] for option in ("--port", "--threads", "--poll")},
    **{f"init {option}": ["init", "made", "--images", "folder", option, "?"] for option in ("--size", "--channels")},
    **{f"import {option}": ["import", "junk", "--out", "imported", option, "?"]
       for option in ("--image-size", "--dropout", "--num-heads")},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project without data, and files of every kind."""
    place = tmp_path_factory.mktemp("hostile")
    write_params(place, TINY_PARAMS)
    for name, content in FILES.items():
        if content is not None:
            (place / name).write_bytes(content)
    (place / "folder").mkdir()
    (place / "damaged").mkdir()
    for name in ("model.json", "sampler.json", "model.safetensors", "denoiser.onnx"):
        (place / "damaged" / name).touch()
    (place / "loop").symlink_to(place / "loop")
    return place


def refused(command: list[str], value: str, place: Path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(place)
    before = set(place.iterdir())
    try:
        code = cli.main([value if word == "?" else word for word in command])
    except SystemExit as ended:  # argparse's
        code = ended.code
    told = capfd.readouterr().err.strip().splitlines()
    assert code == 2, told
    assert [line for line in told if line.startswith(f"ddpm {command[0]}: ")] == told[-1:], told
    assert set(place.iterdir()) == before, "something was written"


@pytest.mark.parametrize("value", VALUES, ids=ascii)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_names_and_paths(place: Path, command: list[str], value: str, monkeypatch, capfd):
    refused(command, value, place, monkeypatch, capfd)


@pytest.mark.parametrize("value", NUMBERS, ids=lambda value: ascii(value)[:20])
@pytest.mark.parametrize("command", NUMBERED.values(), ids=NUMBERED)
def test_numbers(place: Path, command: list[str], value: str, monkeypatch, capfd):
    refused(command, value, place, monkeypatch, capfd)
