"""What is wrong with a store of MLflow's is said in one line, and whether another try may help, against real stores."""

import shutil
import sqlite3
from pathlib import Path

import pytest
import requests
from finished import VARIANT, write_outputs
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError
from test_champion import MODEL, registered

import mlflow
from ddpm import tracking
from ddpm.cli import main
from ddpm.errors import UpstreamError, UserError
from ddpm.tracking import champion as champion_module
from ddpm.tracking.faults import explain

DATABASE = Path("mlflow/mlflow.db")


def execute(*statements: str) -> None:
    connection = sqlite3.connect(DATABASE)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def older() -> None:
    """As of an MLflow of before: all tables are there, and their version is another one that is known."""
    execute("UPDATE alembic_version SET version_num = '451aebb31d03'")


def newer() -> None:
    execute("UPDATE alembic_version SET version_num = 'fedcba987654'")


def damaged() -> None:
    DATABASE.write_bytes(b"not a database, and longer than a page of nothing" * 200)


def cut() -> None:
    with DATABASE.open("r+b") as stream:
        stream.truncate(20_000)


def of_something_else() -> None:
    DATABASE.unlink()
    execute("CREATE TABLE recipes (name TEXT)")


def a_folder() -> None:
    DATABASE.unlink()
    DATABASE.mkdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (older, "store of an older MLflow: make a copy of it, then run `mlflow db upgrade sqlite:///"),
        (newer, f"store of a newer MLflow than {mlflow.__version__}"),
        (damaged, "damaged, or not an SQLite database"),
        (cut, "damaged"),
        (of_something_else, "a database of something else than MLflow"),
        (a_folder, "Is a directory"),
    ],
)
def test_a_store_that_is_none_of_this_mlflows_is_said_in_one_line(finished, spoil, words):
    tracking.load_mlflow()
    spoil()
    content = DATABASE.read_bytes() if DATABASE.is_file() else None
    for speak in (lambda: tracking.find(VARIANT), lambda: tracking.resolve(f"models:/{MODEL}@champion")):
        with pytest.raises(UserError, match=words) as caught:
            speak()
        assert "\n" not in str(caught.value)
    assert content is None or DATABASE.read_bytes() == content  # nothing of MLflow's was added


@pytest.mark.parametrize("uri", ["./mlruns", "databricks", "htp://x", "file:///tmp/mlruns", "http://", "nonsense"])
def test_an_address_that_names_no_store_is_said_in_one_line_and_nothing_is_made(finished, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    shutil.rmtree("mlflow")
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI: expected a server.* found"):
        tracking.register(VARIANT)
    assert not Path("mlruns").exists()
    assert not Path("mlflow").exists()


def test_the_command_line_leaves_with_2_and_one_line(finished, capsys):
    damaged()
    assert main(["sample", f"models:/{MODEL}@champion", "--out", "a.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ddpm sample: ")
    assert error.count("\n") == 1


def test_a_champion_whose_run_is_gone_has_no_figures_and_another_is_named_by_hand(finished):
    registered(finished, {"fid": 20.0}, {"fid": 30.0})
    client = tracking.load_mlflow().MlflowClient()
    run_id = client.get_model_version(MODEL, "1").run_id
    execute(  # as `mlflow gc` does
        *(f"DELETE FROM {table} WHERE run_uuid = '{run_id}'" for table in ("metrics", "latest_metrics", "params")),
        f"DELETE FROM tags WHERE run_uuid = '{run_id}'",
        f"DELETE FROM runs WHERE run_uuid = '{run_id}'",
    )
    with pytest.raises(UserError, match=f"models:/{MODEL}/1 has no recorded figures any more: its run {run_id} was"):
        tracking.promote(VARIANT)
    assert tracking.promote_by_hand(MODEL, 2, "the other is gone").promote
    assert tracking.find_champion(MODEL).version == 2


def test_an_alias_on_a_version_that_is_gone_is_said_and_can_be_moved(finished):
    registered(finished, {"fid": 20.0}, {"fid": 30.0})
    execute(f"UPDATE registered_model_aliases SET version = 7 WHERE name = '{MODEL}' AND alias = 'champion'")
    for speak in (
        lambda: tracking.find_champion(MODEL),
        lambda: tracking.promote(VARIANT),
        lambda: tracking.champion_to_measure(VARIANT),
    ):
        with pytest.raises(UserError, match=f"{MODEL} has no version 7 any more.*promote --to VERSION") as caught:
            speak()
        assert "\n" not in str(caught.value)
    assert tracking.rollback(MODEL, "it is gone").version == 1
    assert tracking.promote_by_hand(MODEL, 2, "anew").promote


def test_a_mark_of_having_been_taken_back_goes_with_the_alias_and_not_before(finished, monkeypatch):
    registered(finished, {"fid": 20.0}, {"fid": 10.0})
    tracking.rollback(MODEL, "grey")
    move = champion_module._move

    def marks(version: str) -> bool:
        return "taken_back" in tracking.load_mlflow().MlflowClient().get_model_version(MODEL, version).tags

    def broken(*arguments: object) -> bool:
        raise MlflowException("(sqlite3.OperationalError) database is locked")

    for fails in (broken, lambda *arguments: False):
        monkeypatch.setattr(champion_module, "_move", fails)
        with pytest.raises((UserError, UpstreamError)):
            tracking.promote_by_hand(MODEL, 2, "after all")
        assert marks("2")  # it is not champion, and still what was taken back
        assert tracking.find_champion(MODEL).version == 1
    monkeypatch.setattr(champion_module, "_move", move)
    tracking.promote_by_hand(MODEL, 2, "after all")
    assert not marks("2")
    for fails in (broken, lambda *arguments: False):
        monkeypatch.setattr(champion_module, "_move", fails)
        with pytest.raises((UserError, UpstreamError)):
            tracking.rollback(MODEL, "grey again")
        assert not marks("2")  # it is champion still


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OperationalError("x", {}, sqlite3.OperationalError("database is locked")), UpstreamError),
        (OperationalError("x", {}, sqlite3.OperationalError("database or disk is full")), UpstreamError),
        (OperationalError("x", {}, sqlite3.OperationalError("attempt to write a readonly database")), UserError),
        (OperationalError("x", {}, sqlite3.OperationalError("no such table: runs")), UserError),
        (OperationalError("x", {}, Exception("could not connect to server")), UpstreamError),
        (requests.ConnectionError("refused"), UpstreamError),
        (requests.exceptions.InvalidURL("no host"), UserError),
        (MlflowException("Found unknown thing\nwith more lines"), UserError),
        (KeyError("a fault of ours"), None),
        (UserError("said already"), None),
    ],
)
def test_which_errors_pass_and_which_are_the_users(error, kind):
    found = explain(error, lambda: "sqlite:///x")
    assert (kind is None and found is None) or type(found) is kind
    assert found is None or "\n" not in str(found)


def test_two_that_open_a_new_store_at_once_both_find_it(tmp_path, monkeypatch):
    """One that was killed while it made the tables has left a file without MLflow's first experiment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    write_outputs(tmp_path)
    tracking.load_mlflow()
    execute("DELETE FROM experiments")
    assert tracking.load_mlflow().MlflowClient().get_experiment("0").artifact_location.endswith("/mlflow/artifacts/0")
    assert not Path("mlruns").exists()
