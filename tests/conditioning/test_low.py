"""Upsamplers: the low image as a column, as a condition, in training and in sampling."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import train_with
from PIL import Image
from projects import trained_with
from prompts import Prompt, Words
from tiny import UNET
from weights import awake

import ddpm
from ddpm.cli.main import main
from ddpm.conditioning.columns import LabelColumn, columns_of, derived, derived_draws, stored
from ddpm.conditioning.network import ConditionalNetwork, ports_for
from ddpm.conditioning.pictures import LowColumn, LowGaussColumn, LowNoiseColumn
from ddpm.config.params import load_params
from ddpm.data.loader import InMemoryImages
from ddpm.data.store import PreparedData
from ddpm.deploy.facts import read_facts
from ddpm.diffusion.process import GaussianProcess
from ddpm.diffusion.schedules import Schedule
from ddpm.files import read_json, write_json
from ddpm.nets import build
from ddpm.pixels import to_levels
from ddpm.training.tasks import Denoise

DATA = {"kind": "images", "shape": (8, 8, 1)}
NOISY = {"low": {"side": 4, "noise": 0.5}}
SCHEDULE = Schedule.named("cosine", 50)


def upsampler(condition: dict, data: dict = DATA, **options) -> ConditionalNetwork:
    torch.manual_seed(0)
    columns = columns_of(condition, data)
    size, channels = data["shape"][1:]
    network = build({**UNET, **options}, image_size=size, channels=channels, ports=ports_for(columns, condition))
    return ConditionalNetwork(network, columns, condition)


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- the columns


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.sampled_from([2, 3, 4]), st.integers(1, 4))
@settings(max_examples=30)
def test_the_low_image_is_the_mean_of_squares_in_256_levels(seed, channels, factor, side):
    full = pictures(2, factor * side, factor * side, channels, seed=seed)
    x0 = torch.from_numpy(full).permute(0, 3, 1, 2).float() / 127.5 - 1
    column = LowColumn((side, side, channels), (factor * side, factor * side))
    low = column.derive(x0, torch.empty(2, 0)).numpy()
    expected = full.reshape(2, side, factor, side, factor, channels).astype(float).mean((2, 4))
    assert (low.dtype, low.shape) == (np.uint8, expected.shape)
    assert np.abs(low - expected).max() <= 0.5 + 1e-3
    box = np.asarray(Image.fromarray(full[0, ..., 0]).resize((side, side), Image.Resampling.BOX))
    assert np.abs(low[0, ..., 0].astype(int) - box).max() <= 1


def test_stored_pixels_come_back_from_what_the_network_sees():
    full = pictures(3, 8, 8, 3)
    x0 = torch.from_numpy(full).permute(0, 3, 1, 2).float() / 127.5 - 1
    np.testing.assert_array_equal(to_levels(x0).numpy(), full)
    assert to_levels(torch.tensor([-9.0, 9.0]).view(1, 1, 1, 2)).flatten().tolist() == [0, 255]


def test_one_picture_or_several_that_repeat():
    (column,) = columns_of({"low": {"side": 4}}, DATA)
    some = pictures(3, 4, 4, 1)
    np.testing.assert_array_equal(column.read(some[0], 2), some[[0, 0]])
    np.testing.assert_array_equal(column.read(some, 4, first=2), some[[2, 0, 1, 2]])
    np.testing.assert_array_equal(column.read(some.tolist(), 3), some)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (np.zeros((5, 4, 1), np.uint8), "low: expected a picture of 4×4×1, or several, found 5×4×1"),
        (np.zeros((4, 4), np.uint8), "found 4×4"),
        (np.zeros((0, 4, 4, 1), np.uint8), "found 0×4×4×1"),
        (np.zeros((4, 4, 1)), "low: expected whole numbers 0..255, found float64 of 0.0..0.0"),
        (np.full((4, 4, 1), 256), "found int64 of 256..256"),
        (np.full((4, 4, 1), -1), "found int64 of -1..-1"),
        ("cat.png", "found 'cat.png'"),
        ([[1, 2], [3]], "low: expected a picture of 4×4×1, or several, found [[1, 2], [3]]"),
    ],
)
def test_what_is_no_picture_of_the_models(asked, words: str):
    (column,) = columns_of({"low": {"side": 4}}, DATA)
    with pytest.raises(ValueError, match=re.escape(words)):
        column.read(asked, 1)


def test_without_a_low_image_nothing_is_drawn():
    (column,) = columns_of({"low": {"side": 4}}, DATA)
    with pytest.raises(ValueError, match="low: the model needs a picture of 4×4×1, found none"):
        column.draw(1, seed=0)
    assert column.null is None


@pytest.mark.parametrize("side", [3, 8, 16, 5])
def test_a_side_that_does_not_divide_the_images(side: int):
    with pytest.raises(ValueError, match=rf"condition.low.side is {side}, expected a proper divisor .* 8×8"):
        columns_of({"low": {"side": side}}, DATA)


@pytest.mark.parametrize("data", [{"kind": "points", "shape": (2,)}, {"kind": "images"}, {"shape": 3}])
def test_data_that_are_no_images(data: dict):
    with pytest.raises(ValueError, match=r"condition\.low is for images"):
        columns_of({"low": {"side": 4}}, data)


def test_noise_has_two_columns_more():
    assert columns_of(NOISY, DATA) == (LowColumn((4, 4, 1), (8, 8)), LowNoiseColumn(0.5), LowGaussColumn((4, 4, 1)))


def test_the_amount_of_noise_that_a_user_asks_for():
    column = LowNoiseColumn(0.5)
    assert column.draw(3, seed=1).tolist() == [0, 0, 0]
    assert column.read(0.25, 2).tolist() == [0.25, 0.25]
    assert column.read([0, 0.5], 3).tolist() == [0, 0.5, 0]
    for asked in (0.6, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"low_noise must be in 0..0.5"):
            column.read(asked, 1)
    for asked in ("much", [], [[0.1]], None, True):
        with pytest.raises(ValueError, match="low_noise: expected a number"):
            column.read(asked, 1)


def test_the_noise_of_an_image_does_not_depend_on_its_batch():
    column = LowGaussColumn((4, 4, 1))
    whole = column.draw(5, seed=7)
    np.testing.assert_array_equal(np.concatenate([column.draw(2, seed=7), column.draw(3, seed=7, first=2)]), whole)
    assert (whole.dtype, whole.shape) == (np.float32, (5, 4, 4, 1))
    np.testing.assert_array_equal(column.read(whole[0], 2), whole[[0, 0]])
    with pytest.raises(ValueError, match="low_gauss: expected real numbers of 4×4×1"):
        column.read(np.zeros((4, 4)), 1)


def test_uniform_numbers_become_normal_ones():
    """Within 5 standard deviations, and finite at both ends."""
    column, count = LowGaussColumn((100, 100, 1)), 10_000 * 4
    uniform = torch.rand(4, 10_000, generator=torch.Generator().manual_seed(0))
    found = column.derive(torch.empty(0), uniform).double()
    assert found.shape == (4, 100, 100, 1)
    assert abs(found.mean()) < 5 / count**0.5
    assert abs(found.var() - 1) < 5 * (2 / count) ** 0.5
    assert abs((found.abs() < 1).double().mean() - 0.6827) < 5 * (0.6827 * 0.3173 / count) ** 0.5
    ends = torch.tensor([[0.0, 1 - 2**-24]])
    assert LowGaussColumn((2, 1, 1)).derive(torch.empty(0), ends).isfinite().all()


# --- the condition


def test_the_maps_are_the_low_image_in_the_size_of_x():
    """A ramp stays a ramp but for the edges; C maps."""
    network = upsampler({"low": {"side": 4}}, {"shape": (8, 8, 3)})
    ramp = np.broadcast_to(np.arange(0, 160, 40, dtype=np.uint8)[None, None, :, None], (1, 4, 4, 3)).copy()
    c = network.low({"low": torch.from_numpy(ramp)})
    assert c.maps.shape == (1, 3, 8, 8)
    assert c.vector is None
    inner = (c.maps[0, 0, 0, 1:-1] + 1) * 127.5
    torch.testing.assert_close(inner, torch.arange(10.0, 120, 20), rtol=0, atol=1e-3)


def test_the_low_image_reaches_the_output():
    network = awake(upsampler({"low": {"side": 4}}), std=0.3)
    x, t = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1), torch.tensor([9, 9])
    with torch.no_grad():
        out = network(x, t, {"low": torch.from_numpy(pictures(2, 4, 4, 1))})
    assert not torch.allclose(out[0], out[1])


def test_no_noise_is_the_low_image_itself_and_what_is_added_keeps_the_variance():
    network = upsampler(NOISY)
    low = torch.from_numpy(pictures(1, 4, 4, 1)).expand(2000, -1, -1, -1)
    gauss = torch.from_numpy(LowGaussColumn((4, 4, 1)).draw(2000, seed=0))
    plain = upsampler({"low": {"side": 4}}).low({"low": low})
    with torch.no_grad():
        clean = network.low({"low": low, "low_noise": torch.zeros(2000), "low_gauss": gauss})
        noisy = network.low({"low": low, "low_noise": torch.full((2000,), 0.6), "low_gauss": gauss})
    assert torch.equal(clean.maps, plain.maps)
    torch.testing.assert_close(noisy.maps.mean(0), 0.8 * plain.maps[0], rtol=0, atol=5 * 0.6 / 2000**0.5)
    corner = noisy.maps[:, 0, 0, 0]  # one low pixel alone
    assert corner.std().item() == pytest.approx(0.6, rel=5 / 4000**0.5)
    assert (clean.vector == 0).all(), "it begins as if nothing were told"
    awake(network, std=0.3)
    with torch.no_grad():
        two = network.low({"low": low[:2], "low_noise": torch.tensor([0.1, 0.4]), "low_gauss": gauss[:2]})
    assert not torch.allclose(two.vector[0], two.vector[1]), "the network knows how much"


def test_gradients_reach_every_weight():
    network = awake(upsampler(NOISY), std=0.3).train()
    given = {column.name: torch.from_numpy(column.read(value, 2)) for column, value in zip(
        network.columns, (pictures(2, 4, 4, 1), [0.1, 0.4], np.ones((4, 4, 1), np.float32)), strict=True
    )}  # fmt: skip
    network(torch.randn(2, 1, 8, 8), torch.tensor([3, 40]), given).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_published_upsamplers_have_their_sizes():
    """GLIDE's from 64 to 256, from a caption; and ADM's, of 1,000 classes."""
    options = {"width": 192, "multipliers": (1, 1, 2, 2, 4, 4), "blocks": 2, "attention_resolutions": (32, 16, 8)}
    options |= {"kind": "unet", "scale_shift": True, "resample": "residual"}
    (low,) = columns_of({"low": {"side": 64}}, {"shape": (256, 256, 3)})
    sizes = {}
    for name, other, heads in (
        ("glide", Prompt(Words(50_257), (128,)), {"head_channels": 64}),
        ("adm", LabelColumn(tuple(map(str, range(1000)))), {"heads": 4}),
    ):
        columns = [other, low]
        with torch.device("meta"):
            network = build(options | heads, image_size=256, channels=3, out_channels=6, ports=ports_for(columns, {}))
            sizes[name] = parameters(ConditionalNetwork(network, columns, {}))
    assert sizes == {"glide": 398_361_286, "adm": 311_795_910}


# --- training


class Recording(ConditionalNetwork):
    """It keeps its condition."""

    def forward(self, x, t, given=None):
        self.told = [*getattr(self, "told", []), {name: value.clone() for name, value in given.items()}]
        return super().forward(x, t, given)


def recorded(**options) -> dict[str, torch.Tensor]:
    """What a network with a noisy low image and a label gets in three steps of ten images."""
    torch.manual_seed(0)
    condition = {**NOISY, "label": {"drop": 0.5}}
    columns = columns_of(condition, {**DATA, "classes": ("a", "b")})
    network = build(UNET, image_size=8, channels=1, ports=ports_for(columns, condition))
    network, process = Recording(network, columns, condition), GaussianProcess(SCHEDULE)
    train_with(
        network,
        process,
        InMemoryImages(pictures(20, 8, 8, 1)),
        task=Denoise(process, columns=columns, drop={"label": 0.5}),
        columns={"label": np.zeros(20, np.int64)},
        **{"seed": 1, "steps": 3, "batch_size": 10, "warmup_steps": 0, **options},
    )
    return {name: torch.cat([told[name] for told in network.told]) for name in network.told[0]}


def test_what_is_derived_follows_from_the_seed_and_the_step():
    first, again, parts = recorded(), recorded(), recorded(micro_batch_size=3)
    assert set(first) == {"label", "low", "low_noise", "low_gauss"}
    for name, values in first.items():
        assert torch.equal(values, again[name]), name
        assert torch.equal(values, parts[name]), name
    other = recorded(seed=2)
    assert not torch.equal(first["low_gauss"], other["low_gauss"])
    assert ((first["low_noise"] >= 0) & (first["low_noise"] < 0.5)).all()
    assert first["low_noise"].unique().numel() == 30
    assert 3 < (first["label"] == 2).sum() < 27, "labels are dropped by numbers of their own"


def test_the_low_image_is_mirrored_with_the_image():
    """Each is the low image of a training image or of its mirror image, and both occur."""
    full = torch.from_numpy(pictures(20, 8, 8, 1)).permute(0, 3, 1, 2).float() / 127.5 - 1
    column = LowColumn((4, 4, 1), (8, 8))
    plain, mirrored = (
        {column.derive(image[None], torch.empty(1, 0)).numpy().tobytes() for image in images}
        for images in (full, full.flip(-1))
    )
    found = {low.numpy().tobytes() for low in recorded(horizontal_flip=True)["low"]}
    assert found <= plain | mirrored
    assert found & plain
    assert found & mirrored
    assert {low.numpy().tobytes() for low in recorded()["low"]} <= plain


def test_derived_columns_are_told_from_those_that_data_have():
    columns = columns_of({**NOISY, "label": {}}, {**DATA, "classes": ("a", "b")})
    assert [column.name for column in stored(columns)] == ["label"]
    assert derived_draws(columns) == 1 + 16
    values = derived(columns, torch.zeros(3, 1, 8, 8), torch.full((3, 17), 0.5))
    assert {name: value.shape[0] for name, value in values.items()} == {"low": 3, "low_noise": 3, "low_gauss": 3}
    torch.testing.assert_close(values["low_noise"], torch.full((3,), 0.25))


@pytest.fixture(scope="module")
def template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny project with an upsampler of digits from 4×4, that predicts x_0."""
    return trained_with(
        {"low": {"side": 4, "noise": 0.2}, "label": {"drop": 0.2}}, prepared_template, tmp_path_factory.mktemp("low")
    )


def test_a_trained_upsampler_draws_pictures_of_its_low_ones(here: Path):
    """Real images of 4×4 come back as images whose 4×4 are near them; nearer than to each other's."""
    model, data = ddpm.load("models/tiny"), PreparedData.open(Path("prepared"))
    full = data.split("validation").rows(np.arange(8))
    column = model.columns[1]
    x0 = model.codec.encode(torch.from_numpy(full))
    low = column.derive(x0, torch.empty(8, 0)).numpy()
    drawn = model.sample(8, seed=0, low=low, label=0, guidance_scale=1.0, sampler="ddim", steps=10)
    again = column.derive(model.codec.encode(torch.from_numpy(drawn)), torch.empty(8, 0)).numpy()
    distance = np.abs(again[:, None].astype(float) - low[None]).mean((2, 3, 4))
    assert (distance.argmin(1) == np.arange(8)).mean() > 0.8
    parts = model.sample(8, seed=0, low=low, label=0, sampler="ddim", steps=10, batch_size=3, low_noise=0.1)
    whole = model.sample(8, seed=0, low=low, label=0, sampler="ddim", steps=10, low_noise=0.1)
    assert np.abs(parts.astype(int) - whole).max() <= 1
    assert np.abs(whole.astype(int) - drawn).max() > 1, "noise on the low image"


def test_guidance_leaves_the_low_image_on_both_sides(here: Path):
    model, low = ddpm.load("models/tiny"), pictures(2, 4, 4, 1)
    network = model.network
    given = {name: torch.from_numpy(values) for name, values in model.given(2, low=low, label=3).items()}
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([7, 30])
    with torch.no_grad():
        told, weak = network(x, t, given), network(x, t, given | {"label": torch.tensor([10, 10])})
        guided = model.denoiser({name: value.numpy() for name, value in given.items()}).guided(x, t, 2.0)
    torch.testing.assert_close(guided, told + 2 * (told - weak))


def test_what_a_user_of_an_upsampler_is_told(here: Path, capsys):
    model = ddpm.load("models/tiny")
    with pytest.raises(ValueError, match="low: the model needs a picture of 4×4×1, found none"):
        model.sample(2)
    assert main(["sample", "models/tiny", "--n", "2", "--out", "a.npz"]) == 2
    assert "low: the model needs a picture of 4×4×1" in capsys.readouterr().err
    assert load_params().variant("tiny").condition.low.noise == 0.2


def test_an_exported_upsampler_knows_its_columns(here: Path, tmp_path: Path):
    from ddpm.export.files import facts

    model = ddpm.load("models/tiny")
    write_json(
        tmp_path / "sampler.json", {**facts(model), "sampling": model.card.config.sampling.model_dump(mode="json")}
    )
    assert read_facts(tmp_path / "sampler.json")[2] == model.columns


def test_a_side_that_does_not_fit_the_data_is_refused_before_training(project: Path, capsys):
    params = yaml.safe_load((project / "params.yaml").read_text())
    params["models"]["tiny"] |= {"condition": {"low": {"side": 3}}}
    (project / "params.yaml").write_text(yaml.safe_dump(params))
    assert main(["train", "tiny"]) == 2
    assert "models.tiny.condition.low.side is 3, expected a proper divisor of the images' 8×8" in (
        capsys.readouterr().err
    )


def test_it_is_measured_on_the_low_images_of_the_validation_split(here: Path):
    assert main(["evaluate", "tiny"]) == 0
    metrics, protocol = (read_json(Path(f"reports/tiny/{name}.json")) for name in ("metrics", "protocol"))
    assert (protocol["lows"], protocol["labels"]) == ("validation at 4×4", "validation")
    assert metrics["fid"] > 0
    model, data = (
        ddpm.load("models/tiny").sampled_by(load_params().variant("tiny").sampling),
        PreparedData.open(Path("prepared")),
    )
    rows = np.arange(64)
    true = data.split("validation").rows(rows)
    asked = {"low": low_of(true), "label": data.split("validation").labels[rows]}
    error = (model.sample(64, seed=3, batch_size=32, **asked) - true.astype(float)) ** 2
    expected = (10 * np.log10(255**2 / error.mean((1, 2, 3)))).mean()
    assert metrics["psnr"] == pytest.approx(expected, abs=1e-6)
    plain = np.stack(
        [np.asarray(Image.fromarray(low[..., 0]).resize((8, 8), Image.Resampling.BILINEAR)) for low in low_of(true)]
    )
    error = (plain[..., None] - true.astype(float)) ** 2
    expected = (10 * np.log10(255**2 / error.mean((1, 2, 3)))).mean()
    assert metrics["psnr_bilinear"] == pytest.approx(expected, abs=0.1)


def low_of(images: np.ndarray) -> np.ndarray:
    (column,) = columns_of({"low": {"side": 4}}, DATA)
    x0 = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return column.derive(x0, torch.empty(len(images), 0)).numpy()
