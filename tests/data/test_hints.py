"""Hints that lie beside a folder's images, from metadata.jsonl to a control that is trained on them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import TINY_PARAMS

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.columns import columns_of, stored
from ddpm.data.folder import read
from ddpm.data.store import PreparedData
from ddpm.errors import UserError

COUNT = 20


def write_folder(folder: Path, *, hints: int = COUNT, side: int = 8, captions: bool = False) -> None:
    """Images with hints beside them: image i has the level 10 i, its hint 255 − i."""
    (folder / "hints").mkdir(parents=True)
    rows = []
    for number in range(COUNT):
        image = np.full((8, 8), 10 * number, np.uint8)
        image[0, 0] = 255
        Image.fromarray(image).save(folder / f"{number:02}.png")
        row = {"file_name": f"{number:02}.png"} | ({"text": f"number {number}"} if captions else {})
        if number < hints:
            Image.fromarray(np.full((side, side), 255 - number, np.uint8)).save(folder / f"hints/{number:02}.png")
            row["control_file_name"] = f"hints/{number:02}.png"
        rows.append(json.dumps(row))
    (folder / "metadata.jsonl").write_text("\n".join(rows))


@pytest.mark.parametrize("captions", [False, True])
def test_a_hint_is_no_image_of_its_own(tmp_path, captions):
    write_folder(tmp_path / "images", captions=captions)
    found = read(tmp_path / "images")
    samples = list(found.samples)
    assert (found.count, found.classes, found.hinted, found.captioned) == (COUNT, None, True, captions)
    assert [sample.captions for sample in samples][1:2] == [("number 1",) if captions else ()]
    for number, sample in enumerate(samples):
        assert sample.hint is not None
        assert np.asarray(sample.hint(None))[0, 0] == 255 - number


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [*rows[:-1], {"file_name": "19.png"}], "hints missing: .*19.png has none"),
        (lambda rows: [{**rows[0], "control_file_name": "no.png"}, *rows[1:]], "line 1: `control_file_name` 'no.png'"),
        (lambda rows: [{**rows[0], "file_name": "no.png"}, *rows[1:]], "line 1: `file_name` 'no.png': no such image"),
        (lambda rows: [*rows, {**rows[0], "control_file_name": "hints/01.png"}], "line 21: a second hint of 00.png"),
        (lambda rows: [{**rows[0], "control_file_name": 7}, *rows[1:]], "line 1: `control_file_name` 7: no such image"),
    ],
)
def test_what_is_wrong_with_hints_is_said_with_the_line(tmp_path, change, words):
    write_folder(tmp_path)
    table = tmp_path / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    rows = [{"text": "", **row} if "control_file_name" not in row else row for row in change(rows)]
    table.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=words):
        read(tmp_path, captions="partial")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared images with hints, and a base and a control that are trained."""
    folder = tmp_path_factory.mktemp("hints")
    write_folder(folder / "images")
    tiny = TINY_PARAMS["models"]["tiny"]
    tiny = {**tiny, "training": {**tiny["training"], "steps": 8, "sample_every": 4}}
    given = {**tiny, "condition": {"control": {"of": "models/base", "hint": "given", "widths": [4]}}}
    params = {**TINY_PARAMS, "variants": ["base"], "models": {"base": tiny, "given": given}}
    params["data"] = {"source": "folder", "path": "images", "name": "dots", "validation_fraction": 0.3}
    (folder / "params.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(params))))
    with contextlib.chdir(folder):
        for command in (["fetch"], ["prepare"], ["train", "base"], ["train", "given"]):
            assert main(command) == 0
    return folder


def test_hints_are_prepared_beside_their_images(project):
    data = PreparedData.open(project / "prepared")
    assert data.manifest.hint_shape == (8, 8, 1)
    for name in ("train", "validation"):
        split = data.split(name)
        rows = np.arange(len(split))
        assert np.array_equal(255 - split.hints[rows][:, 0, 0, 0], split.rows(rows)[:, 1, 1, 0] // 10)
    (column,) = stored(columns_of({"control": {"hint": "given"}}, {"shape": (8, 8, 1), "hint_shape": (8, 8, 1)}))
    values = column.of_data(data.split("train")).at(np.array([2, 0]))
    assert np.array_equal(values, data.split("train").hints[np.array([2, 0])])


def test_a_control_of_given_hints_draws_with_one(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    model = ddpm.load("models/given")
    hint = np.full((8, 8, 1), 100, np.uint8)
    assert model.sample(2, control=hint).shape == (2, 8, 8, 1)
    with pytest.raises(ValueError, match="control: the model needs given, a picture of 8×8×1; found none"):
        model.sample(1)


def test_mirroring_and_data_without_hints_are_refused(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    before = (project / "params.yaml").read_text()
    params = yaml.safe_load(before)
    params["models"]["given"]["training"]["horizontal_flip"] = True
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert main(["train", "given"]) == 2
    assert "horizontal_flip mirrors images, but not the hints that lie beside them" in capsys.readouterr().err
    (project / "params.yaml").write_text(before)
    with pytest.raises(ValueError, match=r"control\.hint is given, which needs data with `control_file_name`"):
        columns_of({"control": {"hint": "given"}}, {"shape": (8, 8, 1)})


def test_a_hint_of_another_size_than_its_image_is_refused(tmp_path, monkeypatch, capsys):
    write_folder(tmp_path / "images", side=4)
    params = {**TINY_PARAMS, "data": {"source": "folder", "path": "images", "name": "dots"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    monkeypatch.chdir(tmp_path)
    assert main(["fetch"]) == 0
    assert main(["prepare"]) == 2
    assert "the hint of data/00.png is 4×4 pixels, expected the image's 8×8" in capsys.readouterr().err
