"Flows that are no bijections: what each layer contributes, what is exact, and what a bound misses."
import math

import pytest
import torch
from zoo import randomized

from densegen.flows.bijections import Affine, Bijection, StandardNormal, no_change
from densegen.flows.coupling import Coupling, RealNVP
from densegen.flows.surjections import AbsoluteValue, Augment, Slice, SurjectiveFlow

F64 = torch.float64


def normal(x, mean=0.0, std=1.0):
    u, std = (x - mean) / std, torch.as_tensor(std, dtype=F64)
    return -0.5 * (u.square() + math.log(2 * math.pi)) - std.log()


LAYERS = {"slice": (lambda: Slice(5, 3), 3), "augment": (lambda: Augment(3, 2), 3),
          "fold": (lambda: AbsoluteValue(3, width=8), 3), "fair fold": (lambda: AbsoluteValue(3), 3)}


@pytest.mark.parametrize("make, dim", LAYERS.values(), ids=LAYERS)
def test_where_a_direction_is_computed_the_way_there_and_back_cancels(make, dim):
    torch.manual_seed(0)
    layer, start = randomized(make(), 0.5).double(), torch.rand(40, dim, dtype=F64)
    there, back = (layer, layer.inverse) if layer.log_prob_is == "bound" else (layer.inverse, layer)
    middle, first = there(start)
    end, second = back(middle)
    assert first.shape == (40,) and first.abs().min() > 0
    assert torch.allclose(end, start, atol=1e-12) and torch.allclose(first, -second, atol=1e-12)


def test_a_slice_is_the_latent_and_a_gaussian_told_by_it():
    torch.manual_seed(0)
    layer, x = randomized(Slice(3, 1), 0.5).double(), torch.randn(20, 3, dtype=F64)
    u, t = layer.net(x[:, :1]).chunk(2, 1)  # noise = rest e^tanh(u) + t
    told = normal(x[:, 1:], -t * torch.exp(-u.tanh()), torch.exp(-u.tanh())).sum(1)
    flow = SurjectiveFlow(layer, shape=3, base=StandardNormal(1).double())
    assert torch.allclose(flow.log_prob(x), normal(x[:, 0]) + told, atol=1e-12)


class Lean(Bijection):
    "x ~ N(0, 4), and a given x ~ N(0.6 x, 0.64)."

    def forward(self, x, context=None):
        return torch.stack([x[:, 0] / 2, (x[:, 1] - 0.6 * x[:, 0]) / 0.8], 1), no_change(x) - math.log(1.6)


def test_the_bound_of_an_augmented_gaussian_misses_the_kl():
    torch.manual_seed(0)
    flow = SurjectiveFlow(Augment(1, 1), Lean(), shape=1, base=StandardNormal(2)).double()
    x = torch.tensor([0.0, 1.5, -2.5], dtype=F64)
    kl = math.log(0.8) + (1 + (0.6 * x).square()) / (2 * 0.64) - 0.5
    with torch.no_grad():
        missed = normal(x, 0.0, 2.0) - flow.log_prob(x.repeat(20_000)[:, None]).view(-1, 3)
        many = normal(x, 0.0, 2.0) - flow.log_prob(x.repeat(500)[:, None], samples=100).view(-1, 3)
    assert ((missed.mean(0) - kl) / missed.std(0) * math.sqrt(20_000)).abs().max() < 4.5
    assert (many.mean(0) < 0.2 * kl).all() and (many.mean(0) > -0.02).all()


def added(seed=0):
    torch.manual_seed(seed)
    flow = SurjectiveFlow(Augment(2, 1, 8), RealNVP(3, 4, 8).bijection, shape=2, base=StandardNormal(3))
    return randomized(flow, 0.4).double()


def marginal(flow, x):
    a = torch.linspace(-12, 12, 401, dtype=F64)
    pairs = torch.cat([x.repeat_interleave(401, 0), a.repeat(len(x))[:, None]], 1)
    rest = SurjectiveFlow(*flow.parts[1:], shape=3, base=flow.base)
    return rest.log_prob(pairs).view(-1, 401).logsumexp(1) + (a[1] - a[0]).log()


def test_the_exponential_of_the_bound_has_the_exact_density_as_its_mean():
    flow, x = added(), torch.tensor([[0.3, -0.5], [1.0, 1.2]], dtype=F64)
    with torch.no_grad():
        exact = marginal(flow, x)
        draws = flow.log_prob(x.repeat(30_000, 1)).view(-1, 2)
        tight = flow.log_prob(x.repeat(500, 1), samples=60).view(-1, 2)
    ratio = (draws - exact).exp()
    assert ((ratio.mean(0) - 1) / ratio.std(0) * math.sqrt(30_000)).abs().max() < 4.5
    assert (draws.mean(0) < exact).all() and (draws.mean(0) < tight.mean(0)).all()
    assert ((tight - exact).mean(0).abs() < 0.5 * (draws - exact).mean(0).abs()).all()


def test_samples_of_an_augmented_flow_have_its_exact_density():
    flow = added(1)
    t = torch.linspace(-9, 9, 73, dtype=F64)
    grid = torch.cartesian_prod(t, t)
    with torch.no_grad():
        p = marginal(flow, grid).exp() * (t[1] - t[0]) ** 2
        x = flow.sample(20_000)
    assert x.shape == (20_000, 2) and abs(p.sum() - 1) < 1e-3
    for values, exact in ((x, p @ grid), (x.square(), p @ grid.square())):
        assert ((values.mean(0) - exact) / values.std(0) * math.sqrt(20_000)).abs().max() < 4.5


def test_a_coin_unfolds_to_the_density_that_it_should():
    class Folded(StandardNormal):
        def log_prob(self, z):
            return torch.logaddexp(normal(z, 1.3), normal(z, -1.3)).sum(1)

        def sample(self, n, generator=None):
            return (1.3 + torch.randn(n, 1, generator=generator, dtype=F64)).abs()

    torch.manual_seed(0)
    x = torch.linspace(-4, 4, 41, dtype=F64)[:, None]
    fair = SurjectiveFlow(AbsoluteValue(1), shape=1, base=Folded(1))
    mixture = torch.logaddexp(normal(x, 1.3), normal(x, -1.3))[:, 0] - math.log(2)
    assert torch.allclose(fair.log_prob(x), mixture, atol=1e-12)
    coin = AbsoluteValue(1, width=8)
    coin.net = torch.nn.Linear(1, 1, bias=False).double()
    coin.net.weight.data.fill_(2.6)
    flow = SurjectiveFlow(coin, shape=1, base=Folded(1))
    with torch.no_grad():
        assert torch.allclose(flow.log_prob(x), normal(x, 1.3)[:, 0], atol=1e-12)
        drawn = flow.sample(20_000)
    assert abs(drawn.mean() - 1.3) < 0.03 and abs(drawn.std() - 1) < 0.03


def test_the_flow_says_what_its_density_is():
    class Guess(Affine):
        exact = False

    made = lambda *parts: SurjectiveFlow(*parts, shape=2, base=StandardNormal(2)).log_prob_is
    assert made(AbsoluteValue(2), Affine(2)) == "exact" and made(Affine(2), Slice(2, 1)) == "exact"
    assert made(Affine(2), Augment(2, 1)) == "bound"
    assert made(Guess(2)) == "estimate" and made(Guess(2), Augment(2, 1)) == "estimate"


def test_contexts_seeds_far_points_and_shapes():
    flow = SurjectiveFlow(Augment(2, 1), Coupling(3, context=2), shape=2, base=StandardNormal(3))
    flow, x, c = randomized(flow, 0.5), torch.randn(7, 2), torch.randn(7, 2)
    seeded = lambda **more: flow.log_prob(x, samples=3, generator=torch.Generator().manual_seed(5), **more)
    assert torch.equal(seeded(context=c), seeded(context=c)) and not torch.equal(seeded(context=c), seeded(context=-c))
    assert flow.sample(7, c).shape == (7, 2) and flow.encode(x, c).shape == (7, 3)
    x[0, 0] = math.inf
    assert flow.log_prob(x, c)[0] == -math.inf and flow.log_prob(x, c)[1:].isfinite().all()
    with pytest.raises(ValueError, match="shape"):
        flow.log_prob(torch.randn(7, 3), c)
    flow.loss((x[1:], c[1:])).backward()
    assert all(p.grad.abs().sum() > 0 for p in flow.parts[0].parameters())


def test_an_exact_density_is_computed_once():
    calls = []

    class Watched(Affine):
        def forward(self, x, context=None):
            calls.append(1)
            return super().forward(x, context)

    flow = SurjectiveFlow(Watched(2), AbsoluteValue(2), shape=2, base=StandardNormal(2))
    once = flow.log_prob(torch.ones(3, 2))
    assert torch.equal(flow.log_prob(torch.ones(3, 2), samples=50), once) and len(calls) == 2
