"""The diagnostics of chains: against ArviZ, against sequences with known autocorrelation, and against their own promise."""
import math

import arviz
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densegen.workbench.diagnostics import (
    autocorrelation,
    autocovariance,
    effective_sample_size,
    split_rhat,
    standard_scores,
)


def autoregressive(a: float, steps: int, chains: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((steps, chains))
    x = [noise[0]]
    for k in range(1, steps):
        x.append(a * x[-1] + math.sqrt(1 - a * a) * noise[k])
    return torch.from_numpy(np.stack(x))


@settings(deadline=None, max_examples=60)
@given(
    a=st.floats(-0.9, 0.99), steps=st.integers(8, 300), chains=st.integers(2, 6), shift=st.floats(0, 3), seed=st.integers(0, 99)
)
def test_equals_arviz(a, steps, chains, shift, seed):
    "The estimators of Stan, to eight digits, for mixing, sticky, antithetic and disagreeing chains."
    draws = autoregressive(a, steps, chains, seed) + shift * torch.arange(chains)
    theirs = draws.numpy().T
    assert effective_sample_size(draws).item() == pytest.approx(float(arviz.ess(theirs, method="mean")), rel=1e-8)
    assert split_rhat(draws).item() == pytest.approx(float(arviz.rhat(theirs, method="split")), rel=1e-8)


def test_every_quantity_for_itself():
    draws = torch.stack([autoregressive(a, 200, 3) for a in (0.0, 0.5, 0.9)], 2).reshape(200, 3, 3, 1)
    together = effective_sample_size(draws)
    assert together.shape == (3, 1)
    for i in range(3):
        assert torch.isclose(together[i, 0], effective_sample_size(draws[:, :, i, 0]))


def test_autocovariance_is_the_sum_it_stands_for():
    x = torch.randn(50, 2, dtype=torch.float64)
    c = x - x.mean(0)
    direct = torch.stack([(c[: 50 - t] * c[t:]).sum(0) / 50 for t in range(50)])
    assert torch.allclose(autocovariance(x), direct, atol=1e-12)
    assert torch.allclose(autocorrelation(x)[0], torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_autoregressive_sequences_have_their_size(a):
    draws = autoregressive(a, 20_000, 8)
    assert effective_sample_size(draws).item() == pytest.approx(160_000 * (1 - a) / (1 + a), rel=0.08)


def test_scores_are_standard_normal_for_right_draws_only():
    draws = autoregressive(0.8, 2000, 400).reshape(2000, 4, 100)
    scores = standard_scores(draws, torch.zeros(100))
    assert 0.8 < scores.std() < 1.25 and scores.abs().max() < 4.5
    assert standard_scores(draws[..., 0] + 0.5, torch.tensor(0.0)) > 4


def test_chains_that_disagree():
    draws = autoregressive(0.5, 400, 4)
    assert split_rhat(draws) < 1.02 < 1.5 < split_rhat(draws + 2 * torch.arange(4))


@pytest.mark.parametrize("shape", [(100,), (7, 4)])
def test_too_little_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected draws \[steps >= 8, chains"):
        effective_sample_size(torch.randn(shape))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("measure", [effective_sample_size, split_rhat, autocorrelation, lambda d: standard_scores(d, torch.tensor(0.0))])
def test_a_chain_that_left_for_nowhere_is_refused(measure, bad):
    draws = autoregressive(0.5, 50, 4)
    draws[20:, 1] = bad
    with pytest.raises(ValueError, match="draws: expected finite numbers; got 30 NaN or inf, the first at step 20"):
        measure(draws)


@pytest.mark.parametrize("expected", [torch.zeros(2), torch.zeros(4, 3), torch.zeros(1)])
def test_truths_of_another_shape_are_refused(expected):
    with pytest.raises(ValueError, match=r"expected: one number, or one for each quantity \[3\]; got"):
        standard_scores(torch.randn(20, 4, 3), expected)


def test_a_quantity_that_never_changes_has_no_score():
    assert standard_scores(torch.ones(50, 4), torch.tensor(0.5)).isnan() and effective_sample_size(torch.ones(50, 4)).isnan()
