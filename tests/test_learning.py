"""Learning of energies: gradients against known Z, score matching against closed forms, RBM and AIS against enumeration."""
import math

import pytest
import torch
from torch import nn
from zoo import binary_states

from densegen.energy.energy import EnergyModel, QuadratureEBM, energy_net
from densegen.energy.learning import (
    RBM,
    ContrastiveDivergence,
    Learner,
    NoiseContrast,
    annealed_importance,
    conv_energy_net,
    denoising_score_matching,
    rbm_path,
    score_matching,
    sliced_score_matching,
)
from densegen.energy.samplers import HMC, MALA, Gibbs, Langevin, ReplayBuffer, Sampler
from densegen.flows.bijections import StandardNormal
from densegen.workbench.training import fit


class Oracle(Sampler):
    "Exact samples of a model that has them."

    def __init__(self, model):
        self.model = model

    def sample(self, energy, init, steps, generator=None, trace=False):
        return self.model.sample(len(init), generator)


def gradient(loss, model):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def test_gap_of_exact_samples_has_the_gradient_of_the_likelihood():
    model, x = QuadratureEBM(2, width=8, points=64), torch.randn(100_000, 2).clamp(-3, 3)
    exact = gradient(sum(model.loss(x).values()), model)
    sampled = gradient(ContrastiveDivergence(Oracle(model), 1)(model, x)["gap"], model)
    assert (sampled - exact).norm() < 0.05 * exact.norm()


def test_a_step_pushes_energy_down_at_the_data_and_up_at_the_samples():
    data, dreams = torch.full((16, 2), 1.0), torch.full((16, 2), -1.0)
    objective = ContrastiveDivergence(Langevin(0.1), 1)
    objective.samples = lambda model, x: dreams
    model = EnergyModel(energy_net(2, 8))
    with torch.no_grad():
        before = model.energy(data).mean(), model.energy(dreams).mean()
    gap = objective(model, data)["gap"]
    assert torch.isclose(gap, before[0] - before[1])
    gap.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad
    assert model.energy(data).mean() < before[0] and model.energy(dreams).mean() > before[1]


def test_bias_of_contrastive_divergence_falls_with_the_steps():
    model, x = QuadratureEBM(2, width=16, limit=5.0, points=64), 0.4 * torch.randn(20_000, 2) + 1
    exact = gradient(sum(model.loss(x).values()), model)
    error = {}
    for k in (1, 200):
        got = gradient(ContrastiveDivergence(MALA(0.02), k)(model, x)["gap"], model)
        error[k] = ((got - exact).norm() / exact.norm()).item()
    assert error[1] > 0.5 and error[200] < 0.2


def test_samples_carry_no_gradient_and_the_buffer_moves():
    buffer = ReplayBuffer(16, (2,), reinit=0.0)
    before = buffer.states.clone()
    objective = ContrastiveDivergence(Langevin(0.1), 2, "buffer", buffer, penalty=0.5)
    terms = objective(EnergyModel(energy_net(2, 4)), torch.zeros(8, 2))
    assert set(terms) == {"gap", "penalty"} and terms["penalty"] >= 0
    moved = (buffer.states != before).any(1).sum()
    assert 1 <= moved <= 8


def test_the_penalty_is_on_both_sides():
    "Energies of 3 at the data and 2 at the samples: 0.5 (9 + 4), of the squares of each and not of the gap."
    data, dreams = torch.full((6, 1), 3.0), torch.full((4, 1), 2.0)
    objective = ContrastiveDivergence(Langevin(0.1), 1, penalty=0.5)
    objective.samples = lambda model, x: dreams
    model = EnergyModel(nn.Identity(), bowl=None)
    terms = objective(model, data)
    assert terms["gap"] == 1.0 and terms["penalty"] == 6.5
    dreams[0] = 4.0  # the mean of squares, not the square of a mean
    assert objective(model, data)["penalty"] == 0.5 * (9 + 7)


def test_noise_starts_are_fresh():
    buffer = ReplayBuffer(4, (2,), fresh=lambda n, shape, g=None, like=None: torch.full((n, *shape), 5.0))
    stay = Langevin(1e-12)
    model = EnergyModel(energy_net(2, 4))
    got = ContrastiveDivergence(stay, 1, "noise", buffer).samples(model, torch.zeros(3, 2))
    assert torch.allclose(got, torch.full((3, 2), 5.0), atol=1e-4)


@pytest.mark.parametrize("options", [("sky",), ("buffer",), ("noise",)])
def test_starts_are_named(options):
    with pytest.raises(ValueError, match="expected 'data', or 'buffer' or 'noise' with a buffer"):
        ContrastiveDivergence(Langevin(0.1), 1, *options)


def test_resumed_training_equals_uninterrupted_with_its_buffer(tmp_path):
    data = torch.randn(64, 2)

    def learner():
        torch.manual_seed(3)
        buffer = ReplayBuffer(32, (2,))
        return Learner(EnergyModel(energy_net(2, 8)), ContrastiveDivergence(Langevin(0.05), 3, "buffer", buffer))

    def run(steps, **kw):
        model = learner()
        torch.manual_seed(4)
        fit(model, data, steps=steps, batch_size=16, seed=0, **kw)
        return model.state_dict()

    whole = run(12)
    run(6, checkpoint=tmp_path / "a.ckpt")
    resumed = run(12, checkpoint=tmp_path / "a.ckpt")
    assert all(torch.equal(whole[k], resumed[k]) for k in whole) and "objective.buffer.states" in whole


# score matching
class Quadratic(nn.Module):
    def __init__(self):
        super().__init__()
        self.A = nn.Parameter(torch.tensor([[1.5, 0.2], [0.2, 0.7]], dtype=torch.float64))

    def energy(self, x):
        return 0.5 * torch.einsum("bi,ij,bj->b", x, self.A, x)


def gaussian_data(n=400_000):
    C = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)
    return torch.randn(n, 2, dtype=torch.float64) @ torch.linalg.cholesky(C).T, C


def test_sliced_score_matching_is_its_closed_form():
    "For a quadratic energy: tr(A C A) / 2 - tr(A)."
    x, C = gaussian_data()
    model = Quadratic()
    known = 0.5 * torch.trace(model.A @ C @ model.A) - torch.trace(model.A)
    assert abs(sliced_score_matching(model, x) - known) < 0.01


def test_score_matching_is_its_closed_form_and_the_mean_of_sliced():
    x, C = gaussian_data()
    model = Quadratic()
    known = 0.5 * torch.trace(model.A @ C @ model.A) - torch.trace(model.A)
    assert abs(score_matching(model, x) - known) < 0.01
    net, points = EnergyModel(energy_net(3, 8)).double(), torch.randn(40, 3, dtype=torch.float64)
    many = points.repeat(5000, 1)
    assert abs(sliced_score_matching(net, many) - score_matching(net, points)) < 0.02


def test_score_matching_takes_images_and_has_a_gradient():
    model = EnergyModel(conv_energy_net(1, 4, 4), bowl=None)
    loss = score_matching(model, torch.randn(3, 1, 4, 4))
    assert loss.shape == () and gradient(loss, model).norm() > 0


def test_denoising_score_matching_is_its_closed_form():
    "For a quadratic energy: E|eps - sigma A (x + sigma eps)|^2 / 2."
    x, C = gaussian_data()
    model, sigma, eye = Quadratic(), 0.5, torch.eye(2, dtype=torch.float64)
    B = eye - sigma**2 * model.A
    known = 0.5 * (torch.trace(B @ B.T) + sigma**2 * torch.trace(model.A @ C @ model.A.T))
    assert abs(denoising_score_matching(model, x, sigma) - known) < 0.01


def test_scores_do_not_need_a_constant():
    x = torch.randn(10, 2)
    plain, shifted = EnergyModel(energy_net(2, 4)), EnergyModel(energy_net(2, 4))
    shifted.load_state_dict(plain.state_dict())
    shifted.energy = lambda x: plain.energy(x) + 100
    for objective in (score_matching, sliced_score_matching, denoising_score_matching):
        torch.manual_seed(0)
        a = objective(plain, x)
        torch.manual_seed(0)
        assert torch.allclose(a, objective(shifted, x), atol=1e-4)


def test_noise_contrast_is_minimal_at_the_normalized_density():
    "Data N(0, I), energy |x|^2 / 2: the slope by log_z vanishes at log Z = log 2 pi."
    model = EnergyModel(nn.Sequential(nn.Flatten(), nn.Linear(2, 1, bias=False)), bowl=1.0)
    nn.init.zeros_(model.net[1].weight)
    contrast, x = NoiseContrast(StandardNormal(2)), torch.randn(100_000, 2)
    contrast.log_z.data.fill_(math.log(2 * math.pi))
    (slope,) = torch.autograd.grad(contrast(model, x), contrast.log_z)
    assert abs(slope) < 1e-3
    contrast.log_z.data.fill_(1.0)
    (slope,) = torch.autograd.grad(contrast(model, x), contrast.log_z)
    assert slope < -0.1


# RBM
def machine(visible=6, hidden=5):
    rbm = RBM(visible, hidden).double()
    with torch.no_grad():
        for p in rbm.parameters():
            p.normal_()
    return rbm


@pytest.mark.parametrize("visible, hidden", [(6, 5), (4, 7)])
def test_rbm_sums_to_one_whichever_side_is_enumerated(visible, hidden):
    rbm = machine(visible, hidden)
    assert torch.allclose(rbm.log_prob(binary_states(visible)).exp().sum(), torch.ones((), dtype=torch.float64))


def test_free_energy_sums_out_the_hidden_units():
    rbm, v, h = machine(), binary_states(6), binary_states(5)
    joint = v @ rbm.b[:, None] + h @ rbm.c + v @ rbm.W @ h.T
    assert torch.allclose(-rbm.energy(v), joint.logsumexp(1))


def test_rbm_gibbs_leaves_its_distribution_invariant():
    rbm = machine(4, 3).float()
    v, n = binary_states(4).float(), 200_000
    p = rbm.log_prob(v).exp().double().detach()
    drawn = v[torch.multinomial(p, n, replacement=True)]
    code = (rbm.gibbs(drawn) * 2 ** torch.arange(4)).sum(1).long()
    found = torch.bincount(code, minlength=16).double()
    assert ((found - n * p).square() / (n * p)).sum() < 44.3  # 1 - 1e-4 quantile, 15 degrees


def test_rbm_likelihood_has_the_gradient_of_the_gap():
    "log Z differentiates to the model's expectation: the identity, by enumeration."
    rbm, x = machine(), binary_states(6)[[3, 17, 40]]
    direct = gradient(sum(rbm.loss(x).values()), rbm)
    p = rbm.log_prob(binary_states(6)).exp().detach()
    by_hand = gradient(rbm.energy(x).mean() - (p * rbm.energy(binary_states(6))).sum(), rbm)
    assert torch.allclose(direct, by_hand, atol=1e-10)


def test_large_rbm_says_what_to_do():
    for ask in (lambda rbm: rbm.log_partition(), lambda rbm: rbm.loss(torch.zeros(1, 20))):
        with pytest.raises(ValueError, match="expected up to 18 on one side; got 20; use AIS"):
            ask(RBM(20, 20))


@pytest.mark.parametrize("visible, hidden, says", [(64, 18, "exact"), (3, 64, "exact"), (19, 19, "unnormalized"), (64, 64, "unnormalized")])
def test_rbm_says_what_it_can_compute(visible, hidden, says):
    rbm, v = RBM(visible, hidden), torch.randint(2, (4, visible)).float()
    assert rbm.log_prob_is == says
    constant = rbm.log_prob(v) + rbm.energy(v)
    assert torch.allclose(constant, -rbm.log_partition() if says == "exact" else torch.zeros(4), atol=1e-3)


def test_ais_agrees_with_enumeration():
    rbm = machine(12, 8).float()
    bias = torch.zeros(12)
    path, log_z = rbm_path(rbm, bias, 1000)
    assert torch.allclose(path[0].log_partition(), log_z, atol=1e-4)
    init = torch.bernoulli(torch.full((500, 12), 0.5))
    got, error = annealed_importance(path, init, log_z, Gibbs())
    assert abs(got - rbm.log_partition()) < 0.1 and error < 0.1


def test_ais_on_a_continuous_energy():
    "From N(0, 4 I) to a double well, whose Z quadrature knows."
    target = lambda x: (x[:, 0].square() - 1).square() + x[:, 1].square()
    base = lambda x: x.square().sum(1) / 8
    mix = lambda t: lambda x: (1 - t) * base(x) + t * target(x)
    path = [mix(k / 100) for k in range(101)]
    got, error = annealed_importance(path, 2 * torch.randn(2000, 2), math.log(8 * math.pi), HMC(0.2, 3))
    grid = torch.linspace(-4, 4, 2001, dtype=torch.float64)
    known = math.log(torch.trapezoid(torch.exp(-(grid**2 - 1) ** 2), grid) * math.sqrt(math.pi))
    assert abs(got - known) < max(4 * error, 0.05)


def test_convolutional_energies_take_images():
    x = torch.randn(2, 3, 16, 16)
    assert EnergyModel(conv_energy_net(3, 16, 4), bowl=None).energy(x).shape == (2,)
    assert conv_energy_net(3, 16, 4, outputs=10)(x).shape == (2, 10)


def test_the_path_to_a_machine_begins_at_coins_with_their_bias():
    rbm, bias = machine(5, 4), torch.tensor([2.0, -1.0, 0.5, 3.0, -2.0], dtype=torch.float64)
    path, log_z = rbm_path(rbm, bias, 10)
    assert torch.allclose(path[0].log_partition(), log_z, atol=1e-4)
    shares = path[0].log_prob(binary_states(5)).exp() @ binary_states(5)
    assert torch.allclose(shares, bias.sigmoid(), atol=1e-6)
    assert torch.allclose(path[-1].log_partition(), rbm.log_partition(), atol=1e-6)
