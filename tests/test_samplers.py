"""Samplers against known truths; wrong samplers must fail the same test."""
import math

import pytest
import torch
from torch import nn
from zoo import binary_states

from densegen.energy.energy import EnergyModel, box_grid, energy_net
from densegen.energy.samplers import (
    HMC,
    MALA,
    Annealed,
    Gibbs,
    Ising,
    Langevin,
    RandomWalk,
    ReplayBuffer,
    Sampler,
    Tempered,
    leapfrog,
    value_and_gradient,
)
from densegen.workbench.data import density2d
from densegen.workbench.diagnostics import standard_scores


class Gaussian:
    "Correlated, not centred, in several dimensions."

    def __init__(self, dim: int):
        root = torch.linspace(0.5, 1.5, dim).diag() + 0.3
        self.mean, self.covariance = torch.linspace(-1, 1, dim), root @ root.T
        self.precision = torch.linalg.inv(self.covariance)
        self.shape = (dim,)

    def energy(self, x):
        return 0.5 * torch.einsum("bi,ij,bj->b", x - self.mean, self.precision, x - self.mean)

    def quantities(self, x):
        c = x - self.mean
        return torch.cat([x, (c[..., :, None] * c[..., None, :]).flatten(-2)], -1)

    def truth(self):
        return torch.cat([self.mean, self.covariance.flatten()])


class Plane:
    "A density in the plane; expectations by quadrature. Quantities: moments, and the share of the right half."

    def __init__(self, energy, limit=5.0):
        self.energy, self.shape = energy, (2,)
        cells, _ = box_grid(2, limit, 400)
        mass = torch.softmax(-energy(cells).double(), 0)
        self.expected = (mass[:, None] * self.quantities(cells)).sum(0)

    def quantities(self, x):
        a, b = x[..., 0], x[..., 1]
        return torch.stack([a, b, a * a, b * b, a * b, (a > 0.3).to(x.dtype)], -1)

    def truth(self):
        return self.expected


def mixture(x):
    "Two modes with weights 0.3 and 0.7."
    centres = torch.tensor([[-1.5, 0.5], [1.5, -0.5]], dtype=x.dtype)
    scaled = ((x[:, None] - centres) / 0.8).square().sum(2)
    return -torch.logsumexp(torch.tensor([0.3, 0.7], dtype=x.dtype).log() - 0.5 * scaled, 1)


def funnel_like(x):
    "A banana: not symmetric, not log-concave."
    return 0.5 * x[:, 0].square() + 2 * (x[:, 1] - 0.5 * x[:, 0].square() + 1).square()


TARGETS = {
    "gaussian 2-d": lambda: Gaussian(2),
    "gaussian 6-d": lambda: Gaussian(6),
    "mixture": lambda: Plane(mixture),
    "banana": lambda: Plane(funnel_like, 9.0),
    "two moons": lambda: Plane(lambda x: -density2d("two_moons").log_prob(x), 4.0),
}
EXACT = {
    "random walk": RandomWalk(0.7),
    "mala": MALA(0.1),
    "hmc": HMC(0.25, 6),
    "tempered": Tempered(HMC(0.25, 4), (1.0, 2.5)),
}


def worst_score(sampler, target, steps, chains=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    init = torch.randn(chains, *target.shape, generator=generator)
    trace = sampler.sample(target.energy, init, steps, generator, trace=True)
    return standard_scores(target.quantities(trace.states[steps // 4 :]), target.truth()).abs().max().item()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sampler", EXACT)
def test_exact_samplers_have_the_moments_and_modes(sampler, target):
    steps = 250 if target == "two moons" else 1600
    assert worst_score(EXACT[sampler], TARGETS[target](), steps) < 4


@pytest.mark.parametrize("target", ["gaussian 2-d", "mixture"])
def test_small_unadjusted_steps_are_right_within_errors(target):
    assert worst_score(Langevin(0.004), TARGETS[target](), 4000, chains=32) < 4


WRONG = {
    "large step without acceptance": Langevin(0.3),
    "noise of another temperature": Langevin(0.02, noise=math.sqrt(0.02)),
    "double noise": Langevin(0.02, noise=2 * math.sqrt(0.04)),
}


@pytest.mark.parametrize("sampler", WRONG)
def test_wrong_samplers_fail(sampler):
    assert worst_score(WRONG[sampler], Gaussian(2), 2000) > 4


def test_hmc_with_a_broken_acceptance_fails(monkeypatch):
    from densegen.energy import samplers

    monkeypatch.setattr(samplers, "_metropolis", lambda ratio, old, new, g: (ratio > -torch.inf, list(new)))
    assert worst_score(HMC(0.9, 3), Gaussian(2), 1500) > 4


def test_annealing_ends_at_the_target_itself():
    seen = []

    class Spy(Sampler):
        def step(self, energy, x, memory, generator):
            seen.append(energy(torch.ones(1, 1)).item())
            return x, None, torch.ones(len(x), dtype=torch.bool)

    Annealed(Spy(), 8.0).sample(lambda x: x.sum(1), torch.zeros(2, 1), 4)
    assert seen == pytest.approx([1 / 8, 1 / 4, 1 / 2, 1])


def test_annealing_crosses_a_barrier():
    far = lambda x: -torch.logaddexp(-8 * (x[:, 0] - 3).square(), -8 * (x[:, 0] + 3).square()) + x[:, 1].square()
    init, g = torch.tensor([-3.0, 0.0]).expand(200, 2), torch.Generator().manual_seed(0)
    stuck = HMC(0.15, 6).sample(far, init, 300, g)
    free = Annealed(HMC(0.15, 6), 100.0).sample(far, init, 300, g)
    assert (stuck[:, 0] > 0).sum() == 0 and 0.2 < (free[:, 0] > 0).float().mean() < 0.8
    assert free.abs().max() < 5


# Hamiltonian dynamics
def double_well(x):
    return (x[:, 0].square() - 1).square() + 0.5 * (x[:, 1] - 0.3 * x[:, 0]).square()


def test_leapfrog_is_reversible_and_of_second_order():
    x, r = torch.randn(2, 20, 2, dtype=torch.float64)
    value, slope = value_and_gradient(double_well, x)
    drift = []
    for count in (20, 40, 80):
        x1, r1, end, steep = leapfrog(double_well, x, r, slope, 1 / count, count)
        drift.append((end + 0.5 * r1.square().sum(1) - value - 0.5 * r.square().sum(1)).abs().max())
        x0, r0, *_ = leapfrog(double_well, x1, -r1, steep, 1 / count, count)
        assert torch.allclose(x0, x, atol=1e-10) and torch.allclose(r0, -r, atol=1e-10)
    assert 3.5 < drift[0] / drift[1] < 4.5 and 3.5 < drift[1] / drift[2] < 4.5


def test_mala_accepts_like_langevin_proposals_by_hand():
    "HMC with one leapfrog has the Metropolis ratio of Gaussian proposals around x - step grad."
    step, x = 0.3, torch.randn(10, 2, dtype=torch.float64)
    h = math.sqrt(2 * step)
    value, slope = value_and_gradient(double_well, x)
    r = torch.randn_like(x)
    y, end, there, steep = leapfrog(double_well, x, r, slope, h, 1)
    by_energy = value - there + 0.5 * r.square().sum(1) - 0.5 * end.square().sum(1)
    assert torch.allclose(y, x - step * slope + h * r)
    log_q = lambda to, start, gradient: -(to - start + step * gradient).square().sum(1) / (4 * step)
    by_hand = value - there + log_q(x, y, steep) - log_q(y, x, slope)
    assert torch.allclose(by_energy, by_hand, atol=1e-10)


# discrete
@pytest.mark.parametrize("side, coupling, field", [(2, 0.5, 0.1), (4, 0.4, 0.0), (4, -0.3, 0.2)])
def test_transfer_matrix_equals_enumeration(side, coupling, field):
    model, states = Ising(side, coupling, field), (2 * binary_states(side * side) - 1).view(-1, side, side)
    assert torch.allclose(model.log_partition(), torch.logsumexp(-model.energy(states), 0), atol=1e-9)
    assert torch.allclose(model.log_prob(states).exp().sum(), torch.ones((), dtype=torch.float64), atol=1e-9)


def ising_scores(model, truth_model):
    def quantities(x):
        m, E = x.mean((-1, -2)), truth_model.energy(x.reshape(-1, 4, 4)).view(x.shape[:-2])
        corner = x[..., 0, 0] * x[..., 1, 2]
        return torch.stack([m, m * m, E, corner, (m > 0.2).to(x.dtype)], -1)

    states = (2 * binary_states(16) - 1).view(-1, 4, 4)
    p = truth_model.log_prob(states).exp()
    truth = (p[:, None] * quantities(states)).sum(0)
    generator = torch.Generator().manual_seed(0)
    init = 2.0 * torch.randint(2, (128, 4, 4), generator=generator) - 1
    trace = Gibbs().sample(model, init, 1500, generator, trace=True)
    return standard_scores(quantities(trace.states[100:]), truth).abs()


@pytest.mark.parametrize("coupling, field", [(0.2, 0.0), (0.35, 0.1), (-0.3, 0.2)])
def test_gibbs_agrees_with_all_states(coupling, field):
    model = Ising(4, coupling, field)
    assert ising_scores(model, model).max() < 4


def test_gibbs_without_the_checkerboard_fails():
    class Hasty(Ising):
        def gibbs(self, x, generator=None):
            self.black = torch.ones_like(self.black)
            return super().gibbs(x, generator)

    assert ising_scores(Hasty(4, 0.35, 0.1), Ising(4, 0.35, 0.1)).max() > 4


def test_one_gibbs_step_leaves_the_distribution_invariant():
    "The kernel itself, not an average: exact draws stay exact draws, cell by cell of a 2x2 torus (chi-square)."
    model, states = Ising(2, 0.3, 0.1), (2 * binary_states(4) - 1).view(-1, 2, 2).float()
    p, n = model.log_prob(states.double()).exp(), 200_000
    drawn = states[torch.multinomial(p, n, replacement=True)]
    code = ((model.gibbs(drawn).flatten(1) > 0) * 2 ** torch.arange(4)).sum(1)
    found = torch.bincount(code, minlength=16).double()
    assert ((found - n * p).square() / (n * p)).sum() < 44.3  # 1 - 1e-4 quantile of chi-square with 15 degrees


# the common signature
ALL = {**EXACT, "langevin": Langevin(0.01), "annealed": Annealed(MALA(0.01))}


@pytest.mark.parametrize("name", ALL)
def test_one_signature(name):
    model = EnergyModel(energy_net(3, 8))
    init = torch.randn(5, 3)
    before = init.clone()
    draw = lambda **kw: ALL[name].sample(model, init, 4, torch.Generator().manual_seed(1), **kw)
    trace = draw(trace=True)
    assert trace.states.shape == (4, 5, 3) and trace.accepted.shape == (4, 5) and 0 <= trace.acceptance <= 1
    assert torch.equal(draw(), trace.states[-1]) and torch.equal(init, before)
    assert not draw().requires_grad and all(p.grad is None for p in model.parameters())
    assert torch.allclose(draw(), ALL[name].sample(model.energy, init, 4, torch.Generator().manual_seed(1)))
    with torch.no_grad():
        assert torch.equal(draw(), trace.states[-1])


@pytest.mark.parametrize("name", ALL)
def test_images_and_double_precision(name):
    energy = lambda x: 0.5 * x.square().flatten(1).sum(1)
    x = ALL[name].sample(energy, torch.zeros(3, 2, 4, 4, dtype=torch.float64), 2)
    assert x.shape == (3, 2, 4, 4) and x.dtype == torch.float64


@pytest.mark.parametrize("name", EXACT)
def test_chains_do_not_leave_the_domain(name):
    "Energies of infinity and NaN are never accepted."
    half = lambda x: torch.where(x[:, 0] > 0, x[:, 0], torch.inf) + 0.5 * x[:, 1].square()
    broken = lambda x: torch.where(x[:, 0] > 0, half(x), torch.nan)
    for energy in (half, broken):
        trace = EXACT[name].sample(energy, torch.ones(20, 2), 100, trace=True)
        assert (trace.states[..., 0] > 0).all() and trace.acceptance > 0.1


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("chains", [1, 6])
@pytest.mark.parametrize(
    "energy",
    [lambda x: x.square().sum(), lambda x: x.square().mean(), lambda x: x.square().sum(1, keepdim=True), lambda x: x.square()],
    ids=["sum", "mean", "column", "entries"],
)
def test_energies_are_one_number_for_each_chain(name, chains, energy):
    "A mean over the batch divides every slope by the number of chains: another temperature, silently."
    with pytest.raises(ValueError, match=r"energy: expected one number for each chain, \[\d+\]; got \[.*not over the chains"):
        ALL[name].sample(energy, torch.randn(chains, 2), 3)


def test_a_slope_wants_one_number_for_each_row():
    with pytest.raises(ValueError, match=r"expected one number for each chain, \[4\]; got \[\]"):
        value_and_gradient(lambda x: x.mean(), torch.randn(4, 2))


@pytest.mark.parametrize("name", ALL)
def test_one_chain_is_a_chain(name):
    draw = lambda n: ALL[name].sample(lambda x: x.square().sum(1), torch.zeros(n, 2), 3, torch.Generator().manual_seed(0))
    assert draw(1).shape == (1, 2) and draw(1).isfinite().all()


@pytest.mark.parametrize("name", ALL)
def test_inference_mode_changes_nothing(name):
    model = EnergyModel(energy_net(3, 8))
    draw = lambda init: ALL[name].sample(model, init, 4, torch.Generator().manual_seed(1), trace=True).states
    wanted = draw(torch.ones(5, 3))
    with torch.inference_mode():
        assert draw(torch.ones(5, 3)).equal(wanted)
        value, slope = value_and_gradient(model.energy, torch.ones(5, 3))
    assert slope.equal(value_and_gradient(model.energy, torch.ones(5, 3))[1]) and not value.requires_grad


def test_gibbs_and_the_buffer_under_inference_mode():
    buffer = ReplayBuffer(6, (4, 4), fresh=lambda n, shape, g=None, like=None: torch.ones(n, *shape))
    with torch.inference_mode():
        states, index = buffer.draw(3)
        buffer.store(Gibbs().sample(Ising(4), states, 2), index)
    assert (buffer.states.abs() == 1).all()


@pytest.mark.parametrize("leapfrogs", [0, -1])
def test_a_ball_that_does_not_roll_is_refused(leapfrogs):
    with pytest.raises(ValueError, match="leapfrogs: expected at least 1, or no chain moves; got"):
        HMC(0.1, leapfrogs)


@pytest.mark.parametrize("name", ["random walk", "mala", "hmc", "tempered"])
def test_energies_of_hundreds_keep_their_decimals_in_bfloat16(name):
    """Rounded to bfloat16, two energies of hundreds differ by an even number.

    Gradients and positions in that format cost 0.12 to 0.20 of the acceptance here; rounded energies 0.27 to 0.31.
    """
    model = EnergyModel(energy_net(3, 8), bowl=1.0)
    with torch.no_grad():
        model.net[0].bias.fill_(300.0)
        model.net[-1].weight.fill_(0.5)
    share = lambda m, x: ALL[name].sample(m, x, 200, torch.Generator().manual_seed(1), trace=True).acceptance
    start = torch.randn(40, 3)
    assert model.bfloat16().energy(start.bfloat16()).dtype == torch.float32
    rough, fine = share(model, start.bfloat16()), share(model.float(), start)
    assert abs(rough - fine) < 0.25


@pytest.mark.parametrize("init, steps", [(torch.zeros(3), 1), (torch.full((2, 2), torch.nan), 1), (torch.zeros(2, 2), 0)])
def test_bad_starts_are_named(init, steps):
    with pytest.raises(ValueError, match="expected a finite start of shape"):
        MALA(0.1).sample(lambda x: x.sum(1), init, steps)


def test_gibbs_wants_a_model_with_conditionals():
    with pytest.raises(TypeError, match="expected a model with a method gibbs"):
        Gibbs().sample(lambda x: x.sum(1), torch.zeros(2, 2), 1)


@pytest.mark.parametrize("ladder", [(2.0, 4.0), (1.0, 4.0, 2.0), (1.0, 1.0)])
def test_ladders_start_at_one_and_rise(ladder):
    with pytest.raises(ValueError, match="expected 1 and then rising"):
        Tempered(MALA(0.1), ladder)


def test_odd_tori_are_refused():
    with pytest.raises(ValueError, match="even"):
        Ising(3)
    with pytest.raises(ValueError, match="up to 10"):
        Ising(12).log_partition()


# the buffer
def test_buffer_goes_on_where_chains_stopped():
    buffer = ReplayBuffer(10, (2,), reinit=0.0)
    states, index = buffer.draw(4)
    assert torch.equal(states, buffer.states[index])
    buffer.store(states + 1, index)
    assert torch.equal(buffer.states[index], states + 1)


def test_buffer_starts_a_share_anew():
    buffer = ReplayBuffer(100, (3,), reinit=0.25, fresh=lambda n, shape, g=None, like=None: torch.full((n, *shape), 7.0))
    buffer.states.zero_()
    states, _ = buffer.draw(20_000)
    assert abs((states[:, 0] == 7).float().mean() - 0.25) < 0.02


def test_buffer_is_saved_with_the_model():
    model = nn.ModuleDict({"buffer": ReplayBuffer(4, (1, 2, 2))})
    other = nn.ModuleDict({"buffer": ReplayBuffer(4, (1, 2, 2))})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other["buffer"].states, model["buffer"].states)
    assert model.double()["buffer"].draw(3)[0].dtype == torch.float64


# acceptance, by hand
def accepted_by_hand(sampler, energy, x, log_ratio):
    "One step of a sampler, and who should have moved: the same uniform numbers, the ratio worked out from scratch."
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    u = torch.rand(len(x), generator=generator, dtype=x.dtype)
    proposal, ratio = log_ratio(noise)
    trace = sampler.sample(energy, x, 1, torch.Generator().manual_seed(5), trace=True)
    wanted = u < ratio.exp()
    assert trace.accepted[0].equal(wanted) and 0.1 < wanted.double().mean() < 0.9
    assert torch.allclose(trace.states[0], torch.where(wanted[:, None], proposal, x), atol=1e-10)


def slope(energy, x):
    return torch.func.grad(lambda x: energy(x).sum())(x)


def test_the_random_walk_accepts_by_the_ratio_of_densities():
    x = 1.5 * torch.randn(2000, 2, dtype=torch.float64)

    def ratio(noise):
        y = x + 1.3 * noise
        return y, mixture(x) - mixture(y)

    accepted_by_hand(RandomWalk(1.3), mixture, x, ratio)


def test_mala_accepts_by_densities_and_both_proposals():
    "min(1, p(y) q(x | y) / p(x) q(y | x)) with Gaussian q around x - step grad (Roberts, Tweedie 1996)."
    step, x = 0.35, torch.randn(2000, 2, dtype=torch.float64)

    def ratio(noise):
        y = x - step * slope(double_well, x) + math.sqrt(2 * step) * noise
        log_q = lambda to, start: -(to - start + step * slope(double_well, start)).square().sum(1) / (4 * step)
        return y, double_well(x) - double_well(y) + log_q(x, y) - log_q(y, x)

    accepted_by_hand(MALA(step), double_well, x, ratio)


def test_hmc_accepts_by_the_total_energy():
    h, x = 0.6, torch.randn(2000, 2, dtype=torch.float64)

    def ratio(r):
        y, end = x, r
        for _ in range(4):
            half = end - 0.5 * h * slope(double_well, y)
            y = y + h * half
            end = half - 0.5 * h * slope(double_well, y)
        total = lambda x, r: double_well(x) + 0.5 * r.square().sum(1)
        return y, total(x, r) - total(y, end)

    accepted_by_hand(HMC(h, 4), double_well, x, ratio)


def test_tempered_chains_trade_places_by_the_product_of_differences():
    "Two temperatures, copies that do not move: the swap is accepted with min(1, exp((1 - 1/T) (E_cold - E_hot)))."

    class Still(Sampler):
        def step(self, energy, x, memory, generator):
            return x, None, torch.ones(len(x), dtype=torch.bool)

    energy, n = lambda x: x[:, 0], 20_000
    tempered, cold, hot = Tempered(Still(), (1.0, 4.0)), torch.zeros(n, 1), torch.full((1, n, 1), 1.0)
    x, _, _ = tempered.step(energy, cold, hot, torch.Generator().manual_seed(0))
    assert abs((x == 1).double().mean() - math.exp(-0.75)) < 0.015
    x, _, _ = tempered.step(energy, cold + 2, hot, torch.Generator().manual_seed(0))
    assert (x == 1).all()
def test_langevin_knows_the_temperature_that_it_samples():
    "Of a standard normal at temperature T the variance is T."
    assert Langevin(0.3).temperature == pytest.approx(1)
    sampler = Langevin(0.01, noise=0.2)
    assert sampler.temperature == pytest.approx(2)
    energy = lambda x: 0.5 * x.square().sum(1)
    x = sampler.sample(energy, 1.4 * torch.randn(4000, 2), 400, torch.Generator().manual_seed(0))
    assert x.var().item() == pytest.approx(sampler.temperature, rel=0.08)


def test_a_sweep_reaches_every_site():
    "In a field that leaves no choice, one sweep turns all spins."
    for field in (-50.0, 50.0):
        assert (Ising(4, 0.3, field).gibbs(torch.full((2, 4, 4), -math.copysign(1, field))) == math.copysign(1, field)).all()
