"""Inpainting: the known part of an image as columns, as a condition, in training and in sampling."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from projects import trained_with
from prompts import Prompt, Words
from tiny import UNET

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.columns import columns_of, derived_draws
from ddpm.conditioning.network import ConditionalNetwork, ports_for
from ddpm.conditioning.pictures import ImageColumn, LowColumn, MaskColumn
from ddpm.data.store import PreparedData
from ddpm.files import read_json
from ddpm.nets import build

DATA = {"kind": "images", "shape": (8, 8, 3)}
IMAGE, MASK = columns_of({"mask": {"unknown": 0.1}}, DATA)


def inpainter(condition: dict) -> ConditionalNetwork:
    """A small U-Net with random weights."""
    columns = columns_of(condition, DATA)
    network = build(UNET, image_size=8, channels=3, ports=ports_for(columns, condition))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return ConditionalNetwork(network, columns, condition)


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def masks(count: int, side: int = 16, unknown: float = 0.0, seed: int = 0) -> torch.Tensor:
    column = MaskColumn((side, side), unknown)
    uniform = torch.rand(count, column.draws, generator=torch.Generator().manual_seed(seed))
    return column.derive(torch.zeros(count, 1, side, side), uniform)


# --- the columns


def test_the_key_mask_has_two_columns():
    assert (ImageColumn((8, 8, 3)), MaskColumn((8, 8), 0.1)) == (IMAGE, MASK)
    with pytest.raises(ValueError, match=r"condition\.mask is for images; the data are points"):
        columns_of({"mask": {}}, {"kind": "points", "shape": (2,)})


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int64])
def test_a_mask_is_of_truth_values_or_of_two_numbers(kind):
    asked = pictures(2, 8, 8) < 100
    for known in {1, 255} if kind != np.bool_ else {1}:
        found = MASK.read((asked * known).astype(kind), 3, first=1)
        np.testing.assert_array_equal(found, asked[[1, 0, 1]])
        assert found.dtype == np.bool_
    np.testing.assert_array_equal(MASK.read(asked[0].tolist(), 1), asked[:1])


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (np.full((8, 8), 128, np.uint8), "mask: expected 0, 1, 255, found 128"),
        (pictures(8, 8), "mask: expected 0, 1, 255, found "),
        (np.zeros((8, 8)), "mask: expected whole numbers 0..255, found float64"),
        (np.zeros((8, 8, 1), bool), "mask: expected a picture of 8×8, or several, found 8×8×1"),
        (np.zeros((4, 4), bool), "found 4×4"),
        (True, "found True"),
    ],
)
def test_what_is_no_mask(asked, words: str):
    with pytest.raises(ValueError, match=re.escape(words)):
        MASK.read(asked, 1)


def test_where_nobody_asks_nothing_is_known():
    assert not MASK.draw(2, seed=0).any()
    assert not IMAGE.draw(2, seed=0).any()
    assert (MASK.null, IMAGE.null) == (None, None)


@given(st.integers(0, 2**32 - 1), st.sampled_from([8, 16, 33]))
@settings(max_examples=25, deadline=None)
def test_a_training_mask_leaves_something_to_draw(seed: int, side: int):
    found = masks(20, side, seed=seed)
    assert found.dtype == torch.bool
    assert (~found).flatten(1).any(1).all(), "a hole in each"


def test_the_holes_are_of_all_sizes_and_places():
    found = masks(4000)
    share = (~found).float().mean((1, 2))
    assert share.quantile(0.1) < 0.15
    assert share.quantile(0.9) > 0.5
    everywhere = (~found).float().mean(0)
    assert everywhere.min() > 0.05
    # No side is preferred: within 5 standard deviations of 4,000 masks.
    for other in (everywhere.flip(0), everywhere.flip(1), everywhere.T):
        assert (everywhere - other).abs().max() < 5 * (2 * 0.25 / 4000) ** 0.5


def test_of_a_share_of_the_images_nothing_is_known():
    """Within 5 standard deviations; the other masks are like those without."""
    nothing = (~masks(4000, unknown=0.25)).flatten(1).all(1).float().mean()
    never = (~masks(4000)).flatten(1).all(1).float().mean()
    expected = 0.25 + 0.75 * never
    assert abs(nothing - expected) < 5 * (expected * (1 - expected) / 4000) ** 0.5


def test_half_of_the_masks_are_boxes_and_half_are_strokes():
    column = MaskColumn((16, 16))
    uniform = torch.rand(6, column.draws, generator=torch.Generator().manual_seed(1))
    boxes, strokes = (
        ~column.derive(torch.zeros(6, 1, 16, 16), torch.cat([torch.full((6, 1), kind), uniform[:, 1:]], dim=1))
        for kind in (0.1, 0.9)
    )
    one = torch.cat([torch.zeros(6, 2), uniform[:, 2:]], dim=1)
    for hole in ~column.derive(torch.zeros(6, 1, 16, 16), one):
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None]), "one box"
    assert not torch.equal(boxes, strokes)
    changed = uniform.clone()
    changed[:, 2:14] = 0.5
    assert torch.equal(
        strokes, ~column.derive(torch.zeros(6, 1, 16, 16), torch.cat([torch.full((6, 1), 0.9), changed[:, 1:]], dim=1))
    ), "boxes and strokes have numbers of their own"


def test_a_mask_has_the_same_form_in_any_resolution():
    coarse, fine = masks(50, 16), masks(50, 64)
    shrunk = fine.unflatten(2, (16, 4)).unflatten(1, (16, 4)).float().mean((2, 4))
    # Where a coarse pixel is all in or all out of the fine hole. Fine strokes may be narrower than a coarse pixel.
    sure = (shrunk == 0) | (shrunk == 1)
    assert ((shrunk == coarse.float()) | ~sure).float().mean() > 0.97


def test_the_image_is_the_whole_image():
    full = pictures(2, 8, 8, 3)
    x0 = torch.from_numpy(full).permute(0, 3, 1, 2).float() / 127.5 - 1
    np.testing.assert_array_equal(IMAGE.derive(x0, torch.empty(2, 0)).numpy(), full)
    assert derived_draws((IMAGE, MASK)) == MASK.draws


# --- the condition


def test_the_maps_are_the_known_part_and_the_mask():
    network, mask = inpainter({"mask": {}}), torch.from_numpy(pictures(2, 8, 8) < 100)
    image = torch.from_numpy(pictures(2, 8, 8, 3))
    maps = network.inpainting({"image": image, "mask": mask}).maps
    assert maps.shape == (2, 4, 8, 8)
    assert torch.equal(maps[:, 3], mask.float())
    x0 = image.permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(maps[:, :3], torch.where(mask[:, None], x0, 0.0))


def test_what_is_unknown_has_no_influence_and_what_is_known_has():
    network, mask = inpainter({"mask": {}}), torch.from_numpy(pictures(2, 8, 8) < 100)
    image, x, t = torch.from_numpy(pictures(2, 8, 8, 3)), torch.randn(2, 3, 8, 8), torch.tensor([3, 900])
    other = torch.where(mask[..., None], image, 255 - image)
    with torch.no_grad():
        out = network(x, t, {"image": image, "mask": mask})
        assert torch.equal(out, network(x, t, {"image": other, "mask": mask}))
        assert not torch.allclose(out, network(x, t, {"image": 255 - other, "mask": mask}))
        assert not torch.allclose(out, network(x, t, {"image": image, "mask": torch.zeros_like(mask)}))


def test_a_mask_comes_before_a_low_image():
    """x, known part, mask, low: the order of the published inpainting upsampler."""
    network = inpainter({"low": {"side": 4}, "mask": {}})
    assert [column.name for column in network.columns] == ["image", "mask", "low"]
    given = {"image": pictures(1, 8, 8, 3), "mask": np.ones((1, 8, 8), bool), "low": np.zeros((1, 4, 4, 3), np.uint8)}
    seen = []
    network.network.stem_maps.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network(torch.zeros(1, 3, 8, 8), torch.tensor([1]), {name: torch.from_numpy(v) for name, v in given.items()})
    maps = seen[0]
    assert maps.shape == (1, 7, 8, 8)
    assert (maps[:, 3] == 1).all()
    assert (maps[:, 4:] == -1).all()


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("multipliers", "blocks", "side", "low", "size"),
    [((1, 2, 3, 4), 3, 64, None, 385_037_638), ((1, 1, 2, 2, 4, 4), 2, 256, 64, 398_368_198)],
)
def test_glide_for_inpainting_has_its_published_sizes(multipliers, blocks, side, low, size):
    options = {"kind": "unet", "width": 192, "multipliers": multipliers, "blocks": blocks, "head_channels": 64}
    options |= {"attention_resolutions": (32, 16, 8), "scale_shift": True, "resample": "residual"}
    data = {"shape": (side, side, 3)}
    columns = [Prompt(Words(50_257), (128,)), *columns_of({"mask": {}}, data)]
    columns += [LowColumn((low, low, 3), (side, side))] if low else []
    with torch.device("meta"):
        network = build(options, image_size=side, channels=3, out_channels=6, ports=ports_for(columns, {}))
        assert parameters(ConditionalNetwork(network, columns, {})) == size


# --- training


@pytest.fixture(scope="module")
def template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with a model that fills in digits."""
    return trained_with({"mask": {}}, prepared_template, tmp_path_factory.mktemp("mask"))


def test_a_trained_model_keeps_its_condition(here: Path, monkeypatch: pytest.MonkeyPatch):
    """The known half of a digit comes back nearer to it than that of other digits, also where nothing puts its pixels
    back: the model has learned it."""
    monkeypatch.setattr("ddpm.model.known_part", lambda given: None)
    monkeypatch.setattr("ddpm.drawer.with_known", lambda drawn, given: drawn)
    model, data = ddpm.load("models/tiny"), PreparedData.open(Path("prepared"))
    image = data.split("validation").rows(np.arange(8))
    mask = np.zeros((8, 8), bool)
    mask[:, :5] = True
    drawn = model.sample(8, seed=0, image=image, mask=mask, sampler="ddim", steps=10).astype(float)
    distance = np.abs(drawn[:, None] - image[None])[:, :, :, :5].mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(8)).all()
    parts = model.sample(8, seed=0, image=image, mask=mask, sampler="ddim", steps=10, batch_size=3)
    assert np.abs(parts - drawn).max() <= 1


def test_without_an_image_it_draws_all_of_one(here: Path):
    model = ddpm.load("models/tiny")
    nothing = {"image": np.zeros((8, 8, 1), np.uint8), "mask": np.zeros((8, 8), bool)}
    np.testing.assert_array_equal(model.sample(3, seed=1), model.sample(3, seed=1, **nothing))


def test_what_a_user_is_told(here: Path):
    model = ddpm.load("models/tiny")
    with pytest.raises(ValueError, match="image needs mask as well: give both or neither"):
        model.sample(1, image=np.zeros((8, 8, 1), np.uint8))
    with pytest.raises(ValueError, match="mask needs image as well: give both or neither"):
        model.sample(1, mask=np.zeros((8, 8), bool))
    with pytest.raises(ValueError, match=r"^low: the model takes no such input; it takes: image, mask$"):
        model.sample(1, low=np.zeros((4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"guidance_scale must be 1: the model has no guide, and its condition cannot"):
        model.sample(1, guidance_scale=2.0)


def test_it_is_measured_as_a_model_that_draws_all_and_by_the_parts_that_it_draws_again(here: Path):
    assert main(["evaluate", "tiny"]) == 0
    metrics, protocol = (read_json(Path(f"reports/tiny/{name}.json")) for name in ("metrics", "protocol"))
    assert protocol["inpainted"] == 64
    assert metrics["fid"] > 0, "of whole images"
    assert metrics["inpainting_known_error"] == 0
    assert 0 < metrics["inpainting_rmse"] < 128
    assert 0 < metrics["inpainting_fid"] < metrics["fid"], "known pixels are real"
