"Score, denoiser, Langevin and flow at every noise level against Gaussians, where each is a formula."

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from densegen.energy.learning import denoising_score_matching
from densegen.families.score import (
    Denoiser,
    Mixture,
    ScoreModel,
    WienerScore,
    annealed_langevin,
    denoising_loss,
    flow_log_prob,
    geometric_levels,
    probability_flow,
    score_of,
)
from densegen.workbench.training import fit

MEANS = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.0, -1.0]], dtype=torch.float64)
SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
WIDTH, TAU = 0.4, 0.7


def mixture():
    return Mixture(MEANS, WIDTH, SHARES)


def gaussian(dim=2, mean=0.0):
    "One Gaussian of deviation TAU: every step of every sampler is linear."
    return Mixture(torch.full((1, dim), mean, dtype=torch.float64), TAU)


def points(n, seed=0, dim=2):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 5.0])
def test_density_is_that_of_torch(sigma):
    parts = Independent(Normal(MEANS, math.hypot(WIDTH, sigma)), 1)
    x = 3 * points(50)
    assert torch.allclose(mixture().log_prob(x, sigma), MixtureSameFamily(Categorical(SHARES), parts).log_prob(x))


def test_score_is_the_slope_of_the_density_at_each_items_level():
    x, sigma = 3 * points(60).requires_grad_(), torch.logspace(-1.5, 1, 60, dtype=torch.float64)
    (slope,) = torch.autograd.grad(mixture().log_prob(x, sigma).sum(), x)
    assert torch.allclose(score_of(mixture(), x, sigma), slope, atol=1e-8)


def test_denoised_is_the_posterior_mean():
    model, x, sigma = mixture(), points(5), 0.6
    axis = torch.linspace(-8, 8, 801, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_joint = model.log_prob(grid)[None] - 0.5 * torch.cdist(x, grid).square() / sigma**2
    assert torch.allclose(model.denoised(x, sigma), log_joint.softmax(1) @ grid, atol=1e-6)


def test_samples_have_the_moments_of_the_noisy_mixture():
    x = mixture().sample(40_000, 0.5, torch.Generator().manual_seed(0))
    mean = SHARES @ MEANS
    second = WIDTH**2 + 0.25 + SHARES @ MEANS.square()
    assert ((x.mean(0) - mean).abs() < 4 * x.std(0) / 200).all()
    assert ((x.square().mean(0) - second).abs() < 4 * x.square().std(0) / 200).all()


class Off(nn.Module):
    "The oracle, its score off by `gap` everywhere."

    def __init__(self, model, gap):
        super().__init__()
        self.model, self.gap = model, gap

    def denoised(self, x, sigma):
        return self.model.denoised(x, sigma) + sigma**2 * self.gap


def test_loss_has_its_minimum_at_the_score_and_of_the_predicted_height():
    x, noise, sigma, gap = TAU * points(100_000), points(100_000, 1), 0.5, 0.8
    best = denoising_loss(gaussian(), x, sigma, noise)
    floor = TAU**2 / (TAU**2 + sigma**2)  # (D - sigma^2 E|score|^2) / 2 in two dimensions
    assert abs(best.mean() - floor) < 4 * best.std() / len(x) ** 0.5
    for sign in (-1, 1):
        extra = denoising_loss(Off(gaussian(), sign * gap), x, sigma, noise) - best
        assert abs(extra.mean() - 0.5 * sigma**2 * 2 * gap**2) < 4 * extra.std() / len(x) ** 0.5


def test_loss_is_that_of_the_energies():
    class Energy(nn.Module):
        def energy(self, x):
            return 0.5 * x.square().sum(1) / (TAU**2 + 0.09)

    x = TAU * points(64)
    torch.manual_seed(3)
    theirs = denoising_score_matching(Energy(), x, 0.3)
    torch.manual_seed(3)
    assert torch.allclose(denoising_loss(gaussian(), x, 0.3, torch.randn_like(x)).mean(), theirs)


def test_levels_fall_by_a_constant_ratio():
    sigmas = geometric_levels(10.0, 0.1, 5)
    assert torch.allclose(sigmas, 10 ** torch.tensor([1, 0.5, 0, -0.5, -1]))


def after_langevin(variance, sigmas, steps, step):
    "Factor of the start, and variance, of chains at a Gaussian of mean zero."
    factor = 1.0
    for sigma in sigmas.tolist():
        keep = 1 - 0.5 * step * sigma**2 / (TAU**2 + sigma**2)
        for _ in range(steps):
            factor, variance = factor * keep, keep**2 * variance + step * sigma**2
    return factor, variance


@pytest.mark.parametrize("denoise", [False, True])
def test_langevin_follows_the_recursion(denoise):
    sigmas, start, n = geometric_levels(2.0, 0.2, 3).double(), 3.0, 20_000
    x = torch.full((n, 2), start, dtype=torch.float64)
    factor, variance = after_langevin(0.0, sigmas, 2, 0.6)
    last = TAU**2 / (TAU**2 + sigmas[-1].item() ** 2) if denoise else 1.0
    end = annealed_langevin(gaussian(), x, sigmas, 2, 0.6, denoise, torch.Generator().manual_seed(0)).flatten()
    assert abs(end.mean() - last * factor * start) < 4 * end.std() / (2 * n) ** 0.5
    assert abs(end.var() / (last**2 * variance) - 1) < 4 * (2 / (2 * n)) ** 0.5


def test_langevin_settles_at_the_known_bias():
    sigma, step, n = 0.8, 1.5, 20_000
    v = TAU**2 + sigma**2
    x = math.sqrt(v) * points(n)
    end = annealed_langevin(gaussian(), x, torch.tensor([sigma]), 25, step, False, torch.Generator().manual_seed(0))
    biased = v / (1 - step * sigma**2 / (4 * v))
    assert biased / v > 1.2 and abs(end.var() / biased - 1) < 4 * (1 / n) ** 0.5


def after_flow(sigmas, heun):
    "What the flow multiplies a start by, at a Gaussian of mean zero."
    levels, factor = [*sigmas.tolist(), 0.0], 1.0
    slope = lambda s: s / (TAU**2 + s**2)
    for a, b in zip(levels, levels[1:]):
        ahead = 1 + (b - a) * slope(a)
        factor *= 1 + (b - a) * 0.5 * (slope(a) + slope(b) * ahead) if heun and b > 0 else ahead
    return factor


@pytest.mark.parametrize("heun", [False, True])
def test_flow_steps_are_the_formula(heun):
    sigmas = geometric_levels(5.0, 0.1, 7).double()
    x = points(4)
    assert torch.allclose(probability_flow(gaussian(), x, sigmas, heun), after_flow(sigmas, heun) * x)
    moved = probability_flow(gaussian(mean=2.0), x + 2, sigmas, heun)
    assert torch.allclose(moved, after_flow(sigmas, heun) * x + 2)


def test_flow_ends_with_the_data_and_heun_needs_fewer_levels():
    exact = TAU / math.hypot(TAU, 50.0)
    errors = {h: [abs(after_flow(geometric_levels(50.0, 0.002, n), h) / exact - 1) for n in (20, 80)] for h in (False, True)}
    assert errors[False][1] < errors[False][0] / 3 and errors[True][1] < errors[True][0] / 9
    x = points(3)
    many = probability_flow(gaussian(), x, geometric_levels(50.0, 0.002, 400).double(), True)
    assert torch.allclose(many, exact * x, rtol=1e-3)


def test_variance_exploding_is_variance_preserving():
    "DDIM (Song et al., ICLR 2021, eq. 12) on x / sqrt(1 + sigma^2) takes the same steps."
    model, sigmas, x = mixture(), geometric_levels(8.0, 0.05, 9).double(), 8 * points(20)
    bars = [1 / (1 + s**2) for s in [*sigmas.tolist(), 0.0]]
    y = x * bars[0] ** 0.5
    for a, b in zip(bars, bars[1:]):
        clean = model.denoised(y / a**0.5, math.sqrt(1 / a - 1))
        noise = (y - a**0.5 * clean) / (1 - a) ** 0.5
        y = b**0.5 * clean + (1 - b) ** 0.5 * noise
    assert torch.allclose(probability_flow(model, x, sigmas), y, atol=1e-10)


def test_density_of_the_flow_is_exact_for_gaussians():
    sigmas, x = geometric_levels(200.0, 0.1, 300).double(), 0.7 * points(6, dim=5)
    got = flow_log_prob(gaussian(5), x, sigmas, torch.Generator().manual_seed(0))
    assert torch.allclose(got, gaussian(5).log_prob(x, 0.1), atol=0.01)


def test_density_of_the_flow_averages_to_that_of_a_mixture():
    sigmas, x = geometric_levels(60.0, 0.1, 200).double(), mixture().sample(20, 0.1, torch.Generator().manual_seed(1))
    many = x.repeat(100, 1)
    got = flow_log_prob(mixture(), many, sigmas, torch.Generator().manual_seed(0)).view(100, 20)
    gap, error = got.mean(0) - mixture().log_prob(x, 0.1), got.std(0) / 10
    assert (gap.abs() < 4 * error + 0.01).all() and gap.mean().abs() < 0.05 and error.max() > 0.005


class Nothing(nn.Module):
    def forward(self, x, noise_level):
        self.seen = x, noise_level
        return torch.zeros_like(x)


class Constant(nn.Module):
    def forward(self, x, noise_level):
        return torch.ones_like(x)


@pytest.mark.parametrize("even", [True, False])
def test_a_silent_network_is_the_best_denoiser_of_a_gaussian(even):
    net = Nothing()
    model = Denoiser(net, TAU, 5.0, 0.05, even)
    x, sigma = 3 * points(30), torch.logspace(-1, 0.5, 30, dtype=torch.float64)
    assert torch.allclose(model.denoised(x, sigma), gaussian().denoised(x, sigma))
    torch.manual_seed(0)
    data = TAU * points(200_000)
    ratio = math.log(5.0 / 0.05)  # log-uniform levels: the mean of TAU^2 / (TAU^2 + sigma^2) is an integral
    mean = (ratio - 0.5 * math.log((25 + TAU**2) / (0.0025 + TAU**2))) / ratio
    assert abs(model.loss(data)["denoising"] - (0.5 if even else 0.5 * mean)) < 0.005
    assert abs(net.seen[0].std() - 1) < 0.01
    assert net.seen[1].min() > math.log(0.05) / 4 - 1e-9 and net.seen[1].max() < math.log(5.0) / 4 + 1e-9


def test_what_the_network_is_asked_for_has_variance_one():
    model, sigma = Denoiser(Constant(), TAU), 0.6
    x, noisy = TAU * points(50_000), points(50_000, 1)
    noisy = x + sigma * noisy
    silent = gaussian().denoised(noisy, sigma)
    scale = (model.denoised(noisy, sigma) - silent)[0, 0]
    assert abs(((x - silent) / scale).var() - 1) < 0.02


def test_log_prob_of_an_image_counts_the_cells():
    "With the oracle of one round Gaussian, the sum over cells is nearly the density times their size."
    model = ScoreModel((1, 4, 4), 8, levels=64, depth=2, largest=100.0, smallest=0.05).double()
    oracle = Mixture(torch.zeros(1, 1, 4, 4, dtype=torch.float64), TAU)
    model.denoised = oracle.denoised
    v = torch.randint(10, 54, (7, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    edges = torch.stack([v, v + 1]).double() * (2 / 64) - 1
    low, high = Normal(torch.zeros((), dtype=torch.float64), math.hypot(TAU, 0.05)).cdf(edges)
    exact = (high - low).log().flatten(1).sum(1)
    got = torch.stack([model.log_prob(v, 160, torch.Generator().manual_seed(k)) for k in range(8)])
    assert ((got.mean(0) - exact).abs() < 4 * got.std(0) / 8**0.5 + 0.03).all()


def test_a_trained_model_draws_what_it_saw():
    torch.manual_seed(0)
    base = torch.randint(0, 2, (2, 1, 8, 8)) * 200 + 20
    model = ScoreModel((1, 8, 8), 8, depth=2, spread=0.8, largest=8.0, smallest=0.05)
    v = base[torch.arange(256) % 2]
    fit(model, v, steps=80, batch_size=32, lr=5e-3, seed=0)
    for by in ("ddim", "heun", "langevin"):
        drawn = model.sample(8, torch.Generator().manual_seed(0), 12, by)
        assert drawn.shape == (8, 1, 8, 8) and 0 <= drawn.min() and drawn.max() <= 1
        nearest = (drawn[:, None] - base[None] / 255).flatten(2).abs().mean(2).amin(1)
        assert nearest.mean() < 0.15, by
    assert torch.equal(model.sample(2, torch.Generator().manual_seed(5)), model.sample(2, torch.Generator().manual_seed(5)))
    assert (model.log_prob(v[:4], 12) > model.log_prob(torch.randint(0, 256, (4, 1, 8, 8)), 12)).all()


def test_numbers_follow_the_model_and_strange_ways_are_refused():
    model = ScoreModel((3, 8, 8), 8, levels=17, depth=2).double()
    v = torch.randint(0, 17, (5, 3, 8, 8), dtype=torch.uint8)
    assert model.log_prob(v, 4).shape == (5,) and model.log_prob(v, 4).dtype == torch.float64
    assert model.loss(v)["denoising"].dtype == torch.float64 and model.scaled(v).abs().max() < 1
    with pytest.raises(ValueError, match="expected 'ddim'"):
        model.sample(1, by="euler")


def test_a_silent_network_with_moments_is_the_best_denoiser_of_any_gaussian():
    torch.manual_seed(0)
    v = (torch.randn(500, 16) @ torch.randn(16, 16) * 6 + torch.arange(16.0) * 8 + 60).clamp(0, 255).long().view(-1, 1, 4, 4)
    model = WienerScore((1, 4, 4), 8, depth=2).double()
    model.net = Nothing()
    model.net.register_parameter("dtype", nn.Parameter(torch.zeros((), dtype=torch.float64)))
    torch.manual_seed(1)
    model.learn_moments(v)
    torch.manual_seed(1)
    x = model.scaled(v).flatten(1)
    mean, C, sigma = x.mean(0), torch.cov(x.T), 0.4
    noisy = x + sigma * torch.randn_like(x)
    best = mean + (noisy - mean) @ torch.linalg.inv(C + sigma**2 * torch.eye(16)) @ C
    assert torch.allclose(model.denoised(noisy.view(-1, 1, 4, 4), sigma).flatten(1), best, atol=1e-8)
    left = (C - C @ torch.linalg.inv(C + sigma**2 * torch.eye(16)) @ C).trace() / 16
    assert torch.allclose(model.error(torch.full((1, 1, 1, 1), sigma, dtype=torch.float64)).square().squeeze(), left)


@pytest.mark.parametrize("by", ["ddim", "heun", "langevin"])
def test_a_sample_begins_at_the_largest_noise(by):
    model, seen = ScoreModel((1, 8, 8), 8, depth=2, largest=7.0), []
    model.denoised = lambda x, sigma: seen.append((x, sigma)) or torch.zeros_like(x)
    model.sample(200, torch.Generator().manual_seed(0), 5, by)
    assert abs(seen[0][0].std() - 7) < 0.2 and abs(seen[0][1] - 7) < 1e-4
