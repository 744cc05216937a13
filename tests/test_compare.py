"""Intervals that decide: against Student's own tables, and against what they promise."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from densegen.workbench.compare import compare, compare_by

numbers = st.lists(st.floats(-100, 100), min_size=2, max_size=20)


@given(numbers)
def test_is_the_paired_t_test(first):
    second = np.linspace(-1, 1, len(first)) ** 3
    c = compare(first, second)
    if np.ptp(np.asarray(first) - second) > 1e-3:
        low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
        assert np.allclose([c.low, c.high], [low, high])


def test_three_seeds_are_judged_by_the_spread_with_n_minus_1():
    c = compare([1.0, 2.0, 3.0], 0.0)
    assert np.isclose(c.high - c.difference, 4.302653 / np.sqrt(3), rtol=1e-6)
    assert str(c) == "+2 (-0.484 to +4.48, 3 seeds): undecided"


@given(numbers)
def test_exchanging_the_two_turns_the_verdict(first):
    turned = {"more": "less", "less": "more", "undecided": "undecided"}
    assert compare(first, 0.5).verdict == turned[compare(np.full(len(first), 0.5), first).verdict]


def test_seeds_and_images_both_count():
    rng = np.random.default_rng(0)
    by_seed = np.array([[1.0], [2.0], [3.0]]) + rng.normal(0, 1e-9, (3, 1000))
    by_image = rng.normal(2, 1, 1000) + np.zeros((3, 1))
    assert np.isclose(compare(by_seed, 0.0).low, compare([1.0, 2.0, 3.0], 0.0).low, atol=1e-6)
    assert np.isclose(compare(by_image, 0.0).low, compare(by_image[0], 0.0).low, atol=1e-6)
    assert compare(by_seed, 0.0).over == "3 seeds x 1000 images"


@pytest.mark.parametrize("first, second", [([1.0], [2.0]), ([1.0, 2.0], [1.0]), ([1.0, np.nan], [1.0, 2.0]), (3.0, 2.0)])
def test_what_decides_nothing_is_refused(first, second):
    with pytest.raises(ValueError, match="compare: expected"):
        compare(first, second)


def test_measures_are_compared_on_the_same_images():
    rng = np.random.default_rng(1)
    labels = np.arange(300) % 2
    score = labels + rng.normal(size=300)
    auroc = lambda s, y: roc_auc_score(y, s)
    same = compare_by(auroc, score, 2 * score + 1, labels)
    assert (same.difference, same.low, same.high) == (0, 0, 0)
    worse = compare_by(auroc, score + rng.normal(0, 2, 300), score, labels)
    assert worse.verdict == "less" and worse.over == "300 images"
    with pytest.raises(ValueError, match="20 or more"):
        compare_by(auroc, score[:10], score[:10], labels[:10])
