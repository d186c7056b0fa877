"""What the tasks of a flow run share, against a real Prefect server."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import copy_context

import pytest
from prefect import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitUpdate
from prefect.concurrency.sync import concurrency

from flows.pipeline import CHAMPION, GPU, gpu, shared, shared_state, turn_to_promote
from flows.processes import StoppedError

pytestmark = pytest.mark.usefixtures("server")


@pytest.mark.parametrize(("limit", "enter"), [(GPU, gpu), (CHAMPION, turn_to_promote)])
def test_what_waits_for_its_turn_ends_with_the_flow(limit: str, enter: Callable[[], AbstractContextManager], caplog):
    outcome: list[str] = []

    def wait() -> None:
        try:
            with enter():
                outcome.append("had its turn")
        except StoppedError:
            outcome.append("stopped")

    with shared_state(), concurrency(limit, lease_duration=60):  # as another flow run would hold it
        thread = threading.Thread(target=copy_context().run, args=(wait,), daemon=True)
        thread.start()
        time.sleep(1.0)
        assert outcome == []
        shared().children.stop()
        thread.join(60)
        assert outcome == ["stopped"]
    assert "failed to process" not in caplog.text


def test_what_is_free_is_had_and_given_back():
    with shared_state():
        for _ in range(2):
            with gpu(), turn_to_promote():
                pass


@pytest.fixture
def two_gpus() -> Iterator[None]:
    with get_client(sync_client=True) as client, shared_state():
        client.update_global_concurrency_limit(GPU, GlobalConcurrencyLimitUpdate(limit=2))
        yield
        client.update_global_concurrency_limit(GPU, GlobalConcurrencyLimitUpdate(limit=1))


def test_limits_that_are_there_stay_as_they_are(two_gpus):
    with shared_state(), get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(GPU).limit == 2


def test_flows_that_are_the_first_of_a_server_at_once_do_not_stumble_over_each_other():
    with get_client(sync_client=True) as client, shared_state():
        client.delete_global_concurrency_limit_by_name(GPU)
        client.delete_global_concurrency_limit_by_name(CHAMPION)
    started, failures = threading.Barrier(4), []

    def begin() -> None:
        started.wait(60)
        try:
            with shared_state():
                pass
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=copy_context().run, args=(begin,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
