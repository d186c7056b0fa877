"""Columns: what a user may ask for, and what is drawn where nothing is asked for."""

from __future__ import annotations

import numpy as np
import pytest
from draws import assert_the_same_in_batches
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.conditioning.columns import LabelColumn, blank, columns_of
from ddpm.diffusion.noise import ImageNoise

NAMES = ("ankle boot", "bag", "coat", "dress")
COLUMN = LabelColumn(NAMES, (10, 20, 30, 40), droppable=True)

seeds = st.integers(0, 2**64 - 1)
classes = st.integers(0, len(NAMES) - 1)


@given(classes, st.integers(0, 9), st.integers(0, 100))
def test_a_name_a_number_and_a_number_as_text_are_the_same_class(number, count, first):
    expected = np.full(count, number)
    for asked in (NAMES[number], number, str(number), np.int64(number), np.array(number), [NAMES[number]]):
        found = COLUMN.read(asked, count, first=first)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int64


@given(st.lists(classes, min_size=1, max_size=5), st.integers(1, 30), st.integers(1, 30))
def test_a_list_repeats_from_image_0_of_the_request_whatever_the_batches(asked, count, batch_size):
    whole = COLUMN.read(asked, count)
    np.testing.assert_array_equal(whole, [asked[index % len(asked)] for index in range(count)])
    parts = [COLUMN.read(asked, min(batch_size, count - first), first=first) for first in range(0, count, batch_size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_class_whose_name_is_a_number_is_found_by_its_name():
    """Folders of digits may be in any order; text is a name where there is such a name."""
    column = LabelColumn(("7", "3", "cat"))
    assert column.read(["7", "3", "2", 2], 4).tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize(
    "asked", ["sneaker", 4, -1, "-1", "4", 1.0, True, None, float("nan"), "", "¹", "9" * 30, [0, "sneaker"], [[1]]]
)
def test_no_such_class(asked):
    with pytest.raises(ValueError, match=r"^label: no class .*; there are: ankle boot, bag, coat, dress$"):
        COLUMN.read(asked, 3)


def test_no_class_at_all():
    with pytest.raises(ValueError, match="label: expected at least one class, found none"):
        COLUMN.read([], 3)


def test_labels_are_drawn_as_often_as_the_data_have_them():
    """The 5-sigma interval of each class's count in 10,000 draws."""
    count = 10_000
    found = np.bincount(COLUMN.draw(count, seed=3), minlength=4) / count
    share = np.array([0.1, 0.2, 0.3, 0.4])
    assert np.all(abs(found - share) < 5 * np.sqrt(share * (1 - share) / count))
    even = np.bincount(LabelColumn(NAMES).draw(count, seed=3), minlength=4) / count
    assert np.all(abs(even - 0.25) < 5 * np.sqrt(0.25 * 0.75 / count))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=4).filter(any), seeds)
def test_a_class_without_data_is_never_drawn(counts, seed):
    drawn = LabelColumn(NAMES, tuple(counts)).draw(50, seed=seed)
    assert all(counts[label] for label in drawn)


@given(seeds, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30)
def test_the_label_of_an_image_does_not_depend_on_its_batch(seed, count, batch_size):
    assert_the_same_in_batches(COLUMN, count, batch_size, seed=seed)


def test_drawing_labels_leaves_the_noise_as_it_was_before_models_had_conditions():
    """The literals were recorded at commit cff6fa3."""
    first, second = [0.059911035001277924, 0.015559634193778038], [-1.1644384860992432, -0.13264712691307068]
    noise = ImageNoise(0, 1, (2,))
    assert noise.draw().tolist() == [first]
    COLUMN.draw(1, seed=0)
    assert noise.draw().tolist() == [second]
    other = ImageNoise(7, 1, (2,), first=3)
    assert other.draw().tolist() == [[-1.4470674991607666, -0.9134206771850586]]
    assert other.draw().tolist() == [[-0.5155606865882874, 1.8603298664093018]]


def test_a_label_says_nothing_about_the_noise():
    """The correlation over 4,000 images is within 5 standard deviations of 0."""
    count = 4000
    label = LabelColumn(("a", "b")).draw(count, seed=11)
    noise = ImageNoise(11, count, (1,)).draw()[:, 0]
    assert abs(np.corrcoef(label, noise)[0, 1]) < 5 / np.sqrt(count)
    assert not np.array_equal(label[:50], LabelColumn(("a", "b")).draw(50, seed=12))


def test_the_null_class_exists_only_where_labels_were_dropped():
    assert (COLUMN.null, LabelColumn(NAMES).null) == (4, None)
    assert blank([COLUMN], 3)["label"].tolist() == [4, 4, 4]
    assert blank([LabelColumn(NAMES)], 3)["label"].tolist() == [0, 0, 0]


def test_the_section_condition_makes_the_columns():
    data = {"classes": list(NAMES), "class_counts": [10, 20, 30, 40]}
    assert columns_of({}, data) == columns_of({"label": None}, data) == ()
    assert columns_of({"label": {"drop": 0.1}}, data) == (COLUMN,)
    assert columns_of({"label": {"drop": 0}}, {"classes": NAMES}) == (LabelColumn(NAMES),)
    for none in (None, ()):
        with pytest.raises(ValueError, match=r"condition\.label needs data with classes"):
            columns_of({"label": {"drop": 0.1}}, {"classes": none})


def test_a_key_of_which_there_are_no_columns_is_refused():
    with pytest.raises(ValueError, match=r"condition\.sound: there are no such columns"):
        columns_of({"label": {}, "sound": {}}, {"classes": NAMES})
    assert columns_of({"sound": None}, {}) == ()
