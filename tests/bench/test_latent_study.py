"""The study of latent diffusion: its claims, its costs and its picture; and all of it at a scale of seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny import write_params

from bench import latent
from bench.ablation import changed
from bench.claims import Estimate
from bench.latent import LATENTS, PIXELS, Setting, latent_claims
from bench.latent_models import AUTOENCODERS, EMOJI, FASHION, autoencoder, emoji_models, fashion_models
from bench.latent_page import markdown, picture
from ddpm.config.model import VariantConfig
from ddpm.config.params import load_params
from ddpm.stages.extractor import fit_extractor
from ddpm.stages.fetch import fetch
from ddpm.stages.prepare import prepare

ROOT = Path(__file__).parents[2]


def estimate_of(value: float, spread: float = 0.01) -> Estimate:
    return Estimate(value, value + spread * np.array([-1.0, 1.0, -1.0, 1.0]))


CHEAP, DEAR = Setting(LATENTS, 2), Setting(LATENTS, 10)
FEW, MANY = Setting(PIXELS, 1), Setting(PIXELS, 4)
COSTS = {CHEAP: 1.0, DEAR: 4.0, FEW: 2.0, MANY: 8.0}


def verdicts(values: dict[Setting, float], decoded: float = 0.1) -> list[str]:
    table = {setting: estimate_of(value) for setting, value in values.items()}
    return [claim.verdict for claim in latent_claims(table, COSTS, estimate_of(decoded), table.__getitem__)]


def test_settings_of_equal_cost_are_compared_and_the_lowest_fid_with_a_fraction_of_the_cost():
    equal, fraction, floor = latent_claims(
        table := {CHEAP: estimate_of(3.0), DEAR: estimate_of(1.0), FEW: estimate_of(9.0), MANY: estimate_of(2.0)},
        COSTS,
        estimate_of(0.1),
        table.__getitem__,
    )
    assert [each.statement for each in equal.comparisons] == [f"{CHEAP} < {FEW}", f"{DEAR} < {MANY}"]
    assert equal.verdict == "holds"
    assert [each.statement for each in fraction.comparisons] == [f"{DEAR} < {MANY}, with 50% of the operations"]
    assert fraction.verdict == floor.verdict == "holds"


def test_latents_that_pixels_beat_are_said_to_be_beaten():
    assert verdicts({CHEAP: 3.0, DEAR: 2.5, FEW: 2.0, MANY: 1.0}) == ["does not hold", "does not hold", "holds"]


def test_an_autoencoder_that_makes_most_of_the_fid_is_named():
    assert verdicts({CHEAP: 3.0, DEAR: 1.0, FEW: 9.0, MANY: 2.0}, decoded=0.8)[-1] == "does not hold"


def test_an_autoencoder_of_the_study_differs_from_the_preset_in_what_is_named():
    preset = load_params(ROOT / "params.yaml").variant(EMOJI.autoencoder)
    other = autoencoder(preset, {"training": {"steps": 7}, "reconstruction": {"kl": 0.5}})
    assert other.training.steps == 7
    assert other.objective.reconstruction is not None
    assert other.objective.reconstruction.kl == 0.5
    assert other.network == preset.network


def test_each_model_of_latents_names_its_autoencoder():
    params = load_params(ROOT / "params.yaml")
    for subjects, models in ((EMOJI, emoji_models(params)), (FASHION, fashion_models(params))):
        named = models[subjects.latents].codec.latent
        assert named is not None
        assert named.name == subjects.autoencoder
        assert models[subjects.pixels].codec.latent is None


def test_the_picture_has_rows_of_one_size():
    grey, colour = np.zeros((3, 28, 28, 1), np.uint8), np.full((3, 32, 32, 3), 7, np.uint8)
    image = picture([("grey", grey), ("colour", colour)])
    assert image.mode == "RGB"
    drawn = np.asarray(image)
    assert (drawn == 7).all(-1).sum() >= colour[..., 0].size
    assert (drawn == 0).all(-1).sum() >= grey.size


def quick(models: dict[str, VariantConfig]) -> dict[str, VariantConfig]:
    """The same models, trained for some steps."""
    few = {"steps": 3, "batch_size": 8, "log_every": 1}
    return {name: changed(config, {"training": few}) for name, config in models.items()}


@pytest.mark.slow
def test_the_study_runs_to_its_page_and_trains_and_draws_nothing_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    project = tmp_path / "project"
    (project / "images").mkdir(parents=True)
    for number, image in enumerate(np.random.RandomState(0).randint(0, 256, (60, 32, 32, 3), np.uint8)):
        Image.fromarray(image).save(project / "images" / f"{number}.png")
    raw = yaml.safe_load((ROOT / "params.yaml").read_text())
    raw["data"] = {"source": "folder", "path": "images", "attribution": "CC BY-SA 4.0, somebody"}
    raw["extractor"] = {"kind": "rotation", "steps": 5}
    write_params(project, raw)
    params = load_params(project / "params.yaml")
    for stage in (fetch, prepare, fit_extractor):
        stage(params, root=project)
    one = {"f8": AUTOENCODERS["f8"]}
    monkeypatch.setattr("bench.latent_models.AUTOENCODERS", one)
    monkeypatch.setattr(latent, "AUTOENCODERS", one)
    monkeypatch.setattr(latent, "emoji_models", lambda params: quick(emoji_models(params)))

    def run() -> tuple[dict[str, Any], latent.Rows]:
        return latent.study(project, tmp_path / "none", latent.QUICK)

    results, rows = run()
    emoji, fashion = results["studies"]
    assert {row["space"] for row in emoji["settings"]} == {LATENTS, PIXELS}
    assert emoji["training"]["autoencoder"] > 0
    assert "left_out" in fashion
    page = markdown(results)
    assert all(claim["claim"] in page for rows in emoji["claims"].values() for claim in rows)
    assert "CC BY-SA 4.0" in page
    assert [images.shape[1:] for _, images in rows] == [(32, 32, 3)] * 4

    monkeypatch.setattr("bench.latent_models.train_variant", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr("ddpm.model.Model.draw", lambda *_, **__: pytest.fail("drawn again"))
    again, _ = run()
    assert again == results
