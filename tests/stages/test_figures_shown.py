"""What `ddpm fit-extractor` and `ddpm evaluate` say at their end."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny import TINY_PARAMS

from ddpm.cli import main
from ddpm.config.params import Params
from ddpm.errors import DdpmWarning
from ddpm.figures.figure import FIGURES, Reading
from ddpm.stages.extractor import fit_extractor


def fit(**extractor: object) -> None:
    fit_extractor(Params.model_validate({**TINY_PARAMS, "extractor": {"steps": 40, **extractor}}))


def test_an_extractor_that_learned_says_its_accuracy_and_its_time(project: Path, capsys):
    with warnings.catch_warnings(action="error", category=DdpmWarning):
        fit()
    assert re.search(
        r"classifier extractor: [\d.]+% of the validation images right, fitted in \d+ s", capsys.readouterr().out
    )


@pytest.mark.parametrize("kind", ["classifier", "rotation"])
def test_an_extractor_at_chance_level_is_warned_of(project: Path, kind: str):
    """Labels at random, and images that are the same in each rotation, cannot be told apart."""
    labels, images = (np.load(f"prepared/{name}.npy") for name in ("labels", "images"))
    np.save("prepared/labels.npy", np.random.default_rng(0).permutation(labels))
    images[:] = images[:, :1, :1]
    np.save("prepared/images.npy", images)
    guesses = {"classifier": "1[0-3]", "rotation": "25"}[kind]
    words = rf"the {kind} extractor tells .* right, and guesses {guesses}\.\d%: .* Raise extractor.steps, now 5"
    with pytest.warns(DdpmWarning, match=words):
        fit(kind=kind, steps=5)


def test_an_evaluation_ends_with_its_figures(trained: Path, capsys):
    """In the words of the table at the end of a flow."""
    assert main(["evaluate", "tiny"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()[-8:]
    metrics, protocol = (json.loads(Path(f"reports/tiny/{name}.json").read_text()) for name in ("metrics", "protocol"))
    assert first == f"reports/tiny, protocol {protocol['id']}:"
    told = dict(re.split(r"  +", line.strip(), maxsplit=1) for line in lines)
    assert told["samples"].startswith("64 generated; ")
    assert told["FID (small CNN)"] == str(Reading.of(metrics, "fid"))
    assert told[FIGURES["nll_validation"].name] == str(Reading.of(metrics, "nll_validation"))
    assert "; real data: " in told["FID (small CNN), same count"]
