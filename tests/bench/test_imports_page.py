"""`python -m bench.imports`: what it makes of what the tests found."""

from pathlib import Path

import recorded
import torch
from torch import nn

from bench import imports
from bench.imports import ROWS, markdown, rows

ROOT = Path(__file__).parents[2]


def found() -> list[dict]:
    """Two comparisons of each row, and the parameters of the first."""
    lines = [{"what": what, "difference": d, "bound": 1e-5} for what in ROWS for d in (1e-7, 2.5e-6)]
    return [*lines, *[{"what": next(iter(ROWS)), "parameters": count} for count in (20_000, 1_000, 20_000)]]


def test_a_row_has_the_largest_difference_and_all_sizes():
    first, second, *_ = rows(found())
    assert first[2:] == ["2.5e-06", "2", "1,000 and 20,000"]
    assert second[2:] == ["2.5e-06", "2", ""]
    assert len(markdown(found()).splitlines()) == len(ROWS) + 6


def test_the_page_has_a_row_for_each_comparison():
    lines = (ROOT / imports.PAGE).read_text("utf-8").splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")][1:] == ["---", *ROWS]


def test_the_tests_write_down_what_they_compare(tmp_path: Path, monkeypatch):
    assert imports.RECORD == recorded.RECORD
    monkeypatch.setenv(recorded.RECORD, str(tmp_path / "found"))
    one = torch.ones(4)
    for what in ROWS:
        recorded.assert_equal(one * (1 + 1e-6), one, what)
        recorded.assert_same({"a": one}, {"a": one.clone()}, what)
    recorded.assert_parameters(nn.Linear(3, 2), 8, next(iter(ROWS)))
    lines = [imports.json.loads(line) for line in (tmp_path / "found").read_text().splitlines()]
    first = rows(lines)[0]
    assert first[3:] == ["2", "8"]
    assert 0.8e-6 < float(first[2]) < 1.2e-6
