"""What would stop an evaluation or an export is said before the training."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY_PARAMS, write_params

from ddpm import cli


def with_keys(**changes: object) -> dict:
    """The tiny parameters with some keys, given by their dotted names, changed."""
    params = copy.deepcopy(TINY_PARAMS)
    for name, value in changes.items():
        *sections, key = name.split("__")
        section = params
        for part in sections:
            section = section.setdefault(part, {})
        section[key] = value
    return params


STEPS = (
    "evaluation.sampling does not fit models.tiny.process: steps must be in 1..50, the process's timesteps; found 51"
)
VARIANCE = "evaluation.sampling does not fit models.tiny.process: variance is learned_range, but"


@pytest.mark.parametrize(
    ("command", "changes", "words"),
    [
        ("train tiny", {"evaluation__sampling": {"steps": 51}}, STEPS),
        ("prepare", {"evaluation__sampling": {"steps": 51}}, STEPS),
        ("train tiny --dry-run", {"evaluation__sampling": {"steps": 51}}, STEPS),
        ("train tiny", {"evaluation__sampling": {"sampler": "ancestral", "variance": "learned_range"}}, VARIANCE),
        ("train tiny", {"evaluation__samples": 1}, "`evaluation.samples`: input should be greater than or equal to 4"),
        ("train tiny", {"extractor__kind": "inception"}, "needs colour images; the data is grey: use `classifier`"),
        (
            "fit-extractor",
            {"models__tiny__network": {"attention_resolutions": [16]}},
            "names [16], but the levels are 8",
        ),
        ("fit-extractor", {"models__tiny__network": {"width": 9, "groups": 3}}, "width must be even, found 9"),
    ],
)
def test_what_no_evaluation_could_use_is_refused(project: Path, capsys, command: str, changes: dict, words: str):
    before = (project / "prepared/manifest.json").stat().st_mtime_ns
    write_params(project, with_keys(**changes))
    assert cli.main(command.split()) == 2
    assert words in capsys.readouterr().err
    assert not (project / "models").exists()
    assert (project / "prepared/manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("fraction", "advice"),
    [
        (0.2, "add images, or raise data.validation_fraction"),
        (None, "or set data.validation_fraction to a share such as"),
    ],
    ids=["a share", "published"],
)
def test_a_data_set_too_small_to_be_measured_is_not_trained_on(
    project: Path, capsys, monkeypatch, fraction: float | None, advice: str
):
    manifest = json.loads((project / "prepared/manifest.json").read_text())
    monkeypatch.chdir(project)
    np.save("prepared/validation.npy", np.load("prepared/validation.npy")[:3])
    manifest["splits"]["validation"]["count"] = 3
    manifest["rules"]["validation_fraction"] = fraction
    (project / "prepared/manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["train", "tiny"]) == 2
    told = capsys.readouterr().err
    assert "validation images is 3, but precision and recall need at least 4" in told
    assert advice in told
    assert not (project / "models").exists()
