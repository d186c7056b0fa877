"""`ddpm init`: a params.yaml that fits a folder of images, in a folder that holds nothing else."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddpm import cli
from ddpm.codecs.scale import codec_for
from ddpm.config.model import VariantConfig
from ddpm.config.params import check_sections, load_params
from ddpm.model.network import build_network
from ddpm.stages.init import Found, settings


def write_images(folder: Path, count: int, *, side: int = 12, colour: bool = True, classes: int = 0) -> Path:
    random = np.random.RandomState(0)
    for number in range(count):
        where = folder / f"class-{number % classes}" if classes else folder
        where.mkdir(parents=True, exist_ok=True)
        pixels = random.randint(0, 256, (side, side + 2, 3) if colour else (side, side + 2)).astype(np.uint8)
        Image.fromarray(pixels).save(where / f"{number}.png")
    return folder


@pytest.mark.parametrize("size", [8, 10, 16, 20, 28, 32, 50, 64, 96, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_fits_every_size(size: int, channels: int):
    found = Found(100, None, "classes", coloured=channels == 3, smallest=size)
    model = VariantConfig.model_validate(settings(found, "x", size, channels)["models"]["ddpm"])
    with torch.device("meta"):
        network = build_network(model, codec_for("images", (size, size, channels)))
    assert sum(parameter.numel() for parameter in network.parameters()) < 30e6


def test_what_is_written_is_short_complete_and_stays_valid(tmp_path: Path, monkeypatch, capsys):
    write_images(tmp_path / "Cat pictures", 30, classes=3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["init", "cats", "--images", "Cat pictures", "--size", "16"]) == 0
    said = capsys.readouterr().out
    assert "30 images in 3 class folders, in colour; the shortest side is 12 pixels" in said
    assert "cd cats" in said
    text = Path("cats/params.yaml").read_text()
    assert len(text.splitlines()) < 50
    params = load_params(Path("cats/params.yaml"))
    assert (params.data.image_size, params.data.channels, params.data.dataset_name) == (16, 3, "cat-pictures")
    assert set(yaml.safe_load(text)["models"]["ddpm"]) == set(VariantConfig.model_fields)  # DVC tracks each
    assert list(Path("cats").iterdir()) == [Path("cats/params.yaml")]


@pytest.mark.parametrize(
    ("images", "options", "expected"),
    [
        ({"count": 20, "side": 12}, [], (8, 3, "classes", 0.2)),
        ({"count": 8, "side": 40, "colour": False}, [], (32, 1, "classes", 0.5)),
        ({"count": 8, "side": 4}, ["--channels", "1"], (8, 1, "classes", 0.5)),
    ],
)
def test_what_is_not_given_is_taken_from_the_images(tmp_path: Path, images, options, expected):
    write_images(tmp_path / "images", **images)
    assert cli.main(["init", str(tmp_path / "new"), "--images", str(tmp_path / "images"), *options]) == 0
    data = load_params(tmp_path / "new/params.yaml").data
    assert (data.image_size, data.channels, data.subfolders, data.validation_fraction) == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [(("a/b/{}.png", "c/{}.png"), "nested-classes"), (("a/{}.png", "{}.png"), "ignored"), (("a/{}.png",), "classes")],
)
def test_nested_folders_are_read_too(tmp_path: Path, files: tuple[str, ...], expected: str):
    for number in range(10):
        path = tmp_path / "images" / files[number % len(files)].format(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    assert cli.main(["init", str(tmp_path / "new"), "--images", str(tmp_path / "images")]) == 0
    assert load_params(tmp_path / "new/params.yaml").data.subfolders == expected


def test_dvc_finds_every_section_that_it_tracks(tmp_path: Path):
    images = write_images(tmp_path / "images", 10)
    assert cli.main(["init", str(tmp_path / "new"), "--images", str(images)]) == 0
    check_sections(load_params(tmp_path / "new/params.yaml"))


@pytest.mark.parametrize(
    ("captioned", "said", "expected"),
    [(10, "10 images without classes, with captions", "complete"), (4, "classes, 4 with captions", "partial")],
)
def test_captions_are_recognised(tmp_path: Path, capsys, captioned: int, said: str, expected: str):
    images = write_images(tmp_path / "images", 10)
    for number in range(captioned):
        (images / f"{number}.txt").write_text(f"picture {number}")
    assert cli.main(["init", str(tmp_path / "new"), "--images", str(images)]) == 0
    out = capsys.readouterr().out
    assert said in out
    assert "`condition: {prompt: {}}`" in out
    assert load_params(tmp_path / "new/params.yaml").data.captions == expected


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "none"], "--images none: no such folder"),
        (["--images", "few"], "expected at least 8 images, found 7"),
        (["--images", "texts"], "0.txt: not an image"),
        (["--images", "captions"], "b.txt: a caption without an image of its name"),
        (["--images", "images", "--size", "33"], "--size must be an even number from 8 to 256, found 33"),
        (["--images", "images", "--size", "512"], "from 8 to 256, found 512"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(tmp_path: Path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    write_images(Path("few"), 7, side=4)
    write_images(Path("images"), 8, side=4)
    Path("texts").mkdir()
    for name in ("0.txt", "b.txt"):
        (write_images(Path("captions"), 8, side=4) / name).write_text("a caption")
    for number in range(8):
        Path(f"texts/{number}.txt").write_text("no image")
    assert cli.main(["init", "new", *options]) == 2
    assert words in capsys.readouterr().err
    assert not Path("new").exists()


def test_a_project_is_not_overwritten(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), 8, side=4)
    Path("params.yaml").write_text("mine")
    assert cli.main(["init", ".", "--images", "images"]) == 2
    assert "params.yaml: exists already" in capsys.readouterr().err
    assert Path("params.yaml").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_eighty_pictures_go_through_every_stage_in_an_empty_folder(tmp_path: Path, monkeypatch):
    write_images(tmp_path / "images", 80, side=8, classes=2)
    assert cli.main(["init", str(tmp_path / "new"), "--images", str(tmp_path / "images"), "--size", "8"]) == 0
    monkeypatch.chdir(tmp_path / "new")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["models"]["ddpm"]["training"] |= {"steps": 4, "batch_size": 8, "warmup_steps": 1}
    params["models"]["ddpm"]["process"]["timesteps"] = 50
    params["extractor"] = {"steps": 20}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    for command in ("fetch", "prepare", "fit-extractor", "train ddpm", "evaluate ddpm", "export ddpm"):
        assert cli.main(command.split()) == 0, command
    assert yaml.safe_load(Path("reports/ddpm/protocol.json").read_text())["splits"] == 8
