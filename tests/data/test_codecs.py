"""Points and sequences: their kind, their store, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ddpm.codecs.scale import PixelCodec, ValueCodec, codec_for, smaller
from ddpm.conditioning.pictures import LowColumn
from ddpm.config.params import Params
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.files import read_json
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare

finite = st.floats(-1e6, 1e6, width=32)


@given(arrays.arrays(np.float32, (5, 3, 4), elements=finite))
@settings(max_examples=50, deadline=None)
def test_values_come_back_from_the_networks_units(values):
    low, high = values.min((0, 2)).tolist(), values.max((0, 2)).tolist()
    kind = codec_for("sequences", values.shape[1:], low, high)
    encoded = kind.encode(torch.from_numpy(values)).numpy()
    assert encoded.dtype == np.float32
    assert np.abs(encoded).max() <= 1 + 1e-6
    half = np.maximum(np.subtract(high, low), 1e-3) / 2
    assert (np.abs(kind.decode(encoded) - values).max((0, 2)) <= 1e-6 * (half + np.abs(values).max())).all()


def test_each_channel_fills_its_range():
    kind = ValueCodec("points", (2,), (0.0, -10.0), (4.0, 10.0))
    ends = torch.tensor([[0.0, -10.0], [4.0, 10.0], [2.0, 0.0]])
    torch.testing.assert_close(kind.encode(ends), torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]))


def test_images_are_encoded_and_decoded_as_ever():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8))
    kind = PixelCodec((4, 4, 3))
    assert kind.network_shape == (3, 4, 4)
    encoded = kind.encode(pixels)
    np.testing.assert_allclose(encoded, np.moveaxis(pixels.numpy() / 127.5 - 1, 3, 1), atol=1e-6)
    assert encoded.is_contiguous(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 4, 4).numpy()
    expected = np.moveaxis(np.clip(127.5 * (x.astype(np.float64) + 1), 0, 255), 1, 3)
    np.testing.assert_allclose(kind.decode(x), expected, atol=0.5 + 1e-4)


@pytest.mark.parametrize("channels", [1, 3])
def test_decoded_images_are_laid_out_as_stored_ones(channels):
    """Else an extractor's features of them differ in the last digits."""
    shape = (4, 4, channels)
    decoded = PixelCodec(shape).decode(np.zeros((2, channels, 4, 4), np.float32))
    assert decoded.strides == np.zeros((2, *shape), np.uint8).strides


def test_every_level_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)
    kind = PixelCodec((16, 16, 1))
    np.testing.assert_array_equal(kind.decode(kind.encode(levels).numpy()), levels)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3]), st.sampled_from([2, 3, 4]), st.integers(1, 4))
@settings(max_examples=30, deadline=None)
def test_fewer_pixels_are_the_low_image_of_an_upsampler(seed, channels, factor, side):
    """Of one piece of code: what a base draws is of the kind that an upsampler was trained on."""
    full = PixelCodec((factor * side, factor * side, channels))
    stored = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (2, *full.shape), np.uint8))
    codec = smaller(full, side)
    assert (codec.shape, codec.network_shape) == ((side, side, channels), (channels, side, side))
    encoded = codec.encode(stored)
    assert encoded.is_contiguous(memory_format=torch.channels_last)
    low = LowColumn(codec.shape, full.shape[:2]).derive(full.encode(stored), torch.empty(2, 0)).numpy()
    np.testing.assert_array_equal(codec.decode(encoded.numpy()), low)
    np.testing.assert_array_equal(encoded, PixelCodec(codec.shape).encode(torch.from_numpy(low)))
    means = stored.numpy().reshape(2, side, factor, side, factor, channels).astype(float).mean((2, 4))
    assert np.abs(low - means).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("side", [3, 8, 16])
def test_a_side_that_does_not_divide_the_prepared_images(side):
    with pytest.raises(ValueError, match=rf"codec.side is {side}, expected a proper divisor of the images' 8×8"):
        smaller(PixelCodec((8, 8, 1)), side)
    with pytest.raises(ValueError, match=r"codec.side is for images; the prepared data are points"):
        smaller(ValueCodec("points", (2,), (0.0, 0.0), (1.0, 1.0)), side)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("points", (2, 3), (0.0,), (1.0,)), r"points have 1 axes, found the shape \[2, 3\]"),
        (("images", (4, 4)), "images have 3 axes"),
        (("sequences", (2, 8)), "need `low` and `high` of each of their 2 channels"),
        (("points", (2,), (0.0,), (1.0,)), "need `low` and `high`"),
    ],
)
def test_kinds_that_do_not_fit_their_shape(arguments, words):
    with pytest.raises(ValueError, match=words):
        codec_for(*arguments)


def params(**data) -> Params:
    return Params.model_validate({"data": data, "models": {"ddpm": {}}})


def prepared(root: Path, **data) -> PreparedData:
    fetch(params(**data), root=root)
    prepare(params(**data), root=root)
    return PreparedData.open(root / "prepared")


def test_the_swiss_roll_is_made_the_same_twice_and_stored(tmp_path):
    stores = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        stores.append(prepared(tmp_path / name, source="swiss-roll"))
    for file in ("points.npy", "train.npy", "manifest.json"):
        a, b = ((tmp_path / name / "prepared" / file).read_bytes() for name in ("a", "b"))
        assert a == b
    train = stores[0].split("train")
    points = train.rows(np.arange(len(train)))
    assert (points.shape, points.dtype) == ((8000, 2), np.float32)
    manifest = stores[0].manifest
    np.testing.assert_allclose(manifest.mean, points.mean(0), rtol=1e-5)
    np.testing.assert_allclose(manifest.std, points.std(0), rtol=1e-5)
    encoded = stores[0].codec.encode(torch.from_numpy(points))
    torch.testing.assert_close(encoded.amin(0), -torch.ones(2))
    torch.testing.assert_close(encoded.amax(0), torch.ones(2))


def test_sequences_of_a_users_own(tmp_path):
    sequences = np.random.default_rng(0).normal(size=(10, 2, 8)) * [[1], [100]]
    np.save(tmp_path / "My waves.npy", sequences)
    data = prepared(tmp_path, source="sequences", path="My waves.npy")
    assert (data.manifest.name, data.codec.network_shape) == ("my-waves", (2, 8))
    both = [data.split(name) for name in ("train", "validation")]
    rows = np.concatenate([np.load(tmp_path / "prepared" / f"{name}.npy") for name in ("train", "validation")])
    stored = np.concatenate([split.rows(np.arange(len(split))) for split in both])
    np.testing.assert_array_equal(stored, sequences[rows].astype(np.float32))


def test_a_changed_file_of_sequences_is_noticed(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 8)))
    fetch(params(source="sequences", path="x.npy"), root=tmp_path)
    np.save(tmp_path / "x.npy", np.ones((4, 1, 8)))
    with pytest.raises(UserError, match=r"x\.npy has changed.*--accept"):
        fetch(params(source="sequences", path="x.npy"), root=tmp_path)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((4, 8)), r"expected the shape \[N, C, L\], found \[4, 8\]"),
        (np.zeros((1, 1, 8)), "1 rows; a training and a validation split need two"),
        (np.zeros((4, 0, 8)), r"found \[4, 0, 8\]"),
        (np.zeros((4, 1, 8), complex), "expected real numbers, found complex128"),
        (np.array([{"a": 1}], dtype=object), "not an .npy file of numbers"),
        (np.full((4, 1, 8), np.nan), "row 0 of the sequences holds NaN"),
        (np.full((4, 1, 8), 1e300), "row 0 of the sequences holds NaN, or numbers beyond float32's"),
    ],
)
def test_arrays_that_hold_no_sequences(tmp_path, array, words):
    np.save(tmp_path / "x.npy", array)
    with pytest.raises(UserError, match=words):
        prepared(tmp_path, source="sequences", path="x.npy")
    assert not (tmp_path / "prepared").exists()


def test_files_that_hold_no_sequences(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"text")
    np.savez(tmp_path / "y.npz", a=np.zeros(3))
    for name, words in [("x.npy", "not an .npy file"), ("y.npz", "found an archive"), ("z.npy", "no such file")]:
        with pytest.raises(UserError, match=words):
            prepared(tmp_path, source="sequences", path=name)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"source": "sequences"}, "`path` goes with"),
        ({"source": "swiss-roll", "path": "x"}, "`path` goes with"),
        ({"source": "swiss-roll", "image_size": 8}, "`image_size` is for images"),
        ({"source": "sequences", "path": "x.npy", "channels": 1}, "`channels` is for images"),
    ],
)
def test_options_that_do_not_fit_the_source(data, words):
    with pytest.raises(ValueError, match=words):
        params(**data)


def test_a_manifest_of_images_has_no_word_of_kinds(tmp_path):
    prepared(tmp_path, source="digits")
    assert not {"kind", "low", "high"} & read_json(tmp_path / "prepared" / "manifest.json").keys()


def test_a_damaged_manifest_is_named(tmp_path):
    prepared(tmp_path, source="swiss-roll")
    manifest = tmp_path / "prepared" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"low"', '"lower"'))
    with pytest.raises(UserError, match=r"manifest.json: damaged .*lower"):
        PreparedData.open(tmp_path / "prepared")
