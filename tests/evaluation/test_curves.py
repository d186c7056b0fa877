"""The picture of the curves."""

from __future__ import annotations

import numpy as np
import pytest

from ddpm.evaluation.curves import curves
from ddpm.evaluation.pictures import WIDTH

LOSS = "step,loss,grad_norm,learning_rate\n5,1.5,2.0,1e-3\n10,0.5,1.0,1e-3\n"
LIKELIHOOD = "t,train,validation\n0,1.0,1.2\n1,0.1,0.2\n2,0.0,0.0\n"
NO_LIKELIHOOD = "t,train,validation\n"


@pytest.mark.parametrize(
    ("loss", "likelihood", "charts"),
    [(LOSS, LIKELIHOOD, 2), (LOSS, NO_LIKELIHOOD, 1), ("", LIKELIHOOD, 1)],
    ids=["both", "loss", "likelihood"],
)
def test_a_chart_for_each_curve_there_is(loss: str, likelihood: str, charts: int) -> None:
    picture = curves(loss, likelihood)
    assert picture is not None
    assert picture.width >= WIDTH
    assert round(picture.width / picture.height / (5.2 / 3.4)) == charts
    coloured = np.ptp(np.asarray(picture).astype(int), axis=2) > 40  # lines, and nothing else
    halves = np.array_split(coloured, charts, axis=1)
    assert all(half.sum() > 100 for half in halves)


def test_nothing_to_draw() -> None:
    assert curves("", NO_LIKELIHOOD) is None
