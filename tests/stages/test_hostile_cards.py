"""model.json and sampler.json of nobody's making: one line, soon, and in little memory."""

import json
import time
import tracemalloc
from pathlib import Path

import pytest

import ddpm
import ddpm.model  # imports torch, for which no test shall wait
from ddpm.cli import main
from ddpm.errors import UserError

DEEP = "[" * 100_000 + "]" * 100_000


def change(path: Path, key: str, value) -> None:
    card = json.loads(path.read_text())
    *outer, last = key.split(".")
    section = card
    for name in outer:
        section = section[name]
    section[last] = value
    path.write_text(json.dumps(card))


def refused(directory: Path) -> str:
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(UserError) as error:
        ddpm.load(directory)
    assert time.monotonic() - began < 10
    assert tracemalloc.get_traced_memory()[1] < 2e8
    tracemalloc.stop()
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config.network.width", 10**11),
        ("config.network.width", 8 * 10**18),
        ("config.network.blocks", 10**9),
        ("config.network.multipliers", [1, 10**9]),
        ("config.process.timesteps", 10**11),
        ("data.shape", [10**9, 10**9, 1]),
        ("data.shape", [10**5, 10**5, 1]),
        ("data.shape", [8, 8, 10**7]),
    ],
)
def test_a_model_that_cannot_be(trained: Path, key, value):
    change(trained / "models/tiny/model.json", key, value)
    assert "model" in refused(trained / "models/tiny")


@pytest.mark.parametrize(
    ("key", "value"),
    [("process.timesteps", 10**11), ("sampling.steps", 10**9), ("shape", [10**9, 10**9, 1]), ("shape", [8, 8, 10**9])],
)
def test_an_export_that_cannot_be(trained: Path, key, value):
    change(trained / "deploy/tiny/sampler.json", key, value)
    assert "sampler.json" in refused(trained / "deploy/tiny")


@pytest.mark.parametrize("file", ["models/tiny/model.json", "deploy/tiny/sampler.json"])
@pytest.mark.parametrize("text", [DEEP, '{"a":' * 5000 + "1" + "}" * 5000, '{"format": ' + "9" * 6000 + "}"])
def test_nesting_and_long_numbers(trained: Path, file, text):
    (trained / file).write_text(text)
    assert Path(file).name in refused((trained / file).parent) or "damaged" in refused((trained / file).parent)


@pytest.mark.parametrize("file", ["models/tiny/loss.csv", "extractor/extractor.json"])
@pytest.mark.parametrize("content", [b"[1]\n2\n", b"\xff\x00", b"step,loss\n1,\n", b"a,b\n1,2\n"])
def test_a_file_of_another_content_is_named_before_anything_is_measured(trained: Path, capsys, file, content):
    before = (trained / "reports/tiny/metrics.json").read_bytes()
    (trained / file).write_bytes(content)
    assert main(["evaluate", "tiny"]) == 2
    assert Path(file).name in capsys.readouterr().err.splitlines()[-1]
    assert (trained / "reports/tiny/metrics.json").read_bytes() == before
