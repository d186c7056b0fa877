"""What is shown while a stage works."""

import io
import sys
import time

import pytest

from ddpm.codecs.scale import codec_for
from ddpm.stages import progress
from ddpm.stages.progress import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Seconds that pass only when told to; on a stream that is no terminal nothing is drawn meanwhile."""
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def drawn(of: progress.Bar) -> str:
    return str(of).split("[")[1]


def test_the_first_update_counts_for_no_rate_and_there_is_no_time_left_until_it_is_known(clock):
    with bar(100, "img", "") as shown:
        assert "<?, ? img/s" in drawn(shown)
        clock(20)  # an import
        shown.update()
        assert "<?, ? img/s" in drawn(shown)
        clock(0.5)
        shown.update()
        assert "<?, ? img/s" in drawn(shown), "half a second is too short"
        clock(0.5)
        shown.update(18)
        assert shown.recent_rate() == pytest.approx(19)
        assert "<00:04, 19.00 img/s" in drawn(shown)


def test_the_rate_is_that_of_the_last_half_minute(clock):
    with bar(10_000, "steps", "") as shown:
        for seconds, count in ((1, 100), (5, 40), (0.1, 400)):
            for _ in range(count):
                clock(seconds)
                shown.update()
        assert shown.recent_rate() == pytest.approx(10, rel=0.05)


def test_slow_updates_have_a_rate_after_the_second(clock):
    with bar(4, "img", "") as shown:
        for _ in range(2):
            clock(60)
            shown.update()
        assert shown.recent_rate() == pytest.approx(1 / 60)


@pytest.mark.parametrize("place", [500, 3])
def test_what_an_earlier_run_did_is_no_part_of_the_rate(clock, place):
    with bar(1000, "img", "") as shown:
        for _ in range(20):
            clock(1)
            shown.update()
        shown.move(place)
        assert shown.n == place
        assert shown.recent_rate() == 0
        for _ in range(3):
            clock(0.5)
            shown.update()
        assert shown.recent_rate() == pytest.approx(2)


def test_in_a_log_it_is_a_line_an_interval_though_nothing_is_done(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.05)
    with bar(5, "points", "waiting"):
        time.sleep(0.4)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 9
    assert all(line.startswith("waiting:   0%") and "? points/s" in line for line in lines)


def test_a_terminal_shows_it_within_a_second(monkeypatch):
    monkeypatch.setattr(progress, "TERMINAL_EVERY", 0.05)
    monkeypatch.setattr(progress, "SHORT", 0.1)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with bar(5, "img", "waiting"):
        time.sleep(0.4)
        assert "\rwaiting:   0%" in sys.stderr.getvalue()


def test_what_is_short_shows_nothing(capsys):
    with bar(5, "img", "done at once") as shown:
        shown.update(5)
    assert capsys.readouterr().err == ""


def test_the_unit_is_what_is_counted():
    low, high = (0.0,), (1.0,)
    assert codec_for("images", (8, 8, 1)).unit == "img"
    assert codec_for("points", (1,), low, high).unit == "points"
    assert codec_for("sequences", (1, 8), low, high).unit == "sequences"


@pytest.mark.slow
def test_no_long_part_of_an_evaluation_is_silent(trained, monkeypatch, capsys):
    """Every part that may take long has its line where lines come often."""
    from ddpm.config.params import load_params
    from ddpm.stages.evaluate import evaluate_variant

    monkeypatch.setattr(progress, "LOG_EVERY", 0.001)
    for file in (trained / ".ddpm/features").glob("*"):
        file.unlink()
    evaluate_variant(load_params(), "tiny")
    said = capsys.readouterr().err
    for part in ("features of real images", "samples of models/tiny", "figures", "likelihood of tiny"):
        assert f"{part}:" in said, part
