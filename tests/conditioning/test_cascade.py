"""Cascades: two models that draw as one."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY_PARAMS, cascade_params, write_params
from unclips import unclip_params

import ddpm
from ddpm.cli.main import main
from ddpm.codecs.scale import PixelCodec, ValueCodec
from ddpm.conditioning.columns import LabelColumn, columns_of
from ddpm.config.params import Params, load_params
from ddpm.config.sampling import SamplingConfig
from ddpm.deploy.integrity import Fingerprint, find_fault
from ddpm.diffusion.noise import ImageNoise
from ddpm.drawer import Drawer
from ddpm.drawer.cascade import Cascade, CascadeFacts, Link, link_seed
from ddpm.drawer.parts import Part
from ddpm.errors import DdpmWarning, NotFiniteError, UserError
from ddpm.evaluation.likelihood import gigaflops_per_image
from ddpm.figures.protocol import EvaluationProtocol, other_links
from ddpm.files import read_json
from ddpm.layout import CASCADE
from ddpm.serve.batching import Job, Share, draw
from ddpm.serve.models import load_model
from ddpm.stages.compare import compare
from ddpm.stages.tune_guidance import tune_guidance


@pytest.fixture(scope="module")
def composed_template(prepared_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both links trained for some steps, and composed."""
    directory = tmp_path_factory.mktemp("cascade") / "project"
    shutil.copytree(prepared_template, directory)
    write_params(directory, cascade_params())
    with contextlib.chdir(directory):
        for command in (["train", "small"], ["train", "large"], ["compose", "glide"]):
            assert main(command) == 0
    return directory


@pytest.fixture
def composed(composed_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(composed_template)
    return composed_template


# --- drawing


@pytest.mark.parametrize("asked", [{}, {"label": 3}, {"label": [1, 2, 8], "guidance_scale": 2.0, "steps": 3}])
def test_an_image_of_a_seed_does_not_depend_on_the_batch(composed: Path, asked: dict):
    cascade = ddpm.load("models/glide")
    one, several = (cascade.sample(7, seed=4, batch_size=size, **asked).astype(int) for size in (7, 3))
    assert one.shape == (7, 8, 8, 1)
    assert np.abs(one - several).max() <= 1
    assert np.abs(one - cascade.sample(7, seed=5, **asked)).max() > 10


def test_the_base_draws_what_it_draws_alone_and_the_upsampler_makes_it_larger(composed: Path):
    """By hand: the upsampler has the base's images, the same labels, and the noise of its own seed."""
    cascade, small, large = (ddpm.load(f"models/{name}") for name in ("glide", "small", "large"))
    asked = {"seed": 11, "label": [0, 7]}
    low = small.sample(5, **asked, steps=3)
    told = {"low": low, "low_noise": 0.1, "label": [0, 7]}
    expected = large.sample(5, seed=link_seed(11, 1), **told).astype(int)
    assert np.abs(cascade.sample(5, **asked, steps=3) - expected).max() <= 1
    assert np.abs(cascade.sample(5, **asked, steps=5) - expected).max() > 10, "the steps are the base's"


def test_both_links_have_the_same_label_where_nobody_asks(composed: Path):
    cascade = ddpm.load("models/glide")
    labels = cascade.given(6, seed=2)["label"]
    named = cascade.sample(6, seed=2, label=labels).astype(int)
    assert np.abs(cascade.sample(6, seed=2) - named).max() <= 1


def test_what_a_user_is_asked_for(composed: Path):
    cascade = ddpm.load("models/glide")
    assert [column.name for column in cascade.columns] == ["label"]
    assert (cascade.guidable, cascade.codec.shape, cascade.variant) == (True, (8, 8, 1), "glide")
    assert list(cascade.links) == ["base", "upsampler"]
    with pytest.raises(ValueError, match="low: the model takes no such input; it takes: label, image, mask"):
        cascade.sample(1, low=np.zeros((4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match="steps"):
        cascade.check({"steps": 1000})


def test_a_known_part_is_known_to_both_links(composed: Path):
    cascade, small = ddpm.load("models/glide"), ddpm.load("models/small")
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    mask = np.ones((8, 8), bool)
    mask[3:, 5:] = False
    drawn = cascade.sample(4, seed=1, label=3, image=image, mask=mask)
    assert (drawn[:, mask] == image[mask]).all()
    assert (drawn[:, ~mask] != image[~mask]).any()
    told: list[dict[str, np.ndarray]] = []
    draw = type(small).draw_parts

    def watched(self, plan, parts):
        told.extend(part.given for part in parts)
        return draw(self, plan, parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(small), "draw_parts", watched)
        cascade.sample(1, label=3, image=image, mask=mask)
    assert [each["mask"].shape for each in told] == [(1, 4, 4), (1, 8, 8)]
    expected = np.ones((4, 4), bool)
    expected[1:, 2:] = False
    np.testing.assert_array_equal(told[0]["mask"][0], expected)
    squares = image.reshape(4, 2, 4, 2).mean((1, 3))
    assert np.abs(told[0]["image"][0, ..., 0] - squares).max() <= 0.5


@given(st.integers(0, 2**64 - 1), st.integers(1, 5))
@settings(deadline=None)
def test_links_share_no_noise(seed: int, link: int):
    other = link_seed(seed, link)
    assert link_seed(seed, 0) == seed
    assert 0 <= other < 2**64
    assert len({link_seed(seed, number) for number in range(6)}) == 6
    noise = [ImageNoise(each, 1, (1, 8, 8)).draw() for each in (seed, other)]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.6  # 5 / √64


def test_a_command_draws_from_it_by_its_name_and_its_directory(composed: Path, tmp_path: Path):
    for model in ("glide", "models/glide"):
        assert main(["sample", model, "--n", "3", "--label", "2", "--out", str(tmp_path / f"{len(model)}.npz")]) == 0
    drawn = [np.load(path)["images"] for path in sorted(tmp_path.glob("*.npz"))]
    np.testing.assert_array_equal(*drawn)
    assert drawn[0].shape == (3, 8, 8, 1)


def test_a_picture_says_what_drew_it(composed: Path, tmp_path: Path):
    from PIL import Image

    assert main(["sample", "glide", "--n", "2", "--out", str(tmp_path / "x.png")]) == 0
    text = Image.open(tmp_path / "x.png").text
    assert text["Model"] == "glide"
    assert ddpm.load("glide").fingerprint[:12] in text.values()


@pytest.mark.parametrize("trained", [True, False])
def test_the_known_part_of_an_image_is_kept_to_the_last_bit(exported: Path, trained: bool):
    cascade = ddpm.load("models/glide" if trained else "deploy/glide")
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[:, :5] = True
    drawn = cascade.sample(3, seed=1, label=1, image=image, mask=mask)
    np.testing.assert_array_equal(drawn[:, mask], np.broadcast_to(image[mask], (3, 40, 1)))
    # Of the base's pixels the first two columns are known; the third is half known.
    given = cascade.given(3, seed=1, label=1, image=image, mask=mask)
    told = cascade.part_of("base", cascade.part(3, seed=1, given=given), {}).given
    assert told["mask"][0].tolist() == [[True, True, False, False]] * 4
    low = cascade.links["base"].draw(3, cascade.plan(), seed=1, given=told)
    np.testing.assert_array_equal(low[:, :, :2], told["image"][:, :, :2])


# --- exported, measured, served


@pytest.fixture(scope="module")
def exported_template(composed_template: Path) -> Path:
    with contextlib.chdir(composed_template):
        assert main(["export", "glide"]) == 0
    return composed_template


@pytest.fixture
def exported(exported_template: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(exported_template)
    return exported_template


def test_the_exported_cascade_draws_what_the_trained_one_draws(exported: Path):
    trained, sampler = ddpm.load("models/glide"), ddpm.load("deploy/glide")
    for asked in ({}, {"label": [3, 4], "guidance_scale": 2.0, "steps": 4}):
        images = [each.sample(5, seed=9, **asked).astype(int) for each in (trained, sampler)]
        assert np.abs(images[0] - images[1]).max() <= 2
    assert np.abs(sampler.sample(5, seed=9, batch_size=2).astype(int) - sampler.sample(5, seed=9)).max() <= 1
    assert (sampler.fingerprint, sampler.variant) == (trained.fingerprint, trained.variant)
    assert sampler.other_plans == trained.other_plans
    parity = read_json(Path("deploy/glide/parity.json"))
    assert parity["passed"]
    assert set(parity["files"]) == {f"{link}/{name}.onnx" for link in trained.links for name in ("denoiser", "sampler")}


def test_an_export_that_draws_something_else_is_refused(
    exported: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A chain that feeds the upsampler the wrong noise, though each link is what was trained."""

    def noisier(facts: CascadeFacts) -> CascadeFacts:
        return replace(
            facts, links={**facts.links, "upsampler": replace(facts.links["upsampler"], fixed={"low_noise": 0.2})}
        )

    before = Path("deploy/glide", CASCADE).stat().st_mtime_ns
    read = CascadeFacts.read.__func__
    monkeypatch.setattr(
        CascadeFacts,
        "read",
        classmethod(lambda cls, path: noisier(read(cls, path)) if path.parent.name != "models" else read(cls, path)),
    )
    # Each link is the file that is there: it is the cascade that is exported wrongly.
    monkeypatch.setattr(
        "ddpm.stages.export.export_denoiser",
        lambda model, path: shutil.copy(Path("deploy/glide", path.parent.name, path.name), path),
    )
    assert main(["export", "glide"]) == 2
    assert "levels from those of the trained one, more than 2; nothing was exported" in capsys.readouterr().err
    assert Path("deploy/glide", CASCADE).stat().st_mtime_ns == before


def test_a_link_of_another_training_asks_to_be_composed_again(
    composed_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shutil.copytree(composed_template, tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    card = Path("models/small/model.json")
    facts = read_json(card)
    facts["training"]["fingerprint"] = "0" * 64
    card.write_text(json.dumps(facts))
    for command in ("evaluate", "export"):
        assert main([command, "glide"]) == 2
        assert "is not the model small as it is now: run `ddpm compose glide`" in capsys.readouterr().err
    with pytest.warns(
        DdpmWarning, match=r"models/glide/base is not the model small as it is now: `ddpm compose glide`"
    ):
        ddpm.load("models/glide")


def test_it_is_measured_on_what_its_base_draws(composed: Path):
    assert main(["evaluate", "glide"]) == 0
    metrics, protocol = (read_json(Path("reports/glide", f"{name}.json")) for name in ("metrics", "protocol"))
    cascade = ddpm.load("models/glide")
    assert {"fid", "inception_score", "precision", "recall", "class_accuracy", "gflops_per_image"} <= metrics.keys()
    assert not [key for key in metrics if key.startswith("nll")]
    assert metrics["model"] == cascade.fingerprint[:12]
    assert metrics["links"]["base"] == f"small {cascade.links['base'].fingerprint[:12]}"
    assert (protocol["steps"], protocol["upsampler"]["steps"], protocol["upsampler"]["low_noise"]) == (5, 4, 0.1)
    assert {path.name for path in Path("reports/glide").glob("*.png")} == {"links.png", "neighbours.png", "samples.png"}
    costs = [gigaflops_per_image(ddpm.load(f"models/{name}")) for name in ("small", "large")]
    assert metrics["gflops_per_image"] == pytest.approx(sum(costs))
    assert metrics["gflops_other_links"] == pytest.approx(costs[1])


def test_a_comparison_counts_the_evaluations_of_all_links(composed: Path, tmp_path: Path):
    found = compare(load_params(), ["glide"], tmp_path / "out", steps=[2, 5], samples=8)
    assert [evaluations for evaluations, _ in found.over_steps[0]] == [2 + 4, 5 + 4]


def test_the_guidance_of_its_first_link_is_searched(composed: Path, capsys: pytest.CaptureFixture[str]):
    command = ["tune-guidance", "glide", "--scales", "1,3", "--intervals", "0,1", "--samples", "8"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("glide: 2 settings searched by FID") for line in lines)
    assert lines[-3] == "under models.small.sampling in params.yaml:"
    tuned = tune_guidance(load_params(), "glide", scales=[3], intervals=[None], samples=8)
    protocol = tuned.measured[0].protocol
    assert (protocol.guidance_scale, protocol.other_plans["upsampler"]["steps"], protocol.steps) == (3.0, 4, 5)


def test_requests_that_share_a_batch_get_what_each_would_get_alone(exported: Path):
    served = load_model("deploy/glide")
    plan, choice = served.plan(served.choice()), served.choice()
    asked = [(3, 5, {"label": 2}), (4, 2, {"label": "7"}), (5, 1, {})]
    jobs = [Job(served, choice, plan, seed, count, None, told) for seed, count, told in asked]
    parts = draw([Share(job, 0, job.count) for job in jobs])
    for (seed, count, told), part in zip(asked, parts, strict=True):
        alone = served.sampler.sample(count, seed=seed, **told).astype(int)
        assert np.abs(part.astype(int) - alone).max() <= 2
    assert served.name.startswith("glide@")
    assert served.sampler.evaluations(plan) == plan.evaluations + 4


def test_cascades_that_differ_in_the_upsamplers_plan_are_served_under_two_names(exported: Path, tmp_path: Path):
    shutil.copytree("deploy/glide", tmp_path / "glide")
    described = tmp_path / "glide/upsampler/sampler.json"
    facts = read_json(described)
    described.write_text(json.dumps({**facts, "sampling": {**facts["sampling"], "steps": 3}}))
    assert load_model(str(tmp_path / "glide")).name != load_model("deploy/glide").name


def test_a_deploy_directory_is_known_by_what_it_draws(exported: Path, tmp_path: Path):
    recorded = Fingerprint.of(Path("deploy/glide"))
    assert {"cascade.json", "base/denoiser.onnx", "upsampler/sampler.json"} <= recorded.files.keys()
    assert find_fault(Path("deploy/glide"), recorded) is None
    shutil.copytree("deploy/glide", tmp_path / "glide")
    facts = read_json(tmp_path / "glide" / CASCADE)
    facts["links"]["upsampler"]["fixed"]["low_noise"] = 0.2
    (tmp_path / "glide" / CASCADE).write_text(json.dumps(facts))
    fault = find_fault(tmp_path / "glide", recorded)
    assert "cascade.json is not the file that was registered" in fault
    assert "samples that differ" in fault


# --- what does not fit


class Still(Drawer):
    """A drawer of grey images, whatever its condition."""

    choices, guidable, plan_source = ({}, {}), False, "the test"

    def __init__(
        self, shape: tuple[int, ...], condition: dict, classes: tuple[str, ...] = ("a", "b"), fails: int | None = None
    ) -> None:
        """
        Args:
            fails: a seed of which no number is finite.
        """
        self._codec, self._fails = PixelCodec(shape), fails
        self._columns = columns_of(condition, {"shape": shape, "kind": "images", "classes": classes})

    codec = property(lambda self: self._codec)
    columns = property(lambda self: self._columns)

    def sampled_by(self, sampling):
        return self

    def draw_parts(self, plan, parts):
        return [NotFiniteError("NaN") if part.seed == self._fails else self._drawn(part) for part in parts]

    def plan(self, **overrides):
        return None

    def _drawn(self, part: Part) -> np.ndarray:
        return np.full((part.count, *self._codec.shape), 128, np.uint8)


class Wide(Still):
    """An upsampler without a network: in each square of pixels the low one, then the seed, the same, and the label."""

    choices = ({"variance": "fixed_small"}, SamplingConfig().model_dump())

    def _drawn(self, part: Part) -> np.ndarray:
        wide = part.given["low"].repeat(2, 1).repeat(2, 2)
        wide[:, 1, 1, 0], wide[:, 1, 3, 0] = part.given["label"], part.seed % 256
        return wide


LABEL, LOW = {"label": {"drop": 0}}, {"low": {"side": 4}}


@pytest.mark.parametrize(
    ("base", "upsampler", "words"),
    [
        (Still((4, 4, 1), {}), Still((8, 8, 1), {}), "the upsampler has no column low"),
        (Still((2, 2, 1), {}), Still((8, 8, 1), LOW), "draws data of 2×2×1, and the upsampler needs low of 4×4×1"),
        (Still((4, 4, 3), {}), Still((8, 8, 1), LOW), "draws data of 4×4×3"),
        (Still((4, 4, 1), {"mask": {}}), Still((8, 8, 1), LOW), "a picture that no link draws: image"),
        (Still((4, 4, 1), {"low": {"side": 2}}), Still((8, 8, 1), LOW), "a picture that no link draws: low"),
        (
            Still((4, 4, 1), LABEL),
            Still((8, 8, 1), LABEL | LOW, ("a", "c")),
            "the links were trained with different classes of the column label",
        ),
    ],
)  # fmt: skip
def test_models_that_are_no_links(base: Drawer, upsampler: Drawer, words: str):
    with pytest.raises(ValueError, match=words):
        Cascade.of(base, upsampler)


def test_noise_that_the_upsampler_does_not_know():
    base, noisy = Still((4, 4, 1), LABEL), Still((8, 8, 1), {"low": {"side": 4, "noise": 0.3}})
    assert Cascade.of(base, noisy, low_noise=0.3).wiring["upsampler"].fixed == {"low_noise": 0.3}
    for upsampler, words in ((noisy, r"in 0\.\.0\.3, found 0.4"), (Still((8, 8, 1), LOW), "0, found 0.4")):
        with pytest.raises(ValueError, match=f"low_noise must be {words}"):
            Cascade.of(base, upsampler, low_noise=0.4)
    # Only the base has the column.
    assert [type(column) for column in Cascade.of(base, noisy).columns] == [LabelColumn]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"other": Link(Still((8, 8, 1), LOW), {"low": "base"})}, "needs the base, which does not draw before it"),
        ({"base": Link(Still((4, 4, 1), {})), "other": Link(Still((8, 8, 1), LOW))}, "a picture that no link draws"),
        ({"base": Link(Still((4, 4, 1), {})), "other": Link(Still((8, 8, 1), {}), {"low": "base"})}, "no column low"),
    ],
)  # fmt: skip
def test_links_that_are_wired_wrongly(change: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Cascade(change)


def test_a_single_model_is_a_chain_of_one_link(composed: Path):
    small = ddpm.load("models/small")
    part = small.part(3, seed=1)
    assert (small.links, small.other_plans, small.part_of("", part, {})) == ({"": small}, {}, part)
    (drawn,) = small.draw_links(small.plan(), [part])
    np.testing.assert_array_equal(drawn[""], small.sample(3, seed=1))


def test_three_links_draw_in_turn(composed: Path):
    """By hand: the second upsampler enlarges what the first one has drawn, with the noise of a third seed."""
    small, large = ddpm.load("models/small"), ddpm.load("models/large")
    wide = Wide((16, 16, 1), {"low": {"side": 8}, "label": {"drop": 0}}, small.columns[0].classes)
    low = {"low": "base"}, {"low_noise": 0.1}
    cascade = Cascade({"base": Link(small), "upsampler": Link(large, *low), "last": Link(wide, {"low": "upsampler"})})
    assert [column.name for column in cascade.columns] == ["label"]
    drawn = cascade.sample(5, seed=11, label=[0, 7], steps=3)
    two = Cascade.of(small, large, low_noise=0.1).sample(5, seed=11, label=[0, 7], steps=3)
    assert np.abs(drawn[:, ::2, ::2, 0].astype(int) - two[..., 0]).max() <= 1
    assert drawn[:, 1, 1, 0].tolist() == [0, 7, 0, 7, 0]
    assert drawn[:, 1, 3, 0].tolist() == [link_seed(11, 2) % 256] * 5
    assert set(cascade.other_plans) == {"upsampler", "last"}


def test_a_part_that_fails_in_one_link_keeps_no_other_from_being_drawn():
    cascade = Cascade.of(Still((4, 4, 1), {}, fails=1), Still((8, 8, 1), LOW))
    one, failed, other = cascade.draw_parts(None, [cascade.part(2, seed=seed) for seed in (0, 1, 2)])
    assert isinstance(failed, NotFiniteError)
    assert one.shape == other.shape == (2, 8, 8, 1)
    with pytest.raises(NotFiniteError):
        cascade.draw(2, None, seed=1)


@dataclass(frozen=True)
class Hue:
    """A column of two numbers that no picture is made of, as an embedding is."""

    shape: tuple[int, ...] = (2,)
    null = None
    name, key, dtype = "hue", "hue", np.dtype(np.float32)

    def read(self, asked, count, *, first=0):
        return np.broadcast_to(np.float32(asked), (count, *self.shape))

    def draw(self, count, *, seed, first=0):
        raise ValueError("hue: nothing draws it")


class Teller(Still):
    """Draws points, whatever its condition: the seed, and how often it has drawn."""

    choices = ({"variance": "fixed_small"}, SamplingConfig(steps=7).model_dump())

    def __init__(self, condition: dict) -> None:
        super().__init__((2, 2, 1), condition)
        self._codec, self.drawn = ValueCodec("points", (2,), (0.0, 0.0), (1.0, 1.0)), 0

    def _drawn(self, part: Part) -> np.ndarray:
        self.drawn += 1
        return np.full((part.count, 2), [part.seed, self.drawn], np.float32)


class Painter(Still):
    """Draws images of its seed's and its hue's numbers."""

    choices = ({"variance": "fixed_small"}, SamplingConfig(steps=9).model_dump())

    def __init__(self, condition: dict) -> None:
        super().__init__((4, 4, 1), condition)
        self._columns = (Hue(), *self._columns)

    def _drawn(self, part: Part) -> np.ndarray:
        image = np.zeros((part.count, 4, 4, 1), np.uint8)
        image[:, 0, 0, 0], image[:, 0, 2, 0] = part.seed % 256, part.given["label"]
        image[:, 2, 0, 0], image[:, 2, 2, 0] = part.given["hue"].T
        return image


def unclip() -> Cascade:
    """What draws a point, an image of it, and a larger image of that."""
    upsampler = Link(Wide((8, 8, 1), LABEL | LOW), {"low": "decoder"})
    links = {"prior": Link(Teller(LABEL)), "decoder": Link(Painter(LABEL), {"hue": "prior"}), "upsampler": upsampler}
    return Cascade(links, leading="decoder")


def test_a_link_of_points_feeds_a_link_of_images():
    cascade = unclip()
    assert [column.name for column in cascade.columns] == ["label"]
    given = cascade.given(2, label=[0, 1])
    (drawn,) = cascade.draw_links(None, [cascade.part(2, seed=5, given=given)])
    assert drawn["prior"].tolist() == [[5, 1], [5, 1]]
    assert drawn["decoder"][:, ::2, ::2, 0].reshape(2, 4).tolist() == [
        [link_seed(5, 1) % 256, label, 5, 1] for label in (0, 1)
    ]
    assert drawn["upsampler"].shape == (2, 8, 8, 1)


def test_who_gives_what_a_link_would_draw_skips_the_link():
    """In one batch with data for which it draws; with the noise that the other links have anyway."""
    cascade = unclip()
    prior = cascade.links["prior"]
    parts = [cascade.part(2, seed=5, given=cascade.given(2, label=1, **asked)) for asked in ({"hue": [3, 4]}, {}, {})]
    told, drawn, _ = cascade.draw_links(None, parts)
    assert (list(told), list(drawn)) == (["decoder", "upsampler"], ["prior", "decoder", "upsampler"])
    assert told["decoder"][0, ::2, ::2, 0].tolist() == [[link_seed(5, 1) % 256, 1], [3, 4]]
    assert prior.drawn == 2
    cascade.draw_parts(None, parts[:1])
    assert prior.drawn == 2
    with pytest.raises(ValueError, match="low: the model takes no such input; it takes: label, image, mask"):
        cascade.given(1, low=np.zeros((4, 4, 1), np.uint8))


def test_the_leading_link_has_the_plan_that_users_choose():
    cascade = unclip()
    assert (cascade.leading, cascade.choices, set(cascade.other_plans)) == (
        "decoder",
        Painter.choices,
        {"prior", "upsampler"},
    )
    assert cascade.sampled_by({}).leading == "decoder"
    plans = cascade.plans("asked for")
    assert [name for name, plan in plans.items() if plan == "asked for"] == ["decoder"]


def test_the_plans_of_other_links_stand_in_the_protocol_under_their_names():
    """So a protocol of a base and an upsampler has the identifier it had when it had a field for that one."""
    said = {field.name: None for field in fields(EvaluationProtocol) if field.default is MISSING}
    del said["other_plans"]
    alone = EvaluationProtocol(**said)
    both = replace(alone, other_plans={"upsampler": {"steps": 4}})
    assert both.as_dict() == {**alone.as_dict(), "upsampler": {"steps": 4}}
    assert other_links(both.as_dict()) == {"upsampler"}
    assert other_links(alone.as_dict()) == set()
    assert alone.id != both.id


GLIDE, SMALL, LARGE = ("cascades", "glide"), ("models", "small"), ("models", "large")
GUIDE = {"guide": "models/x", "guidance_scale": 2.0}


@pytest.mark.parametrize(
    ("where", "change", "words"),
    [
        (GLIDE, {"base": "tiny"}, "cascades.glide.base is 'tiny', but `models` has only: large, small"),
        (GLIDE, {"base": "large"}, "cascades.glide.upsampler is 'large', which is in `cascades.glide` too"),
        (GLIDE, {"low_noise": 0.3}, "low_noise 0.3, more than condition.low.noise of large, 0.2"),
        (GLIDE, {"third": "large"}, "cascades.glide.third"),
        ((), {"variants": ["large"]}, "cascades.glide.upsampler is 'large', which is in `variants` too"),
        ((), {"guides": ["small"]}, "cascades.glide.base is 'small', which is in `guides` too"),
        ((), {"variants": ["small"]}, "`variants` names 'small', whose codec.side is 4"),
        ((), {"cascades": {}}, "`variants` is empty, and there are no `cascades`"),
        (("cascades",), {"large": {"base": "small", "upsampler": "large"}}, "large is the name of a cascade and of a"),
        (SMALL, {"codec": {}}, "codec.side null, and the upsampler large with condition.low.side 4"),
        (SMALL, {"codec": {"side": 2}}, "codec.side 2, and the upsampler large"),
        (SMALL, {"condition": {"mask": {}}}, "has small, with condition.mask"),
        (SMALL, {"sampling": GUIDE}, "whose sampling.guide must be null"),
        (LARGE, {"condition": {}}, "needs `condition: {low: {side: …}}`"),
        (LARGE, {"codec": {"side": 4}}, "whose codec.side must be null"),
        (("evaluation",), {"sampling": GUIDE}, "evaluation.sampling.guide must be null"),
    ],
)
def test_cascades_that_cannot_be(tmp_path: Path, where: tuple[str, ...], change: dict, words: str):
    params = copy.deepcopy(cascade_params())
    section = params
    for key in where:
        section = section[key]
    section.update(change)
    if "large" in params["cascades"]:
        del params["cascades"]["glide"]
    write_params(tmp_path, params)
    with pytest.raises(UserError) as error:
        load_params(tmp_path / "params.yaml")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_captions_are_read_in_the_same_way_by_both():
    params = copy.deepcopy(cascade_params())
    for name, length in (("small", 8), ("large", 16)):
        params["models"][name]["condition"]["prompt"] = {"length": length, "width": 8, "layers": 1, "heads": 1}
    with pytest.raises(ValueError, match=r"condition.prompt.length 8, and \w+ with 16: the two must be equal"):
        Params.model_validate(params)


def test_the_upsampler_of_an_unclip_reads_captions_as_its_clip_does():
    params = unclip_params()
    prompt = {"length": 5, "width": 8, "layers": 1, "heads": 1}
    params["models"]["larger"]["condition"]["prompt"] = prompt
    expected = params["models"]["clip"]["condition"]["prompt"]["length"]
    with pytest.raises(ValueError, match=rf"has clip with condition.prompt.length {expected}, and larger with 5"):
        Params.model_validate(params)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ({"variants": ["prior"]}, r"`variants` names 'prior', with codec.embedding.encoder: name it in `unclips`"),
        (
            {"variants": ["decoder"]},
            r"`variants` names 'decoder', with condition.embedding.encoder: name it in `unclips`",
        ),
        ({"guides": ["prior"]}, r"`guides` names 'prior', with codec.embedding.encoder"),
        (
            {"cascades": {"glide": {"base": "decoder", "upsampler": "larger"}}},
            r"`cascades.glide` names 'decoder', with condition.embedding.encoder",
        ),
    ],
)
def test_models_of_embeddings_are_built_where_their_clip_comes_first(places: dict, words: str):
    with pytest.raises(ValueError, match=words):
        Params.model_validate(unclip_params() | {"unclips": {}, "variants": ["larger"]} | places)


def test_embeddings_have_no_bounds_that_clip_would_hold_them_to():
    """There `clip_range` clips by itself."""
    params = unclip_params()
    for name in ("prior", "larger"):
        changed = copy.deepcopy(params)
        changed["models"][name]["sampling"] |= {"clip": False, "clip_range": 3.0}
        if name == "prior":
            Params.model_validate(changed)
        else:
            with pytest.raises(ValueError, match=r"models\.larger\.sampling\.clip_range is 3, but clip is false"):
                Params.model_validate(changed)


def test_the_models_that_the_pipeline_trains_and_builds():
    params = Params.model_validate(cascade_params())
    assert params.trained == ("small", "large")
    assert params.built == ("glide",)


def test_the_links_that_do_not_lead_are_measured_under_their_own_plans():
    common = {"evaluation": {**TINY_PARAMS["evaluation"], "sampling": {"steps": 7}}}
    for raw, leading in ((cascade_params(), "small"), (unclip_params(), "decoder")):
        params = Params.model_validate({**raw, **common})
        found = {name: params.measured_plan(name) for name in params.trained if name != "clip"}
        for name, (plan, key) in found.items():
            own = (params.models[name].sampling, f"models.{name}.sampling")
            assert (plan, key) == ((params.evaluation.sampling, "evaluation.sampling") if name == leading else own)


def test_composing_says_what_is_missing(project: Path, capsys: pytest.CaptureFixture[str]):
    write_params(project, cascade_params())
    assert main(["compose", "tiny"]) == 2
    assert (
        "there is no cascade 'tiny' among the `cascades` and `unclips` of params.yaml; there are: glide"
        in capsys.readouterr().err
    )
    assert main(["compose", "glide"]) == 2
    assert "`ddpm train small` makes models/small" in capsys.readouterr().err
    assert not Path("models/glide").exists()


# --- the directory


def test_the_directory_holds_both_models_with_their_plans(composed: Path):
    cascade = ddpm.load("models/glide")
    assert cascade.links["upsampler"].card.config.sampling.eta == 1.0
    assert cascade.links["base"].card.own_plan
    facts = json.loads(Path("models/glide", CASCADE).read_text())
    assert facts["links"]["base"]["variant"] == "small"
    assert facts["links"]["upsampler"]["fixed"] == {"low_noise": 0.1}
    for link, name in (("base", "small"), ("upsampler", "large")):
        weights = [Path("models", *place, "model.safetensors").read_bytes() for place in (("glide", link), (name,))]
        assert weights[0] == weights[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda facts: facts.update(format=9), "its format is 9, and this version of ddpm knows 1 to 3"),
        (lambda facts: facts.pop("name"), "the key 'name' is missing"),
        (lambda facts: facts["links"].pop("base"), "the upsampler needs the base, which does not draw before it"),
        (lambda facts: facts["links"]["upsampler"].update(fed={}), "the upsampler needs a picture that no link draws"),
        (lambda facts: facts.update(leading="prior"), "leading is 'prior'; expected a link: base, upsampler"),
        (lambda facts: facts.update(leading=1), "expected texts"),
        (lambda facts: facts["links"]["upsampler"].update(fed=[]), "damaged"),
        (lambda facts: facts["links"]["base"].update(variant=3), "expected texts"),
        (lambda facts: facts["links"]["base"].update(more=""), "more"),
        (lambda facts: facts.update(links=[]), "damaged"),
        (lambda facts: facts["links"]["upsampler"].update(fixed={"low_noise": "much"}), "a number `low_noise`"),
        (lambda facts: facts["links"]["upsampler"].update(fixed={"low_noise": 0.5}), "low_noise must be in 0..0.2"),
        (lambda facts: facts["links"]["base"].update(fingerprint="0"), "is of another training than"),
    ],
)
def test_a_directory_that_is_damaged(composed_template: Path, tmp_path: Path, change, words: str):
    shutil.copytree(composed_template / "models" / "glide", tmp_path / "glide")
    path = tmp_path / "glide" / CASCADE
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))
    with pytest.raises(UserError) as error:
        ddpm.load(tmp_path / "glide")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    path.write_text("{")
    with pytest.raises(UserError, match=CASCADE):
        ddpm.load(tmp_path / "glide")


def test_a_directory_of_format_1(composed_template: Path, tmp_path: Path):
    shutil.copytree(composed_template / "models" / "glide", tmp_path / "glide")
    path = tmp_path / "glide" / CASCADE
    today = CascadeFacts.read(path.parent)
    facts = json.loads(path.read_text())
    for link in facts["links"].values():
        del link["fed"], link["fixed"]
    path.write_text(json.dumps({**facts, "format": 1, "low_noise": 0.1}))
    assert CascadeFacts.read(path.parent) == today
    path.write_text(json.dumps({**facts, "format": 1}))
    with pytest.raises(UserError, match="the key 'low_noise' is missing"):
        CascadeFacts.read(path.parent)


def test_a_directory_of_format_2(composed_template: Path, tmp_path: Path):
    """In which the first link leads, as nothing says another one."""
    shutil.copytree(composed_template / "models" / "glide", tmp_path / "glide")
    path = tmp_path / "glide" / CASCADE
    today = CascadeFacts.read(path.parent)
    facts = json.loads(path.read_text())
    del facts["leading"]
    path.write_text(json.dumps({**facts, "format": 2}))
    assert CascadeFacts.read(path.parent) == today
    assert ddpm.load(tmp_path / "glide").leading == "base"


def test_a_link_that_is_missing(composed_template: Path, tmp_path: Path):
    shutil.copytree(composed_template / "models" / "glide", tmp_path / "glide")
    shutil.rmtree(tmp_path / "glide" / "upsampler")
    with pytest.raises(UserError, match="upsampler"):
        ddpm.load(tmp_path / "glide")
