"""The pure parts of ``bench``: percentiles, ratios, the table. What it measures is not tested, it is measured."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watcher.cli.benchmark.measurements import Figure, percentile, ratios, spread, table

SOME = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


def test_percentiles_are_by_nearest_rank():
    """Of 1 to 100, the 50th percentile is 50, the 99th is 99 and the 100th is the largest."""
    values = range(100, 0, -1)
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]


def test_percentiles_of_few_values_are_among_them():
    """With 10 values the 99th percentile is the largest: nothing is interpolated that was not measured."""
    assert percentile([5.0, 1.0, 9.0, 3.0, 7.0, 2.0, 8.0, 4.0, 6.0, 50.0], 99) == 50.0


@given(SOME, st.floats(0.1, 100))
def test_enough_values_lie_at_or_below_a_percentile(values, percent):
    """At least ``percent`` percent of the values do not exceed the percentile, and it is one of them."""
    found = percentile(values, percent)
    assert found in values
    assert sum(v <= found for v in values) >= percent / 100 * len(values) - 1e-9


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 100.5)])
def test_percentiles_that_make_no_sense_are_refused(values, percent):
    """No values, or a percent outside of (0, 100], is an error and not a number."""
    with pytest.raises(ValueError, match="a percentile needs"):
        percentile(values, percent)


def test_ratios_are_taken_run_by_run():
    """A run in which everything was twice as slow changes no ratio."""
    a, b = Figure("a", "files/s", (800.0, 400.0, 820.0)), Figure("b", "files/s", (100.0, 50.0, 100.0))
    assert ratios("a/b", a, b).values == (8.0, 8.0, 8.2)


def test_ratios_need_as_many_runs_of_both():
    """Figures of different numbers of runs are not compared."""
    with pytest.raises(ValueError, match="zip"):
        ratios("a/b", Figure("a", "", (1.0, 2.0)), Figure("b", "", (1.0,)))


def test_the_table_shows_median_and_range():
    """Each line has the median with its unit; the range stands only where there was more than one run."""
    text = table([Figure("daemon", "files/s", (1500.4, 900.0, 1600.0)), Figure("a longer name", "ms", (35.71,), 1)])
    assert text.splitlines() == [
        "daemon         1,500 files/s  (900 .. 1,600)",
        "a longer name   35.7 ms",
    ]


def test_an_empty_table_is_empty():
    """No figures give no text, and no error."""
    assert table([]) == ""


def test_json_keeps_every_measurement():
    """The JSON has all values of each median."""
    told = json.loads(json.dumps(Figure("x", "ms", (3.0, 1.0, 2.0)).to_dict()))
    assert told == {"unit": "ms", "median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]}


@given(st.integers(0, 5000), st.integers(1, 700))
def test_a_spread_takes_from_all_over(total, count):
    """As many different numbers as asked for or there are, in order; of two or more, the first and the last."""
    found = spread(total, count)
    assert found == sorted(set(found))
    assert len(found) == min(total, count)
    if len(found) > 1:
        assert (found[0], found[-1]) == (0, total - 1)
