"""Flow contrast: signs and directions. Recovery likelihood: levels, chains and slopes against closed forms of Gaussians."""
import math

import pytest
import torch
from torch import nn

from densegen.energy.energy import QuadratureEBM
from densegen.energy.learning import NoiseContrast
from densegen.energy.recovery import FlowContrast, LevelEnergies, LevelNet, NoisyNormal, RecoveryLikelihood, film
from densegen.energy.samplers import Langevin
from densegen.flows.bijections import Affine, Flow, StandardNormal
from densegen.flows.coupling import RealNVP

RATIOS = torch.tensor([0.3, 1.0, 3.0], dtype=torch.float64)
LINE = LevelEnergies(nn.Identity(), (1,), RATIOS)
V = 0.2  # variance of the data
VARIANCES = LINE.share[:-1] * V + 1 - LINE.share[:-1]


class Parabola(nn.Module):
    "k |x|^2 / 2 with one k for each level."

    def __init__(self, k):
        super().__init__()
        self.k = nn.Parameter(k.clone())

    def forward(self, x, level):
        return 0.5 * self.k[level][:, None] * x.square().flatten(1).sum(1, keepdim=True)


def recovery(k, steps, step=0.1, penalty=0.0):
    return RecoveryLikelihood(Parabola(k), (1,), RATIOS, Langevin(step), steps, penalty=penalty)


def after(steps, k, t, first, step=0.1):
    "Mean and variance of a chain from `first` on k x^2 / 2 + (x - first)^2 / (2 kappa^2), step in units of kappa."
    kappa = LINE.kappa[t]
    P = 1 + k * kappa**2
    left = (1 - step * P) ** steps
    return first * (1 - k * kappa**2 / P * (1 - left)), kappa**2 / P * (1 - left**2) / (1 - step * P / 2)


def test_the_two_players_of_flow_contrast_have_opposite_signs():
    torch.manual_seed(0)
    flow, model, x = RealNVP(2, layers=2, width=8).double(), QuadratureEBM(width=8, points=8).double(), torch.randn(50, 2)
    for p in flow.parameters():
        nn.init.normal_(p, std=0.3)
    found = []
    for kind in (NoiseContrast, FlowContrast):
        contrast = kind(flow).double()
        torch.manual_seed(1)
        loss = contrast(model, x.double())
        parts = ([*model.parameters(), contrast.log_z], list(flow.parameters()))
        slopes = [torch.autograd.grad(loss, part, retain_graph=True) for part in parts]
        found.append((loss, *(torch.cat([s.flatten() for s in part]) for part in slopes)))
    (loss, energy, noise), (same, equal, opposite) = found
    assert loss == same and torch.equal(energy, equal)
    assert noise.norm() > 0 and torch.allclose(noise, -opposite, atol=1e-12)


class Truth(nn.Module):
    "The energy of N(0, I), with its constant."

    def energy(self, x):
        return 0.5 * x.square().sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi)


@pytest.mark.parametrize("shift", [-1.0, 0.7])
def test_the_flow_walks_towards_the_data(shift):
    "A step down the loss brings a shifted normal back; at the truth there is no pull."
    torch.manual_seed(0)
    for at, wanted in ((shift, math.copysign(1, shift)), (0.0, 0.0)):
        flow = Flow(Affine(1, at), StandardNormal(1)).double()
        loss = FlowContrast(flow)(Truth(), torch.randn(20_000, 1).double())
        slope = torch.autograd.grad(loss, flow.bijection.shift)[0].item()
        assert slope * wanted > 0.1 if wanted else abs(slope) < 0.02


def test_levels_shrink_the_data_and_keep_the_variance():
    torch.manual_seed(0)
    data = 2 + math.sqrt(V) * torch.randn(150_000, 1).double()
    level = torch.arange(3).repeat(50_000)
    x, noisy = LINE.pair(data, level)
    assert torch.allclose(LINE.share[1:], 1 / (1 + RATIOS**2)) and LINE.share[0] == 1
    for t in range(3):
        a, b = x[level == t, 0], noisy[level == t, 0]
        assert abs(a.mean() - 2 * LINE.share[t].sqrt()) < 0.02 and abs(a.var() - VARIANCES[t]) < 0.02
        later = LINE.share[t + 1]
        assert abs(b.mean() - 2 * later.sqrt()) < 0.02 and abs(b.var() - (later * V + 1 - later)) < 0.02
        assert abs(((a - a.mean()) * (b - b.mean())).mean() - LINE.keep[t] * VARIANCES[t]) < 0.02


def test_the_conditional_is_the_joint_density():
    "E(x) and the density of the next state given x add up to it, whatever x, at mixed levels."
    model, level = recovery(1 / VARIANCES, 1), torch.tensor([0, 1, 2, 1])
    noisy, keep = torch.randn(4, 1).double(), LINE.keep[level]
    step = torch.distributions.Normal
    gaps = []
    for x in torch.randn(5, 4, 1).double():
        log_step = step(keep * x[:, 0], (1 - keep**2).sqrt()).log_prob(noisy[:, 0])
        log_prior = step(0.0, VARIANCES[level].sqrt()).log_prob(x[:, 0])
        gaps.append(model.conditional(noisy, level)(x) + log_step + log_prior)
    assert torch.stack(gaps).std(0).max() < 1e-12


@pytest.mark.parametrize("steps", [1, 6])
def test_chains_have_the_moments_of_the_closed_form(steps):
    model, n = recovery(1.4 / VARIANCES, steps), 60_000
    level, g = torch.arange(3).repeat(n // 3), torch.Generator().manual_seed(steps)
    x = model.recover(LINE.keep[level][:, None] * 0.8, level, g).detach()
    for t in range(3):
        mean, variance = after(steps, 1.4 / VARIANCES[t], t, 0.8)
        error = math.sqrt(variance / (n / 3))
        assert abs(x[level == t].mean() - mean) < 4 * error
        assert abs(x[level == t].var() / variance - 1) < 0.05


def test_a_trace_ends_where_the_chain_ends():
    model, level, noisy = recovery(1 / VARIANCES, 5), torch.tensor([2, 0]), torch.ones(2, 1).double()
    g = lambda: torch.Generator().manual_seed(0)
    trace = model.recover(noisy, level, g(), trace=True)
    assert trace.shape == (5, 2, 1) and torch.equal(trace[-1], model.recover(noisy, level, g()))
    assert model.recover(noisy, level, g(), steps=2, trace=True).shape == (2, 2, 1)


def test_the_slope_of_the_loss_is_known_at_each_level():
    torch.manual_seed(0)
    k, n = 1.5 / VARIANCES, 120_000
    model = recovery(k, 4)
    (slope,) = torch.autograd.grad(model.loss(math.sqrt(V) * torch.randn(n, 1).double())["gap"], model.net.k)
    for t in range(3):
        factor, variance = after(4, k[t], t, 1.0)
        second = factor**2 * (VARIANCES[t] + LINE.kappa[t] ** 2) + variance
        assert abs(3 * slope[t] - 0.5 * (VARIANCES[t] - second)) < 0.02 * VARIANCES[t]


def test_the_penalty_is_of_the_answers_and_not_of_the_base():
    base = lambda x, share: 1e3 + x.flatten(1).sum(1)
    zero = LevelNet((1, 4, 4), 3)
    nn.init.zeros_(zero.last.weight)
    model = RecoveryLikelihood(zero, (1, 4, 4), RATIOS.float(), Langevin(0.1), 1, base, penalty=1.0)
    assert model.loss(torch.randn(4, 1, 4, 4))["penalty"] == 0
    assert recovery(1 / VARIANCES, 1, penalty=1.0).loss(torch.ones(9, 1).double())["penalty"] > 0


def test_a_film_has_the_variance_that_its_chains_must_give():
    steps, step = 8, 0.1
    model, g = recovery(1 / VARIANCES, steps, step), torch.Generator().manual_seed(0)
    states, variance = film(model, 40_000, g), 1.0
    assert len(states) == 4 and not states[-1].requires_grad and abs(states[0].var() - 1) < 0.03
    for t, state in zip((2, 1, 0), states[1:]):
        k, first = 1 / VARIANCES[t], variance / LINE.keep[t] ** 2
        factor, own = after(steps, k, t, 1.0, step)
        variance = factor**2 * first + own
        if t == 0:  # and the step without noise
            left = 1 - step * (1 + k * LINE.kappa[0] ** 2)
            variance = (left * factor + step) ** 2 * first + left**2 * own
        assert abs(state.var() / variance - 1) < 0.04, t


def test_samples_follow_their_generator():
    model = RecoveryLikelihood(LevelNet((1, 8, 8), 3, 4, 8), (1, 8, 8), RATIOS.float(), Langevin(0.1), 2)
    first, same, other = (model.sample(3, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert first.shape == (3, 1, 8, 8) and torch.equal(first, same) and not torch.equal(first, other)
    assert all(p.grad is None for p in model.parameters())


def test_the_base_is_a_normal_seen_through_noise():
    torch.manual_seed(0)
    x = torch.randn(300, 3).double() @ torch.randn(3, 3).double() + 1
    base = NoisyNormal(x, rank=2)
    for share in (1.0, 0.4, 0.01):
        covariance = share * x.T.cov() + (1 - share) * torch.eye(3)
        truth = torch.distributions.MultivariateNormal(math.sqrt(share) * x.mean(0), covariance)
        assert (base(x, torch.full((300,), share)) + truth.log_prob(x)).std() < 1e-6
    with pytest.raises(ValueError, match="rank"):
        NoisyNormal(x, rank=3)


def test_the_network_hears_the_level_and_no_neighbour():
    torch.manual_seed(0)
    net, x = LevelNet((1, 8, 8), 3, 4, 8), torch.randn(4, 1, 8, 8)
    answers = net(x, torch.tensor([0, 1, 2, 0]))
    assert answers.shape == (4, 1) and net(x[:1], torch.tensor([0])) != net(x[:1], torch.tensor([1]))
    assert torch.allclose(answers[2:3], net(x[2:3], torch.tensor([2])), atol=1e-6)
    nn.init.ones_(net.local.weight)
    for part, slope in zip([*net.told, net.local], torch.autograd.grad(net(x[:1], torch.tensor([1])),
                                                                       [*net.told.parameters(), net.local.weight])):
        assert slope[1].norm() > 0 and slope[0].norm() == slope[2].norm() == 0, part


def test_the_base_is_taken_at_the_share_of_its_level_and_has_a_factor_there():
    "Of three levels at once: parabolas of the noisy variances, times what was learned."
    base = lambda x, share: 0.5 * x[:, 0].square() / (share * V + 1 - share)
    model = RecoveryLikelihood(Parabola(0 * VARIANCES), (1,), RATIOS, Langevin(0.1), 1, base).double()
    model.gain.data = torch.tensor([0.0, 0.1, -0.2], dtype=torch.float64)
    energies = model.energy(torch.ones(3, 1).double(), torch.arange(3))
    assert torch.allclose(energies, 0.5 / VARIANCES * torch.tensor([0.0, 1.0, -2.0]).exp())
