"""Who is champion, by the policy and by hand, against a real SQLite store; and real processes that race for it."""

import contextlib
import json
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from finished import VARIANT, write_outputs
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow_server import tracking_server
from tiny import TINY_PARAMS, write_params

from ddpm import tracking
from ddpm.cli import main
from ddpm.errors import UserError
from ddpm.tracking import Figures
from ddpm.tracking import champion as champion_module

MODEL = "ddpm-dots"


def register(root: Path, **figures) -> None:
    """What the policy needs of `tracking.register`, which takes its time over the model's files."""
    write_outputs(root, **figures)
    reports = root / "reports" / VARIANT
    metrics, protocol = (json.loads((reports / name).read_text()) for name in ("metrics.json", "protocol.json"))
    client = tracking.load_mlflow(root).MlflowClient()
    with contextlib.suppress(MlflowException):  # it is there
        client.create_registered_model(MODEL)
    run_id = tracking.start_run(VARIANT, root)
    client.log_batch(
        run_id, [Metric(key, value, 0, 0) for key, value in metrics.items() if key not in ("protocol", "model")]
    )
    client.log_dict(run_id, protocol, "protocol.json")
    known = {"lineage": tracking.lineage_of(VARIANT, root), "parity_passed": "true"}
    client.create_model_version(MODEL, f"runs:/{run_id}/model", run_id, tags=known)


def registered(root: Path, *versions: dict) -> None:
    """Register versions with these figures, each after the one before was offered for promotion."""
    for lock, figures in enumerate(versions, 1):
        register(root, lock=str(lock), **figures)
        tracking.promote(VARIANT)


def champion() -> int | None:
    found = tracking.find_champion(MODEL)
    return found and found.version


def tags(version: int) -> dict[str, str]:
    return tracking.load_mlflow().MlflowClient().get_model_version(MODEL, str(version)).tags


def test_a_decision_is_a_tag_with_its_numbers(finished):
    registered(finished, {"fid": 20.0, "fid_low": 18.0, "fid_high": 22.0, "recall": 0.5}, {"fid": 21.0, "recall": 0.6})
    assert tags(2)["refusal_reason"] == "no lower FID: 21 against 20 [18, 22] of version 1"
    assert json.loads(tags(2)["refusal_figures"]) == [
        {"figure": "FID", "challenger": "21", "champion": "20 [18, 22]"},
        {"figure": "FID, same count", "challenger": "21", "champion": "20"},
        {"figure": "Inception Score", "challenger": "1.5 ± 0.1", "champion": "1.5 ± 0.1"},
        {"figure": "Inception Score, same count", "challenger": "1.4", "champion": "1.4"},
        {"figure": "Recall", "challenger": "0.6", "champion": "0.5"},
    ]
    assert "promotion_reason" not in tags(2)


def test_a_version_refused_again_by_another_champion_has_that_ones_reason_and_numbers(finished):
    registered(finished, {"fid": 20.0}, {"fid": 10.0}, {"fid": 5.0})
    register(finished, fid=30.0, lock="4")
    client = tracking.load_mlflow().MlflowClient()
    for present, theirs in (("2", "10"), ("3", "5")):
        client.set_registered_model_alias(MODEL, "champion", present)
        tracking.promote(VARIANT)
        assert tracking.find(VARIANT).reason == f"no lower FID: 30 against {theirs} of version {present}"
        assert json.loads(tags(4)["refusal_figures"])[0]["champion"] == theirs
    client.set_registered_model_alias(MODEL, "champion", "1")
    tracking.promote_by_hand(MODEL, 4, "the others are grey")
    assert tracking.find(VARIANT).reason.startswith("by hand: the others are grey")
    assert json.loads(tags(4)["promotion_figures"])[0]["champion"] == "20"
    assert not {"refusal_reason", "refusal_figures"} & tags(4).keys()


def test_a_promotion_that_was_killed_is_not_taken_for_decided_and_its_reason_is_kept(finished, monkeypatch):
    registered(finished, {"fid": 20.0})
    register(finished, fid=15.0, lock="2")
    move = champion_module._move

    def killed(*arguments) -> bool:
        raise KeyboardInterrupt

    def moved_and_killed(*arguments) -> bool:
        move(*arguments)
        raise KeyboardInterrupt

    for faulty, present, reason in (
        (killed, 1, None),
        (moved_and_killed, 2, "lower FID: 15 against 20 of version 1"),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(champion_module, "_move", faulty)
            tracking.promote(VARIANT)
        assert (champion(), tracking.find(VARIANT).reason) == (present, reason)
    assert tracking.promote(VARIANT).reason == reason
    assert tracking.rollback(MODEL, "grey").version == 1


def test_a_version_promoted_by_hand_says_so_and_what_the_policy_says(finished):
    registered(finished, {"fid": 20.0}, {"fid": 30.0})
    decision = tracking.promote_by_hand(MODEL, 2, "sharper to the eye")
    assert decision.reason == (
        "by hand: sharper to the eye; the policy would not have it: no lower FID: 30 against 20 of version 1"
    )
    assert champion() == 2
    assert tags(2)["promotion_reason"] == decision.reason
    assert tracking.promote_by_hand(MODEL, 2, "again").reason == "it is the champion already"


def test_rolling_back_goes_from_champion_to_champion_until_there_was_none(finished):
    registered(finished, {"fid": 20.0}, {"fid": 30.0}, {"fid": 15.0}, {"fid": 10.0})
    assert champion() == 4
    assert tracking.rollback(MODEL, "grey").version == champion() == 3
    assert tracking.rollback(MODEL, "grey too").version == champion() == 1  # 2 never was
    with pytest.raises(
        UserError, match=r"^ddpm-dots: version 1 is the champion, and there is none before it to go back to$"
    ):
        tracking.rollback(MODEL, "more")
    assert tags(4)["taken_back"] == "grey"


def test_a_rollback_that_was_killed_half_way_and_is_repeated_does_not_bring_back_what_was_taken_back(
    finished, monkeypatch
):
    registered(finished, {"fid": 20.0}, {"fid": 15.0})
    move = champion_module._move

    def moved_and_killed(*arguments) -> bool:
        move(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(champion_module, "_move", moved_and_killed)
        tracking.rollback(MODEL, "grey")
    assert (champion(), tags(2)["taken_back"]) == (1, "grey")
    with pytest.raises(UserError, match="version 1 is the champion, and there is none before it"):
        tracking.rollback(MODEL, "grey")
    assert champion() == 1


def test_a_rollback_does_not_return_to_what_was_taken_back_before(finished):
    registered(finished, {"fid": 20.0}, {"fid": 15.0})
    tracking.load_mlflow().MlflowClient().set_registered_model_alias(MODEL, "champion", "1")
    assert tracking.rollback(MODEL, "grey").version == 2
    with pytest.raises(UserError, match="version 2 is the champion, and there is none before it"):
        tracking.rollback(MODEL, "green")
    assert (champion(), tags(2).get("taken_back")) == (2, None)


def test_what_was_taken_back_comes_again_only_by_hand(finished):
    registered(finished, {"fid": 20.0}, {"fid": 15.0})
    tracking.rollback(MODEL, "artefacts in the corners")
    assert tracking.find(VARIANT).reason == "taken back: artefacts in the corners"
    refused = tracking.promote(VARIANT)
    assert (refused.promote, champion()) == (False, 1)
    assert "artefacts in the corners" in refused.reason
    tracking.promote_by_hand(MODEL, 2, "they were the data's")
    assert champion() == 2
    assert tracking.find(VARIANT).reason.startswith("by hand: they were the data's")
    assert tracking.rollback(MODEL, "no").version == 1


def test_an_alias_moved_in_mlflow_itself_is_history_too(finished):
    registered(finished, {"fid": 20.0}, {"fid": 30.0})
    tracking.load_mlflow().MlflowClient().set_registered_model_alias(MODEL, "champion", "2")
    assert tracking.rollback(MODEL, "a slip").version == champion() == 1


def test_a_version_without_figures_is_champion_by_hand_alone_and_nothing_is_ranked_against_it(finished):
    registered(finished, {"fid": 20.0})
    client = tracking.load_mlflow().MlflowClient()
    elsewhere = client.create_run("0").info.run_id
    client.create_model_version(MODEL, f"runs:/{elsewhere}/model", elsewhere)
    decision = tracking.promote_by_hand(MODEL, 2, "as good as they say")
    assert decision.reason == (
        "by hand: as good as they say; the policy would not have it: models:/ddpm-dots/2 has no recorded figures"
    )
    register(finished, fid=10.0, lock="3")
    with pytest.raises(UserError, match=r"^models:/ddpm-dots/2 has no recorded figures$"):
        tracking.promote(VARIANT)
    assert champion() == 2


def test_what_cannot_be_done_by_hand_is_answered_in_one_line(finished, capsys):
    write_params(finished, {**TINY_PARAMS, "data": {"source": "digits", "name": "dots"}})
    register(finished)
    for command, answer in {
        "promote --to 7 --reason x": "ddpm promote: ddpm-dots has no version 7; it has 1\n",
        "promote --to 1 --reason x --model ddpm-x": "ddpm promote: there is no registered model ddpm-x in sqlite:",
        "promote tiny --model ddpm-x": "ddpm promote: --model NAME goes with --to VERSION\n",
        "promote --to 1": "ddpm promote: --to VERSION and --reason WHY go together\n",
        "promote tiny --reason x": "ddpm promote: --to VERSION and --reason WHY go together\n",
        "rollback --reason x --model ddpm-x": "ddpm rollback: there is no registered model ddpm-x in sqlite:",
        "rollback --reason x": "ddpm rollback: ddpm-dots has no champion in sqlite:",
    }.items():
        assert main(command.split()) == 2
        said = capsys.readouterr().err
        assert said.startswith(answer)
        assert said.count("\n") == 1


def test_the_command_line_promotes_and_goes_back(finished, capsys):
    write_params(finished, {**TINY_PARAMS, "data": {"source": "digits", "name": "dots"}})
    registered(finished, {"fid": 20.0}, {"fid": 30.0})
    assert main(["promote", "--to", "2", "--reason", "sharper"]) == 0
    assert main(["rollback", "--reason", "too sharp"]) == 0
    promoted, back = capsys.readouterr().out.splitlines()
    assert promoted.startswith(
        "models:/ddpm-dots/2 is champion: by hand: sharper; the policy would not have it: no lower"
    )
    assert back == "models:/ddpm-dots/1 is champion again"
    assert champion() == 1


def test_a_champion_measured_again_is_ranked_under_the_challengers_protocol(finished):
    registered(finished, {"fid": 20.0, "samples": 500}, {"fid": 10.0})
    old = tracking.champion_to_measure(VARIANT)
    assert (old.version, champion()) == (1, 1)
    protocol = json.loads((finished / f"reports/{VARIANT}/protocol.json").read_text())
    tracking.log_measurement(old, Figures({"fid": 9.0}, protocol))
    assert tracking.champion_to_measure(VARIANT) is None
    assert "no lower FID: 10 against 9 of version 1" in tracking.promote(VARIANT).reason
    tracking.log_measurement(old, Figures({"fid": 11.0}, protocol))
    assert "lower FID: 10 against 11 of version 1" in tracking.promote(VARIANT).reason
    assert champion() == 2
    assert tracking.champion_to_measure(VARIANT) is None


def test_what_stood_in_the_way_of_measuring_the_champion_is_part_of_the_refusal(finished):
    registered(finished, {"samples": 500}, {})
    assert tracking.promote(VARIANT, obstacle="shape: 8×8×1 → 4×4×1").reason.endswith("; shape: 8×8×1 → 4×4×1")


def race(folder: str, store: str, gate: Barrier, rounds: int) -> None:
    """In a process of its own: offer this folder's version for promotion, at the same moment as the other process."""
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = store
    for _ in range(rounds):
        gate.wait()
        tracking.promote(VARIANT)
        gate.wait()


def racers(finished: Path, store: str, rounds: int) -> set[tuple[int | None, str]]:
    """Two processes race, round after round; returns the champions there were in the end, each with its history."""
    for name, lock, fid in (("first", "1", 20.0), ("good", "2", 15.0), ("better", "3", 10.0)):
        register(finished / name, fid=fid, lock=lock)
    client = tracking.load_mlflow().MlflowClient()
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    folders = [str(finished / name) for name in ("good", "better")]
    processes = [context.Process(target=race, args=(folder, store, gate, rounds), daemon=True) for folder in folders]
    for process in processes:
        process.start()
    outcomes = set()
    for _ in range(rounds):
        client.set_registered_model_alias(MODEL, "champion", "1")
        client.set_registered_model_tag(MODEL, "champions", '["1"]')
        gate.wait(120)
        gate.wait(120)
        outcomes.add((champion(), client.get_registered_model(MODEL).tags["champions"]))
    for process in processes:
        process.join(60)
    return outcomes


# As if one had come after the other: the good one and then the better one, or the better one alone.
IN_TURN = {(3, '["1", "2", "3"]'), (3, '["1", "3"]')}


def test_two_processes_that_finish_at_once_end_as_if_in_turn(finished, monkeypatch):
    store = tracking.store_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    assert racers(finished, store, rounds=5) <= IN_TURN


@pytest.mark.slow
def test_two_processes_race_for_the_alias_of_a_server_too(finished, monkeypatch):
    with tracking_server() as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert racers(finished, address, rounds=4) <= IN_TURN
