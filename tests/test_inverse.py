"Operators against their matrices, samplers against posteriors and laws that are known in closed form."

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal

from densegen.families.diffusion import cosine_schedule
from densegen.families.inverse import GaussianDenoiser, ddrm, dps, pigdm
from densegen.families.operators import LUMA, Mask, Separable, colourisation, deblurring, dense
from densegen.families.operators import gaussian_posterior, latent_search, psnr, super_resolution

SHAPE, NOISE = (2, 6, 4), 0.3
D = math.prod(SHAPE)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


SEEN = torch.rand(6, 4, generator=generator()) < 0.6
MADE = {
    "mask": lambda: Mask(SHAPE, SEEN),
    "means": lambda: super_resolution(SHAPE, 2),
    "blur": lambda: deblurring(SHAPE, 0.8),
    "luma": lambda: colourisation(4, 3),
}
operators = pytest.mark.parametrize("A", [pytest.param(make(), id=name) for name, make in MADE.items()])


def drawn(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


@operators
def test_adjoint_and_pseudo_inverse_are_those_of_the_matrix(A):
    matrix, x = dense(A).float(), drawn(7, *A.singular.shape)
    y = drawn(*A(x).shape, seed=2)
    assert torch.allclose(A(x).flatten(1), x.flatten(1) @ matrix.T, atol=1e-5)
    assert torch.allclose((A(x) * y).flatten(1).sum(1), (x * A.adjoint(y)).flatten(1).sum(1), atol=1e-4)
    assert torch.allclose(A.adjoint(y).flatten(1), y.flatten(1) @ matrix, atol=1e-5)
    assert torch.allclose(A(A.pinv(A(x))), A(x), atol=1e-5)
    assert torch.allclose(A.pinv(A(A.pinv(y))), A.pinv(y), rtol=1e-3, atol=1e-3)
    theirs = torch.linalg.pinv(matrix.double(), rtol=1e-6).float()
    assert torch.allclose(A.pinv(y).flatten(1), y.flatten(1) @ theirs.T, rtol=1e-3, atol=1e-3)


@operators
def test_singular_values_and_rotations(A):
    x = drawn(5, *A.singular.shape)
    theirs = torch.linalg.svdvals(dense(A)).float()
    ours = A.singular.flatten().sort(descending=True).values[: len(theirs)]
    assert torch.allclose(ours, theirs, atol=1e-6)
    assert torch.allclose(A.image(A.coordinates(x)), x, atol=1e-5)
    assert torch.allclose(A.coordinates(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), atol=1e-4)
    assert torch.allclose(A.observed(A(x)), A.singular * A.coordinates(x), atol=1e-5)


def test_each_operator_does_what_its_name_says():
    x = drawn(3, *SHAPE)
    assert torch.equal(MADE["mask"]()(x), torch.where(SEEN, x, 0.0))
    assert torch.allclose(MADE["means"]()(x), F.avg_pool2d(x, 2), atol=1e-6)
    rgb = drawn(3, 3, 4, 3)
    assert torch.allclose(MADE["luma"]()(rgb)[:, 0], sum(w * rgb[:, k] for k, w in enumerate(LUMA)), atol=1e-6)
    taps = np.exp(-0.5 * (np.arange(-5, 6) / 0.8) ** 2)
    kernel = torch.from_numpy(np.outer(taps, taps) / taps.sum() ** 2).float()
    wide = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (5, 5), (5, 5)), mode="symmetric"))
    mirrored = F.conv2d(wide.flatten(0, 1)[:, None], kernel[None, None])[:, 0].view_as(x)
    assert torch.allclose(MADE["blur"]()(x), mirrored, atol=1e-5)


def test_sizes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="multiples of 4"):
        super_resolution((1, 28, 30), 4)
    with pytest.raises(ValueError, match="no taller than wide"):
        Separable(torch.ones(2, 1), torch.eye(3), torch.eye(3))


def gaussian(seed=3, size=D):
    root = torch.randn(size, size, generator=generator(seed), dtype=torch.float64) / size**0.5
    return torch.randn(size, generator=generator(seed + 1), dtype=torch.float64), root @ root.T + 0.1 * torch.eye(size)


@pytest.mark.parametrize("name", ["mask", "means", "blur"])
def test_posterior_of_a_gaussian(name):
    "By the other formula, that of precisions."
    A, (m, S) = MADE[name]().double(), gaussian()
    y = drawn(*A(m.view(1, *SHAPE)).expand(3, -1, -1, -1).shape, dtype=torch.float64)
    mean, covariance = gaussian_posterior(A, y, NOISE, m.view(SHAPE), S)
    a = dense(A)
    theirs = torch.linalg.inv(torch.linalg.inv(S) + a.T @ a / NOISE**2)
    assert torch.allclose(covariance, theirs, atol=1e-8)
    assert torch.allclose(mean.flatten(1), (torch.linalg.inv(S) @ m + y.flatten(1) @ a / NOISE**2) @ theirs, atol=1e-8)


def test_search_finds_the_best_latent_of_a_linear_generator():
    A, W, b = MADE["means"](), drawn(D, 3, seed=4), drawn(D, seed=5)
    y = drawn(3, 2, 3, 2, seed=6)
    decode = lambda z: (z @ W.T + b).view(-1, *SHAPE)
    z, cost = latent_search(decode, A, y, 0.5, torch.zeros(3, 3), steps=250, lr=0.1)
    a = dense(A).float() @ W
    gap = y.flatten(1) - A(b.view(1, *SHAPE)).flatten(1)
    best = torch.linalg.solve(a.T @ a / 0.25 + torch.eye(3), a.T @ gap.T / 0.25).T
    assert torch.allclose(z, best, atol=2e-3)
    assert torch.allclose(cost, (gap - best @ a.T).square().sum(1) / 0.5 + best.square().sum(1) / 2, rtol=1e-3)


def test_psnr():
    x = torch.zeros(2, 1, 4, 4)
    assert torch.allclose(psnr(x + 0.2, x), torch.full((2,), 20.0), atol=1e-4)  # a tenth of the range
    assert torch.allclose(psnr(x + 5, x), torch.full((2,), -10 * math.log10(0.25)))  # what is beyond white is white


def test_denoiser_is_the_conditional_mean():
    m, S = gaussian(size=8)
    alpha_bar = cosine_schedule(10).sigmoid()
    denoiser = GaussianDenoiser(m.view(2, 2, 2), S, alpha_bar)
    for t, a in ((1, alpha_bar[1]), (7, alpha_bar[7])):
        x_t = drawn(5, 2, 2, 2, dtype=torch.float64)
        precision = torch.linalg.inv(S) + a / (1 - a) * torch.eye(8)
        right = (torch.linalg.inv(S) @ m + a.sqrt() / (1 - a) * x_t.flatten(1)) @ torch.linalg.inv(precision)
        assert torch.allclose(denoiser.denoised(x_t, torch.full((5,), t)).flatten(1), right, atol=1e-9)


def white(steps, shape, mean=0.0, variance=1.0):
    size = math.prod(shape)
    covariance = variance * torch.eye(size, dtype=torch.float64)
    return GaussianDenoiser(torch.full(shape, mean, dtype=torch.float64), covariance, cosine_schedule(steps).sigmoid())


def case(name, prior, seed=7):
    "An operator of 2 x 2 x 2 images in float64, and data of one image of the prior."
    small = (2, 2, 2)
    made = {"mask": lambda: Mask(small, torch.tensor([[True, False], [True, True]])), "means": lambda: super_resolution(small, 2),
            "blur": lambda: deblurring(small, 0.6)}
    A = made[name]().double()
    x = prior.mean + prior.variances[0].sqrt() * drawn(1, *small, seed=seed, dtype=torch.float64)
    return A, A(x) + NOISE * drawn(*A(x).shape, seed=seed + 1, dtype=torch.float64)


def in_standard_errors(x, mean, covariance):
    "Largest error of a mean and of a covariance."
    n, x = len(x), x.flatten(1)
    wide = covariance.diagonal()
    of_covariance = (torch.cov(x.T) - covariance) / ((wide[:, None] * wide + covariance.square()) / n).sqrt()
    return ((x.mean(0) - mean.flatten()) / (wide / n).sqrt()).abs().max(), of_covariance.abs().max()


@pytest.mark.parametrize("name, mean, variance", [("means", 0.0, 1.0), ("blur", 0.0, 1.0), ("mask", 0.7, 0.25)])
def test_pigdm_draws_from_the_posterior_of_white_gaussians(name, mean, variance):
    prior = white(300, (2, 2, 2), mean, variance)
    A, y = case(name, prior)
    x = pigdm(prior, A, y.expand(800, -1, -1, -1), NOISE, 300, variance=variance, generator=generator(8))
    right = gaussian_posterior(A, y, NOISE, prior.mean, variance * torch.eye(8, dtype=torch.float64))
    assert max(in_standard_errors(x, *right)) < 4


def test_pigdm_without_noise_keeps_the_data():
    prior = white(300, (2, 2, 2))
    A, y = case("means", prior)
    x = pigdm(prior, A, y.expand(50, -1, -1, -1), 0.0, 300, generator=generator(9))
    assert (A(x) - y).abs().max() < 0.02


def test_dps_has_the_bias_that_was_derived():
    "An Ornstein-Uhlenbeck process instead of a bridge: too near to the data, and too sure."
    prior, n = white(600, (2, 2, 2)), 1500
    A, y = case("blur", prior)
    c = A.coordinates(dps(prior, A, y.expand(n, -1, -1, -1), NOISE, 600, generator=generator(10)))
    kappa = (A.singular / NOISE).square().clamp_min(1e-9)
    mean = A.coordinates(A.pinv(y))[0] * -torch.expm1(-kappa)
    variance = -torch.expm1(-2 * kappa) / (2 * kappa)
    assert ((c.mean(0) - mean) / (variance / n).sqrt()).abs().max() < 4
    assert ((c.var(0) / variance - 1) / (2 / n) ** 0.5).abs().max() < 4
    clear = kappa > 2
    assert ((c.var(0) * (1 + kappa) - 1) / (2 / n) ** 0.5)[clear].max() < -4  # the posterior has 1 / (1 + kappa)


def test_a_step_of_dps_goes_down_the_residual():
    "One step of the ladder: the denoised image, minus zeta times the gradient of |y - A x0|."
    prior = white(50, (2, 2, 2))
    A, y = case("blur", prior)
    prior.alpha_bar = prior.alpha_bar[20:21]
    ours = dps(prior, A, y, NOISE, 1, zeta=0.3, generator=generator(11))
    x = torch.randn(1, 2, 2, 2, generator=generator(11), dtype=torch.float64, requires_grad=True)
    x0 = prior.denoised(x, torch.tensor([0]))
    (slope,) = torch.autograd.grad((y - A(x0)).norm(), x)
    assert torch.allclose(ours, x0 - 0.3 * slope, atol=1e-6)


def test_ddrm_without_noise_keeps_the_data():
    prior = white(200, (2, 2, 2))
    A, y = case("means", prior)
    assert (A(ddrm(prior, A, y, 0.0, 10, generator=generator(12))) - y).abs().max() < 1e-6


def test_ddrm_without_fresh_noise_draws_what_was_forgotten():
    prior, n = white(300, (2, 2, 2)), 1500
    A, y = case("means", prior)
    x = ddrm(prior, A, y.expand(n, -1, -1, -1), NOISE, 300, eta=0.0, generator=generator(15))
    rest = A.coordinates(x)[:, ~A.known]
    assert (rest.mean(0) * n**0.5).abs().max() < 4 and ((rest.var(0) - 1) / (2 / n) ** 0.5).abs().max() < 4


def test_ddrm_with_noise_is_its_own_recursion():
    "Equations 7 and 8 for one coordinate of a standard normal: mean and variance, level by level."
    steps, n, eta = 20, 4000, 0.85
    A = Separable(torch.eye(1), torch.diag(torch.tensor([0.0, 0.05, 0.3, 1.0, 3.0])), torch.eye(1)).double()
    prior = white(1000, (1, 5, 1))
    y = torch.tensor([0.0, 0.02, -0.4, 1.2, 2.0], dtype=torch.float64).view(1, 1, 5, 1)
    x = ddrm(prior, A, y.expand(n, -1, -1, -1), NOISE, steps, eta, generator=generator(13))
    last = int((prior.alpha_bar >= 1e-3).nonzero().max())
    levels = [((1 - a) / a) ** 0.5 for a in prior.alpha_bar[torch.linspace(last, 0, steps).round().long()].tolist()] + [0.0]
    for i, s in enumerate((0.0, 0.05, 0.3, 1.0, 3.0)):
        value, error = (y[0, 0, i, 0].item() / s, NOISE / s) if s else (0.0, math.inf)
        mean, variance = value, levels[0] ** 2 - (error**2 if s else 0)
        for sigma, after in zip(levels, levels[1:]):
            shrink, kept = 1 / (1 + sigma**2), math.sqrt(1 - eta**2) * after
            if after >= error:
                mean, variance = value, after**2 - error**2
            elif s:
                step = kept / error
                mean, variance = (1 - step) * shrink * mean + step * value, ((1 - step) * shrink) ** 2 * variance + (eta * after) ** 2
            else:
                factor = shrink + kept / sigma * (1 - shrink)
                mean, variance = factor * mean, factor**2 * variance + (eta * after) ** 2
        got = x[:, 0, i, 0]
        assert abs(got.mean() - mean) < 4 * (variance / n) ** 0.5, s
        assert abs(got.var() / variance - 1) < 4 * (2 / n) ** 0.5, s


def test_same_seed_same_samples():
    prior = white(30, (2, 2, 2))
    A, y = case("mask", prior)
    for solver in (pigdm, dps, ddrm):
        first, again = (solver(prior, A, y, NOISE, 10, generator=generator(14)) for _ in range(2))
        assert torch.equal(first, again) and not first.requires_grad
