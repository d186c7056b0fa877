"""Which protocol registered models are ranked under, and what the printed figures and the lineage say."""

import subprocess
from pathlib import Path

import pytest

from ddpm import tracking
from ddpm.figures.comparison import Compared, Recorded, ranked
from ddpm.figures.figure import FIGURES
from ddpm.stages.compare import Opened, _under_one_protocol
from ddpm.tracking import Evaluation, Figures
from ddpm.tracking.runs import git_tags
from ddpm.tracking.version_records import measured_protocols


def opened(name: str, protocol: str, *all_protocols: str) -> Opened:
    recorded = Recorded({"fid": 1.0}, {"id": protocol}, [])
    return Opened(Compared(name, name, recorded), None, f"models:/m/{name}", all_protocols)


@pytest.mark.parametrize(
    ("models", "under"),
    [
        # One was measured under today's protocol too, both under that of their registration.
        ([opened("1", "today", "first", "today"), opened("2", "first", "first")], ["first", "first"]),
        ([opened("1", "today", "first", "today"), opened("2", "today", "first", "today")], ["today", "today"]),
        ([opened("1", "today", "today"), opened("2", "first", "first")], ["today", "first"]),
    ],
)
def test_models_are_ranked_under_a_protocol_that_all_have_figures_under(models, under, monkeypatch, capsys):
    def recorded(uri: str, root: Path, protocol: str) -> Evaluation:
        return Evaluation(Figures({"fid": 2.0}, {"id": protocol}), None, uri)

    monkeypatch.setattr(tracking, "evaluation_of", recorded)
    found = [each.compared for each in _under_one_protocol(models, Path())]
    assert [each.protocol_id for each in found] == under
    if len(set(under)) == 1:
        ranked(found)
    assert ("ranked under protocol first" in capsys.readouterr().out) == (under == ["first", "first"])


def test_a_versions_tags_say_all_that_it_was_measured_under():
    assert measured_protocols({"protocol": "a", "measured.c": "run", "measured.b": "run"}) == ("a", "b", "c")


@pytest.mark.parametrize(
    ("key", "protocols", "name"),
    [
        ("fid", [{"extractor": "inception"}], "FID (InceptionV3)"),
        ("fid_same_count", [{"extractor": "classifier"}], "FID (small CNN), same count"),
        ("kid", [{"extractor": "rotation"}], "KID (small CNN on rotations)"),
        ("fid", [{"extractor": "inception"}, {"extractor": "classifier"}, {}], "FID (InceptionV3 / small CNN)"),
        ("fid", [{}], "FID"),
        ("wasserstein", [{"extractor": "coordinates"}], "Wasserstein distance"),
        ("nll_validation", [{"extractor": "inception"}], FIGURES["nll_validation"].name),
    ],
)
def test_a_figure_is_named_with_its_extractor(key, protocols, name):
    assert FIGURES[key].named(*protocols) == name


def test_what_the_pipeline_writes_is_no_change_of_code_or_parameters(tmp_path):
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    for name in ("dvc.lock", "data.dvc", "fetched.json", "params.yaml"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "all")
    for name in ("dvc.lock", "data.dvc", "fetched.json"):
        (tmp_path / name).write_text("2")
    assert git_tags(tmp_path)["git_dirty"] == "false"
    (tmp_path / "params.yaml").write_text("2")
    tags = git_tags(tmp_path)
    assert (tags["git_dirty"], tags["git_changed"]) == ("true", "params.yaml")
