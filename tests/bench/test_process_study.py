"""`python -m bench.processes`: what it says of its figures."""

from pathlib import Path

import numpy as np

from bench import processes
from bench.claims import Estimate
from bench.processes import _best, markdown, models
from ddpm.config.params import load_params

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")


def figure(value, spread=0.01):
    return Estimate(value, value + spread * np.linspace(-1, 1, 20))


def test_the_four_models_have_one_network_and_one_training():
    compared = models(PARAMS, processes.WHOLE).models
    assert set(compared) == set(processes.PROCESSES)
    for section in ("network", "training", "objective"):
        assert len({repr(getattr(model, section)) for model in compared.values()}) == 1, section


def test_the_best_is_told_from_the_rest_beyond_the_noise():
    fid = {
        ("ddpm", "dpmpp_2m_sde", 10): figure(20.0),
        ("edm", "heun", 10): figure(10.0),
        ("flow", "heun", 10): figure(10.0001, spread=0.5),
        ("edm", "heun", 5): figure(1.0),
        ("ddpm", "dpmpp_2m_sde", 5): figure(2.0),
    }
    found = _best(fid, 10)
    assert (found["process"], found["sampler"]) == ("edm", "heun")
    assert found["undecided"] == [["flow", "heun"]]
    assert found["against_default"]["outcome"] == "yes"
    assert not found["below_all_other_processes"]
    assert _best(fid, 5)["undecided"] == []


def test_the_page_has_every_cell_and_what_is_missing_is_empty():
    rows = [
        {"process": p, "sampler": "euler", "steps": s, "value": 3.0, "error": 0.1}
        for p in processes.PROCESSES
        for s in (5, 50)
        if (p, s) != ("ncsn", 50)
    ]
    text = markdown(
        {
            "protocol": {
                "data": "digits",
                "extractor": {"kind": "classifier", "sha256": "f" * 64},
                "reference": {"images": 1437},
                "fid_floor": {"images": 360, "value": 17.0},
                "seed": 0,
                "samples": 500,
                "groups": 20,
                "training": {"steps": 1500, "batch_size": 64},
            },
            "fid": rows,
            "best": [
                {
                    "steps": 5,
                    "process": "edm",
                    "sampler": "euler",
                    "undecided": [["flow", "euler"]],
                    "against_default": {"outcome": "yes", "margin": 1.0, "error": 0.25},
                }
            ],
            "likelihood": [
                {"process": "edm", "ode": 2.5, "ode_error": 0.01},
                {"process": "ddpm", "ode": 2.5, "ode_error": 0.01, "bound": 2.75, "bound_error": 0.02},
            ],
        }
    )
    assert "| VE, score (NCSN) | `euler` | 3.00 ± 0.10 |  |" in text
    assert "| 5 | `edm` by `euler` | `flow` by `euler` | lower by 1.00 ± 0.25 |" in text
    assert "| EDM | 2.500 ± 0.010 | none |" in text
    assert "| VP, ε (DDPM) | 2.500 ± 0.010 | 2.750 ± 0.020 |" in text
