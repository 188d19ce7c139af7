"""Paired differences over users and seeds, and Holm's correction, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.evaluation.paired import holm, paired_difference

NAN = float("nan")


def test_a_difference_that_all_users_have_is_certain():
    """Every resample has the mean 0.1, none is on the other side of 0: p = 2 (0 + 1) / (999 + 1)."""
    result = paired_difference(np.full((2, 5), 0.1), samples=999)
    assert result == pytest.approx((0.1, 0.1, 0.1, 0.002), abs=1e-7)


def test_two_users_give_the_distribution_that_is_worked_by_hand():
    """Differences 1 and 0: resamples of two users have the means 0, ½ and 1 with the chances ¼, ½ and ¼. The share at
    or below 0 is ¼, so that p = ½."""
    result = paired_difference([[1.0, 0.0]], samples=20_000)
    assert (result.value, result.low, result.high) == (0.5, 0.0, 1.0)
    assert result.p == pytest.approx(0.5, abs=0.02)  # 0.02 is 3 standard errors of 2 · a share of ¼


def test_no_difference_has_the_p_value_1():
    assert paired_difference(np.zeros((3, 4)), samples=100).p == 1.0
    assert paired_difference([[1.0, -1.0]], samples=2000).p == 1.0  # shares of ¾ on each side


def test_seeds_are_drawn_whole():
    """One seed gains 1 for all of its users, the other nothing. The users drawn do not matter; two seeds drawn have the
    means 0, ½ and 1 with the chances ¼, ½ and ¼, so that p = ½. Were the eight numbers drawn apart, p were 2 / 2⁸."""
    table = np.repeat([[1.0], [0.0]], 4, axis=1)
    assert paired_difference(table, samples=20_000).p == pytest.approx(0.5, abs=0.02)


def test_users_are_the_same_for_every_seed():
    """Two users with the differences 1 and 0 under three seeds alike: as with one seed, where p = ½."""
    assert paired_difference([[1.0, 0.0]] * 3, samples=20_000).p == pytest.approx(0.5, abs=0.02)


def test_the_interval_of_many_users_is_that_of_the_mean():
    """400 users, standard deviation 1: the interval is about 1.96 / √400 = 0.098 to each side."""
    drawn = np.random.default_rng(0).normal(size=400)
    differences = (drawn - drawn.mean()) / drawn.std()
    result = paired_difference(differences[None])
    assert (result.low, result.high) == pytest.approx((-0.098, 0.098), abs=0.005)


def test_holm_worked_by_hand():
    """0.01 · 3 = 0.03; 0.03 · 2 = 0.06; 0.04 · 1 = 0.04, but no smaller than the one before: 0.06."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


@pytest.mark.parametrize("wrong", [[1.0], np.zeros((0, 3)), np.zeros((2, 0)), [[NAN]]])
def test_differences_that_are_none_are_refused(wrong):
    with pytest.raises(ValueError, match="differences"):
        paired_difference(wrong)


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"level": 1.0}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="samples must be at least 1"):
        paired_difference([[1.0]], **wrong)


@pytest.mark.parametrize("wrong", [[1.5], [NAN], [[0.1]]])
def test_p_values_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="p_values"):
        holm(wrong)
