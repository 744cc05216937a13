"Continuous flows against closed forms: Gaussians, a mixture, the Jacobian's trace, scipy's solver, and peers where they are."

import itertools
import math
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn
from torch.distributions import Independent, MixtureSameFamily, Normal

from densegen.families.diffusion import Diffusion
from densegen.flows.bijections import Flow, StandardNormal, reference_ladj
from densegen.flows.continuous import (
    PATHS,
    ContinuousFlow,
    FlowMatching,
    ImageFlowMatching,
    SolverFailed,
    VectorField,
    divergence,
    dormand_prince,
    integrate,
    on_path,
    optimal_order,
    probe_signs,
    straightness,
    walk,
)

MEAN = torch.tensor([1.5, -0.5, 0.2], dtype=torch.float64)
VARIANCE = torch.tensor([2.0, 0.3, 0.02], dtype=torch.float64)
LAW = Independent(Normal(MEAN, VARIANCE.sqrt()), 1)
CENTRES = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [0.0, -1.5]], dtype=torch.float64)
MIXTURE = MixtureSameFamily(
    torch.distributions.Categorical(torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)),
    Independent(Normal(CENTRES, 0.4), 1),
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def scalars(path, t):
    "alpha, sigma and their slopes by formula and by differences, not by the code under test."
    t = t.double()
    alpha = {"straight": lambda s: s, "circle": lambda s: torch.sin(s * math.pi / 2)}[path]
    sigma = {"straight": lambda s: 1 - s, "circle": lambda s: torch.cos(s * math.pi / 2)}[path]
    slope = lambda f: (f(t + 1e-6) - f(t - 1e-6)) / 2e-6
    return alpha(t), sigma(t), slope(alpha), slope(sigma)


def gaussian_field(path, mean=MEAN, c=VARIANCE):
    def field(x, t):
        a, s, da, ds = (v[:, None] for v in scalars(path, t))
        return da * mean + (a * da * c + s * ds) / (a**2 * c + s**2) * (x - a * mean)

    return field


def mixture_field(path):
    "The mean velocity of three Gaussians, by the posterior of the component."

    def field(x, t):
        a, s, da, ds = (v[:, None, None] for v in scalars(path, t))
        spread, away = a**2 * 0.16 + s**2, x[:, None] - a * CENTRES
        each = da * CENTRES + (a * da * 0.16 + s * ds) / spread * away
        chance = (MIXTURE.mixture_distribution.logits - 0.5 * away.square().sum(2) / spread[..., 0]).softmax(1)
        return (chance[..., None] * each).sum(1)

    return field


@pytest.mark.parametrize("path", PATHS)
def test_paths_begin_at_noise_end_at_data_and_move_as_they_say(path):
    noise, x = normal(50, 3), normal(50, 3, seed=1)
    for t, there in ((0.0, noise), (1.0, x)):
        assert torch.allclose(on_path(path, noise, x, torch.full((50,), t).double())[0], there, atol=1e-12)
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    place, velocity = on_path(path, noise, x, t)
    a, s, da, ds = (v[:, None] for v in scalars(path, t))
    assert torch.allclose(place, a * x + s * noise) and torch.allclose(velocity, da * x + ds * noise, atol=1e-7)


@pytest.mark.parametrize("path", PATHS)
def test_gaussian_to_gaussian(path):
    flow = Flow(ContinuousFlow(gaussian_field(path), 1e-7), StandardNormal(3).double())
    z = normal(30, 3)
    x = MEAN + VARIANCE.sqrt() * z
    assert torch.allclose(flow.decode(z), x, atol=1e-5) and torch.allclose(flow.encode(x), z, atol=1e-5)
    assert torch.allclose(flow.log_prob(x), LAW.log_prob(x), atol=1e-5)
    ladj = flow.bijection.inverse(z)[1]
    assert torch.allclose(ladj, 0.5 * VARIANCE.log().sum().expand(30), atol=1e-5)
    half = flow.bijection.moved(z, 0.0, 0.5)
    a, s, *_ = scalars(path, torch.tensor(0.5))
    spread = a**2 * VARIANCE + s**2
    assert torch.allclose(half.state[0], a * MEAN + spread.sqrt() * z, atol=1e-5)
    assert torch.allclose(half.state[1], 0.5 * spread.log().sum().expand(30), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_the_mean_field_of_a_mixture_carries_noise_to_it(path):
    flow = Flow(ContinuousFlow(mixture_field(path), 1e-6), StandardNormal(2).double())
    x = 2 * normal(200, 2)
    assert torch.allclose(flow.log_prob(x), MIXTURE.log_prob(x), atol=1e-4)


def drawn(model, n, seed=0):
    "The loss of a model on n points of the mixture, and the points."
    torch.manual_seed(seed)
    x = MIXTURE.sample((n,))
    return model.loss(x)["matching"], x


@pytest.mark.parametrize("path", PATHS)
def test_loss_is_that_of_the_mean_field_plus_the_conditional_variance_with_its_gradient(path):
    torch.manual_seed(0)
    model = FlowMatching(VectorField(2, 8, 1), 2, path).double()
    parameters, u = list(model.parameters()), mixture_field(path)
    flat = lambda value: torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)])
    gaps, slopes, of_mean, constants = [], [], [], []
    for seed in range(40):
        value, x = drawn(model, 1000, seed)
        t, noise = torch.rand(1000, dtype=torch.float64), torch.randn(1000, 2, dtype=torch.float64)  # other draws
        place, velocity = on_path(path, noise, x, t)
        marginal = (model.bijection.field(place, t) - u(place, t)).square().mean()
        constants.append((velocity - u(place, t)).square().mean().item())
        gaps.append((value - marginal).item())
        slopes.append(flat(value))
        of_mean.append(flat(marginal))
    gap, constant = torch.tensor(gaps), torch.tensor(constants)
    error = ((gap.var() + constant.var()) / 40).sqrt()
    assert (gap.mean() - constant.mean()).abs() < 4 * error < 0.1 * constant.mean()
    apart = torch.stack(slopes) - torch.stack(of_mean)
    assert (apart.mean(0).abs() < 4.5 * apart.std(0) / 40**0.5).all()
    signal = torch.stack(of_mean).mean(0)
    assert apart.mean(0).norm() < 0.2 * signal.norm()  # decided with room: the gradient itself is far larger


class Given(nn.Module):
    "A field that is a function."

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, t):
        return self.function(x, t)


@pytest.mark.parametrize("path", PATHS)
def test_loss_is_least_at_the_mean_field(path):
    best = mixture_field(path)
    at = lambda function: drawn(FlowMatching(Given(function), 2, path).double(), 20_000)[0].item()
    least = at(best)
    assert at(lambda x, t: best(x, t) + 0.1) > least + 0.005
    assert at(lambda x, t: 1.1 * best(x, t)) > least + 0.005
    assert at(lambda x, t: -best(x, t)) > least + 0.1
    assert at(lambda x, t: best(x, 1 - t)) > least + 0.1


class Recorder(nn.Module):
    "A field that answers zero and keeps what it was asked."

    def forward(self, x, t):
        self.seen = x, t
        return torch.zeros_like(x)


def test_each_item_has_its_own_noise_and_its_own_time():
    model = FlowMatching(Recorder(), 3).double()
    torch.manual_seed(0)
    model.loss(torch.zeros(2000, 3, dtype=torch.float64))
    x, t = model.bijection.field.seen
    noise = x / (1 - t)[:, None]
    assert len(t.unique()) == 2000 and len(noise[:, 0].unique()) == 2000 and len(noise[0].unique()) == 3
    assert (noise.T.cov() - torch.eye(3)).abs().max() < 0.15 and noise.mean(0).abs().max() < 0.1
    assert abs(t.mean() - 0.5) < 0.03 and abs(t.var() - 1 / 12) < 0.01


def test_optimal_order_is_the_best_of_all():
    for seed in range(5):
        noise, x = normal(5, 1, 2, seed=seed), normal(5, 1, 2, seed=seed + 50)
        cost = lambda order: (noise[list(order)] - x).square().sum()
        best = min(itertools.permutations(range(5)), key=cost)
        assert optimal_order(noise, x).tolist() == list(best)


def test_transport_sorts_the_noise_of_the_place_and_of_the_target():
    model = FlowMatching(Recorder(), 2, pairs="optimal").double()
    x = 3 * normal(64, 2, seed=3)
    torch.manual_seed(1)
    value = model.loss(x)["matching"]
    place, t = model.bijection.field.seen
    torch.manual_seed(1)
    fresh = torch.randn(64, 2, dtype=torch.float64)
    used = (place - t[:, None] * x) / (1 - t)[:, None]
    sort = lambda a: a[a[:, 0].argsort()]
    assert torch.allclose(sort(used), sort(fresh))  # all of them, each once
    assert (used - x).square().sum() < 0.6 * (fresh - x).square().sum()
    assert torch.allclose(used, fresh[optimal_order(fresh, x)])
    assert torch.allclose(value, (x - used).square().mean())


def test_given_pairs_are_kept():
    model = FlowMatching(Recorder(), 2).double()
    x, noise = normal(30, 2), normal(30, 2, seed=9)
    value = model.loss((x, noise))["matching"]
    place, t = model.bijection.field.seen
    assert torch.allclose(place, t[:, None] * x + (1 - t)[:, None] * noise)
    assert torch.allclose(value, (x - noise).square().mean())


def test_divergence_is_the_trace_of_the_jacobian():
    torch.manual_seed(0)
    field = VectorField(4, 16).double()
    x, t = normal(6, 4), torch.rand(6, dtype=torch.float64)
    jacobians = [torch.autograd.functional.jacobian(lambda v: field(v[None], s[None])[0], y) for y, s in zip(x, t)]
    trace = torch.stack([J.trace() for J in jacobians])
    u, exact = divergence(field, x, t, probe_signs(x, 0))
    assert torch.allclose(u, field(x, t)) and torch.allclose(exact, trace)
    many_x = x.repeat(2000, 1)
    guesses = divergence(field, many_x, t.repeat(2000), probe_signs(many_x, 1, seeded(3)))[1].detach().reshape(2000, 6)
    assert ((guesses.mean(0) - trace).abs() < 4.5 * guesses.std(0) / 2000**0.5).all()
    off = torch.stack([(J + J.T).fill_diagonal_(0).square().sum() / 2 for J in jacobians])
    assert torch.allclose(guesses.var(0), off, rtol=0.2)
    many = divergence(field, x, t, probe_signs(x, 100, seeded(0)))[1]
    assert ((many - trace).abs() < 5 * (off / 100).sqrt()).all()


def test_ladj_is_that_of_the_full_jacobian_in_both_directions():
    torch.manual_seed(0)
    field = VectorField(3, 16).double()
    for p in field.parameters():
        nn.init.normal_(p, std=0.5)
    flow, x = ContinuousFlow(field, 1e-7), normal(2, 3)
    for inverse in (False, True):
        ladj = (flow.inverse if inverse else flow)(x)[1]
        assert ladj.abs().min() > 1e-3
        assert torch.allclose(ladj, reference_ladj(flow, x, inverse=inverse), atol=1e-5)
    z, there = flow(x)
    back, here = flow.inverse(z)
    assert torch.allclose(back, x, atol=1e-5) and torch.allclose(there, -here, atol=1e-5)


def test_probes_estimate_the_density_without_bias():
    torch.manual_seed(0)
    field = VectorField(6, 16).double()
    for p in field.parameters():
        nn.init.normal_(p, std=0.4)
    x = normal(1, 6).expand(3000, 6)
    exact = ContinuousFlow(field, 1e-7)(x[:1])[1]
    one = ContinuousFlow(field, 1e-5, probes=1).moved(x, 1.0, 0.0, generator=seeded(3)).state[1].detach()
    assert one.std() > 0.05 and abs(one.mean() - exact) < 4 * one.std() / 3000**0.5
    assert ContinuousFlow(field).exact and not ContinuousFlow(field, probes=1).exact
    assert FlowMatching(field, 6).log_prob_is == "exact" and FlowMatching(field, 6, probes=2).log_prob_is == "estimate"


def test_density_with_random_weights_integrates_to_one():
    torch.manual_seed(1)
    flow = FlowMatching(VectorField(2, 16), 2, tolerance=1e-3)
    for p in flow.parameters():
        nn.init.normal_(p, std=0.35)
    line = (torch.arange(100) + 0.5) / 6.25 - 8
    with torch.no_grad():
        z = torch.randn(500, 2, generator=seeded())
        assert (flow.decode(z) - z).abs().mean() > 0.1  # it does something
        mass = flow.log_prob(torch.cartesian_prod(line, line)).exp().sum() / 6.25**2
    assert abs(mass - 1) < 2e-3


def test_gradients_run_through_the_solver():
    torch.manual_seed(0)
    flow = FlowMatching(VectorField(2, 8, 1), 2, tolerance=1e-9).double()
    x, weight = normal(3, 2), flow.bijection.field.net[0].weight
    (slope,) = torch.autograd.grad(flow.log_prob(x).sum(), weight)
    with torch.no_grad():
        values = []
        for step in (1e-5, -2e-5):
            weight[2, 1] += step
            values.append(flow.log_prob(x).sum())
    assert abs((values[0] - values[1]) / 2e-5 - slope[2, 1]) < 1e-5 * max(1, abs(slope[2, 1]))


SPIN = torch.tensor([[-0.3, -4.0], [4.0, -0.3]], dtype=torch.float64)


def turning(t, state):
    return [state[0] @ SPIN.T * (1 + math.sin(3 * t)) + math.cos(t)]


def reference(y, end, start=0.0):
    f = lambda t, v: turning(t, [torch.tensor(v)])[0].numpy()
    return torch.tensor(solve_ivp(f, (start, end), y.numpy(), "DOP853", rtol=1e-13, atol=1e-13).y[:, -1])


@pytest.mark.parametrize(("tolerance", "end"), [(1e-2, 2.0), (1e-5, 2.0), (1e-8, 2.0), (1e-6, -1.0)])
def test_solver_does_what_scipy_does(tolerance, end):
    y = torch.tensor([1.0, 0.5], dtype=torch.float64)
    ours = integrate(turning, [y[None]], 0.0, end, tolerance)
    theirs = solve_ivp(lambda t, v: turning(t, [torch.tensor(v)])[0].numpy(), (0, end), y.numpy(), "RK45",
                       rtol=tolerance, atol=tolerance, first_step=0.05 * abs(end))
    assert ours.evaluations == theirs.nfev
    assert (ours.state[0][0] - torch.tensor(theirs.y[:, -1])).abs().max() < 1e-11
    assert ours.refused == (theirs.nfev - 1) // 6 - (len(theirs.t) - 1)
    error = (ours.state[0][0] - reference(y, end)).abs().max()
    assert error < 100 * tolerance and ours.error[0].min() > 0


def test_order_of_a_step():
    y, worst, guessed = torch.tensor([[1.0, 0.5]], dtype=torch.float64), [], []
    for h in (0.1, 0.05):
        new, last, error = dormand_prince(turning, 0.3, h, [y], turning(0.3, [y]))
        worst.append((new[0][0] - reference(y[0], 0.3 + h, 0.3)).norm().item())
        guessed.append(error[0].norm().item())
        assert torch.allclose(last[0], turning(0.3 + h, new)[0])
    assert 5.5 < math.log2(worst[0] / worst[1]) < 6.7  # a step errs by h^6, a way of steps by h^5
    assert 4.6 < math.log2(guessed[0] / guessed[1]) < 5.6  # the embedded method by h^5
    errors = []
    for n in (40, 80):
        state = [y]
        for k in range(n):
            state = dormand_prince(turning, k * 2 / n, 2 / n, state, turning(k * 2 / n, state))[0]
        errors.append((state[0][0] - reference(y[0], 2.0)).norm().item())
    assert 4.5 < math.log2(errors[0] / errors[1]) < 5.5


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_order_and_evaluations_of_equal_steps(method, order):
    calls = []

    def field(x, t):
        calls.append(t[0].item())
        return turning(t[0].item(), [x])[0]

    y, errors = torch.tensor([[1.0, 0.5]], dtype=torch.float64), []
    for n in (400, 800):
        calls.clear()
        errors.append((walk(field, y, 0.0, 1.0, n, method)[0] - reference(y[0], 1.0)).norm().item())
        assert len(calls) == n
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.15
    with pytest.raises(ValueError, match="even"):
        walk(field, y, 0.0, 1.0, 3 if order == 2 else 0, method)


def test_a_field_that_cannot_be_followed_is_an_error():
    with pytest.raises(SolverFailed, match="NaN"):
        integrate(lambda t, s: [s[0] * math.nan], [torch.ones(1, 1)], 0.0, 1.0)
    with pytest.raises(SolverFailed, match="evaluations"):
        integrate(lambda t, s: [s[0].square()], [torch.ones(1, 1, dtype=torch.float64)], 0.0, 2.0)  # infinite at 1


def test_the_worst_item_decides_the_step():
    calm, wild = torch.zeros(99, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    slope = lambda t, s: [s[0] @ SPIN.T * 3]
    together = integrate(slope, [torch.cat([calm, wild])], 0.0, 1.0, 1e-6)
    assert together.evaluations == integrate(slope, [wild], 0.0, 1.0, 1e-6).evaluations


def test_straightness_of_known_fields():
    noise = normal(200, 2)
    assert straightness(lambda x, t: torch.ones_like(x) * 3, noise) < 1e-12
    grow = straightness(lambda x, t: x, noise)  # ways e^t z: the speed is not constant
    t = (torch.arange(50) / 50).double()
    assert abs(grow - ((math.e - 1 - t.exp()).square().mean() / (math.e - 1) ** 2)) < 1e-3


def test_circle_is_the_diffusion_of_part_1():
    torch.manual_seed(0)
    model = ImageFlowMatching((1, 8, 8), width=4, path="circle")
    for p in model.parameters():
        nn.init.normal_(p, std=0.1)
    net = model.bijection.field.network
    part1 = Diffusion((1, 8, 8), network=lambda x, t: -2 / math.pi * net(x, part1.log_snr[t]), clip=False)
    when, x, noise = torch.tensor([40, 300, 600, 950]), torch.rand(4, 1, 8, 8) * 2 - 1, torch.randn(4, 1, 8, 8)
    t = 1 - (-part1.log_snr[when] / 2).exp().atan() * 2 / math.pi
    place, velocity = on_path("circle", noise, x, t)
    alpha, sigma = part1.mix(when, x)
    assert torch.allclose(place, part1.noised(x, when, noise), atol=1e-5)
    assert torch.allclose(velocity, -math.pi / 2 * (alpha * noise - sigma * x), atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(model.bijection.field(place, t), -math.pi / 2 * part1.prediction(place, when), atol=1e-3)


def test_images_have_a_loss_samples_and_a_cost():
    torch.manual_seed(0)
    model = ImageFlowMatching((1, 4, 4), width=4, levels=16, tolerance=1e-2)
    v = torch.randint(16, (3, 1, 4, 4), dtype=torch.uint8)
    x = model.scaled(v)
    assert ((x + 1) * 8).floor().equal(v.float()) and x.min() >= -1 and x.max() < 1
    assert model.loss(v)["matching"].shape == () and model.log_prob_is == "estimate"
    # a fresh U-Net answers zero: the identity, whose cost is the normal's of the scaled image
    with torch.no_grad():
        value, same = model.log_prob(v, 1, seeded(5)), model.scaled(v, seeded(5))
        expected = Normal(0.0, 1.0).log_prob(same).flatten(1).sum(1) + 16 * math.log(2 / 16)
        assert torch.allclose(value, expected, atol=1e-4)
        samples = model.sample(5, seeded(1), evaluations=2)
        assert torch.allclose(samples, (torch.randn(5, 1, 4, 4, generator=seeded(1)) / 2 + 0.5).clamp(0, 1))
        several = model.log_prob(v, 2, seeded(2))
        g = seeded(2)
        each = torch.stack([model.log_prob(v, 1, g) for _ in range(2)])
    assert torch.allclose(several, each.logsumexp(0) - math.log(2), atol=1e-4)
    assert ImageFlowMatching((1, 4, 4), width=4, probes=0).log_prob_is == "exact"


def test_unknown_settings_are_refused():
    for settings in ({"path": "zigzag"}, {"pairs": "random"}):
        with pytest.raises(ValueError, match=r"zigzag|random"):
            FlowMatching(VectorField(2), 2, **settings)
    with pytest.raises(ValueError, match="shape"):
        FlowMatching(VectorField(2), 2).log_prob(torch.zeros(4, 3))


@pytest.mark.skipif(not find_spec("zuko"), reason="peer zuko is not installed")
def test_agrees_with_zuko():
    torch.manual_seed(0)
    field = VectorField(3, 16).double()
    for p in field.parameters():
        nn.init.normal_(p, std=0.5)
    slope = lambda t, x: field(x, t.expand(len(x)))
    peer = import_module("zuko").transforms.FreeFormJacobianTransform(slope, 0.0, 1.0, atol=1e-10, rtol=1e-10)
    z = normal(5, 3)
    theirs, their_ladj = peer.call_and_ladj(z)
    x, ladj = ContinuousFlow(field, 1e-9).inverse(z)
    assert torch.allclose(x, theirs, atol=1e-6) and torch.allclose(ladj, their_ladj, atol=1e-6)


@pytest.mark.skipif(not (find_spec("torchcfm") and find_spec("ot")), reason="peer torchcfm is not installed")
def test_agrees_with_torchcfm():
    peer = import_module("torchcfm")
    noise, x, t = normal(32, 2), normal(32, 2, seed=1), torch.rand(32, generator=seeded(2), dtype=torch.float64)
    for path, matcher in (("straight", peer.ConditionalFlowMatcher(0.0)),
                          ("circle", peer.VariancePreservingConditionalFlowMatcher(0.0))):
        _, place, velocity = matcher.sample_location_and_conditional_flow(noise, x, t)
        ours = on_path(path, noise, x, t)
        assert torch.allclose(ours[0], place) and torch.allclose(ours[1], velocity)
    plan = import_module("torchcfm.optimal_transport").OTPlanSampler("exact").get_map(noise, x)
    theirs = torch.as_tensor(plan).argmax(0)  # the noise of each x
    assert optimal_order(noise, x).tolist() == theirs.tolist()
