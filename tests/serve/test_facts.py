"""sampler.json that is whole JSON, but not what an export writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm.deploy.runtime import Sampler
from ddpm.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**4), 10**4) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
)


@pytest.fixture(scope="module")
def model(deploy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deploy directory to be spoilt."""
    model = tmp_path_factory.mktemp("facts") / "model"
    shutil.copytree(deploy, model)
    return model


def facts(**changes: Any) -> dict[str, Any]:
    """Whole ones, of points with classes, which have the most keys; `process__timesteps` is a key within a key."""
    whole: dict[str, Any] = {
        "format": 2,
        "name": "ddpm-points",
        "shape": [2],
        "data": {
            "kind": "points",
            "low": [0.0, 0.0],
            "high": [1.0, 2.0],
            "classes": ["in", "out"],
            "class_counts": [3, 1],
        },
        "condition": {"label": {"drop": 0.1}},
        "process": {"timesteps": 20, "schedule": "linear", "prediction": "epsilon", "variance": "fixed_small"},
        "sampling": {"sampler": "ddim", "steps": 5, "eta": 0.0, "spacing": "trailing", "clip": True},
        "activation_bytes": 64,
    }
    for path, value in changes.items():
        outer, _, inner = path.partition("__")
        if inner:
            whole[outer] = {**whole[outer], inner: value}
        else:
            whole[outer] = value
    return whole


def guide(**changes: Any) -> dict[str, Any]:
    """A whole description of the classifier that guides the points."""
    whole = {"kind": "classifier", "variant": "classifier", "mark": "classifier g", "training": {"fingerprint": "g"}}
    return {**whole, "condition": {"label": {"drop": 0}}, "data": {"classes": ["in", "out"]}, **changes}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], r"damaged: expected an object, found \[\]"),
        (None, "damaged: expected an object, found None"),
        ({}, "the key `shape` is missing"),
        ({**facts(), "process": {}}, "the key `process.schedule` is missing"),
        (facts(shape=None), "`shape`: expected a list, found None"),
        (facts(shape=[True]), r"`shape`: expected positive numbers, found \[True\]"),
        (facts(process__timesteps=True), "`process.timesteps`: expected a whole number, found True"),
        (facts(shape=[-2]), r"`shape`: expected positive numbers, found \[-2\]"),
        (facts(process=[]), r"`process`: expected an object, found \[\]"),
        (facts(process__schedule="none"), "no schedule 'none'; there are: "),
        (facts(process__timesteps=2.5), "`process.timesteps`: expected a whole number, found 2.5"),
        (facts(sampling__steps=21), r"steps must be in 1\.\.20"),
        (facts(sampling__corrector=3), "corrector"),
        (facts(activation_bytes=0), "`activation_bytes`: expected a positive number, found 0"),
        (facts(data__kind="videos"), "`data.kind`: expected one of images, points, sequences, found 'videos'"),
        (facts(data__low=None), "points need `low` and `high`"),
        (facts(format=3), "its format is 3, and this version of ddpm knows 1 and 2"),
        (facts(condition=[]), r"`condition`: expected an object, found \[\]"),
        (facts(condition__colour={}), "`condition`: no column 'colour'; there are: label"),
        (facts(condition__label=True), "`condition.label`: expected an object, found True"),
        (
            facts(condition={"label": {"drop": True}}),
            r"`condition.label.drop`: expected a number in 0\.\.1, found True",
        ),
        (facts(condition={"label": {"drop": float("nan")}}), r"`condition.label.drop`: .*found nan"),
        (facts(data__classes=None), "`data.classes`: expected names, found None"),
        (facts(data__classes=[]), r"`data.classes`: expected names, found \[\]"),
        (facts(data__classes="ab"), "`data.classes`: expected names, found 'ab'"),
        (facts(data__classes=[1, 2]), r"`data.classes`: expected names, found \[1, 2\]"),
        (facts(data__class_counts={}), "`data.class_counts`: expected how many there are of each class, found {}"),
        (facts(data__class_counts=[1]), r"`data.class_counts`: .*found \[1\]"),
        (facts(data__class_counts=[1, True]), r"`data.class_counts`: .*found \[1, True\]"),
        (facts(data__class_counts=[2, -1]), r"`data.class_counts`: .*found \[2, -1\]"),
        (facts(data__class_counts=[0, 0]), r"`data.class_counts`: .*found \[0, 0\]"),
        (facts(sampling__guidance_scale="2"), "`sampling.guidance_scale`: expected a number, found '2'"),
        (facts(sampling__guidance_scale=-1), r"guidance_scale must be in 0\.\.1000, found -1"),
        (facts(sampling__guidance_interval=[1]), r"`sampling.guidance_interval`: expected two numbers, found \[1\]"),
        (facts(sampling__guidance_interval=[1, 0]), "guidance_interval must be two shares"),
        (
            facts(sampling__guidance_scale=2.0, condition={"label": {"drop": 0}}),
            "`sampling.guidance_scale` must be 1: the model cannot be guided",
        ),
        (facts(sampling__guidance_scale=2.0, condition={}), "`sampling.guidance_scale` must be 1"),
        (facts(guide=[]), r"`guide`: expected an object, found \[\]"),
        (facts(guide={}), "`guide.kind`: expected classifier or clip or model, found None"),
        (facts(guide=guide(kind=["model"])), r"`guide.kind`: expected classifier or clip or model, found \['model'\]"),
        (facts(guide=guide(data=1)), "`guide.data`: expected an object, found 1"),
        (facts(guide=guide(training=None)), "`guide.training`: expected an object, found None"),
        (facts(guide=guide(variant=3)), "`guide.variant`: expected a string, found 3"),
        (facts(guide=guide(mark=3)), "`guide.mark`: expected a string, found 3"),
        (facts(guide=guide(condition=3)), "`guide`: `condition`: expected an object, found 3"),
        (facts(guide=guide(data={})), "`guide`: `data.classes`: expected names, found None"),
        (facts(guide=guide(condition={})), "`guide.condition`: expected the label of a classifier"),
        (
            facts(guide=guide(data={"classes": ["a"]})),
            "`guide.condition`: expected the columns of the model, with its classes",
        ),
        (facts(guide=guide(kind="clip")), "`guide.condition`: expected the prompt of a clip"),
        (
            facts(guide=guide(kind="clip", condition={"prompt": {}})),
            "`guide`: condition.prompt needs data with captions",
        ),
        (facts(guide=guide(kind="model", condition={})), "`guide.condition`: expected the columns of the"),
        (facts(guide=guide(kind="model"), condition={}), "`guide.condition`: expected the columns of the"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_with_it_is_said_in_a_line(model: Path, content: Any, words: str):
    (model / "sampler.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words) as refused:
        Sampler(model)
    assert str(refused.value).startswith(f"{model / 'sampler.json'}: ")
    assert "\n" not in str(refused.value)


KEYS = [
    *facts(),
    *(f"{outer}__{inner}" for outer in ("data", "condition", "process", "sampling") for inner in facts()[outer]),
]

GUIDANCE = ("sampling__guidance_scale", "sampling__guidance_interval")
GUIDE = [f"guide__{name}" for name in guide()]


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from([*KEYS, "training", "sampling__dynamic_threshold", *GUIDANCE, *GUIDE]), value=VALUES)
def test_whatever_stands_under_a_key_it_is_refused_or_a_plan_can_be_made_of_it(model, key, value):
    content = facts(guide=guide(), **{key: value}) if key in GUIDE else facts(**{key: value})
    (model / "sampler.json").write_text(json.dumps(content))
    try:
        sampler = Sampler(model, providers=["CPUExecutionProvider"])
    except UserError:
        return
    assert len(sampler.plan()) == sampler.facts["sampling"]["steps"]
    assert all(len(values) == 3 for values in sampler.given(3).values())
    assert sampler.codec.decode(np.zeros((1, *sampler.codec.network_shape), np.float32)).shape == (
        1,
        *sampler.codec.shape,
    )
