"""Splines on the line and on the circle, and mixtures of logistics: oracles, edges, floors, and two peers."""
import importlib.util
import math

import pytest
import torch

from densegen.flows.bijections import reference_ladj
from densegen.flows.splines import CircularSpline, LogisticMixture, Spline, TorusFlow, UniformAngles

TRANSFORMS = {"spline": Spline(), "two bins": Spline(bins=2, limit=1.0), "circle": CircularSpline(bins=5),
              "mixture": LogisticMixture()}
every = pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
SEAM = torch.tensor([[-math.pi], [math.pi - 1e-12]], dtype=torch.float64)


def answers(transform, n, size=1.5, channels=1, dtype=torch.float64):
    return size * torch.randn(n, channels * transform.outputs, generator=torch.Generator().manual_seed(0), dtype=dtype)


def bisected(transform, z, answer, limit):
    low, high = torch.full_like(z, -limit), torch.full_like(z, limit)
    for _ in range(70):
        middle = (low + high) / 2
        below = transform.forward(middle, answer)[0] < z
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return middle


@every
def test_slopes_are_those_of_autograd_and_values_increase(transform):
    limit = getattr(transform, "limit", math.pi) * 0.999
    x = torch.linspace(-limit, limit, 301, dtype=torch.float64)[:, None].requires_grad_()
    one = answers(transform, 1)
    if isinstance(transform, CircularSpline):
        one[:, -1] = 0.0  # no turn
    z, log_slope = transform.forward(x, one.expand(301, -1))
    assert (z.diff(dim=0) > 0).all()
    assert torch.allclose(torch.autograd.grad(z.sum(), x)[0].log(), log_slope, atol=1e-9)


@every
def test_the_way_back_is_that_of_bisection_and_of_the_slope(transform):
    x = torch.linspace(-2.9, 2.9, 200, dtype=torch.float64)[:, None].repeat(1, 2)
    answer = answers(transform, 200, channels=2)
    if isinstance(transform, CircularSpline):
        answer.view(200, -1, 2)[:, -1] = 0.0
    z, log_slope = transform.forward(x, answer)
    back, log_back = transform.inverse(z, answer)
    assert torch.allclose(back, x, atol=1e-10) and torch.allclose(log_back, -log_slope, atol=1e-8)
    limit = math.pi if isinstance(transform, CircularSpline) else 60.0
    assert torch.allclose(bisected(transform, z, answer, limit), x, atol=1e-8)


@every
def test_gradients_of_the_way_back(transform):
    z, answer = torch.tensor([[0.3], [-0.7]], dtype=torch.float64), answers(transform, 2)
    inputs = (z.requires_grad_(), answer.requires_grad_())
    assert torch.autograd.gradcheck(transform.inverse, inputs, atol=1e-5)


def test_the_root_is_stable_in_float32():
    "The textbook's form, with 2a below, errs by more than a thousandth here."
    answer = answers(Spline(), 50_000, size=3.0, dtype=torch.float32)
    x = 8 * torch.rand(50_000, 1, generator=torch.Generator().manual_seed(1)) - 4
    assert (Spline().inverse(Spline().forward(x, answer)[0], answer)[0] - x).abs().max() < 2e-4


def test_a_straight_bin_has_a_root():
    "a = 0 in every bin of the identity."
    z = torch.linspace(-4, 4, 101)[:, None]
    assert torch.allclose(Spline().inverse(z, torch.zeros(101, 23))[0], z, atol=1e-6)


def test_bins_and_slopes_have_floors():
    places, values, slopes = Spline().knots(torch.zeros(500, 1), answers(Spline(), 500, 1000.0))
    floor = 8 / (1 + 7 * math.e**2)
    for widths in (places.diff(dim=-1), values.diff(dim=-1)):
        assert floor - 1e-9 <= widths.min() < floor + 1e-3
    assert slopes.min() >= math.exp(-1) - 1e-9 and slopes.max() <= math.e + 1e-9


@pytest.mark.parametrize("limit", [1.0, 4.0])
def test_tails_are_the_identity_and_the_edge_has_no_jump(limit):
    spline = Spline(limit=limit)
    edge = limit * torch.tensor([[-1.0], [-1 + 1e-10], [1 - 1e-10], [1.0], [30.0]], dtype=torch.float64)
    z, log_slope = spline.forward(edge, answers(spline, 1).expand(5, -1))
    assert torch.allclose(z, edge, atol=1e-8) and log_slope.abs().max() < 1e-7
    assert z[[0, 3, 4]].equal(edge[[0, 3, 4]])


def test_a_circular_spline_has_no_seam():
    answer = answers(CircularSpline(), 1).expand(2, -1)
    z, log_slope = CircularSpline().forward(SEAM, answer)
    assert torch.allclose(log_slope[0], log_slope[1], atol=1e-9)
    assert torch.allclose(z.cos(), z[:1].cos(), atol=1e-9) and torch.allclose(z.sin(), z[:1].sin(), atol=1e-9)
    assert log_slope[0].abs() > 1e-2  # free, not 1


def test_angles_are_the_same_after_a_turn():
    x, answer = 3 * torch.rand(50, 1, dtype=torch.float64), answers(CircularSpline(), 50)
    once, again = (CircularSpline().forward(v, answer) for v in (x, x + 2 * math.pi))
    assert torch.allclose(once[0], again[0], atol=1e-9) and torch.allclose(once[1], again[1], atol=1e-9)
    assert (-math.pi <= once[0]).all() and (once[0] < math.pi).all()


@pytest.fixture
def torus():
    torch.manual_seed(0)
    flow = TorusFlow(3, layers=3, width=8, bins=4).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return flow


def test_a_torus_flow_knows_its_volume_and_its_way_back(torus):
    x = 6 * torch.rand(5, 3, dtype=torch.float64) - 3
    assert torch.allclose(torus.bijection(x)[1], reference_ladj(torus.bijection, x), atol=1e-9)
    assert torch.allclose(torus.decode(torus.encode(x)), x, atol=1e-9)
    assert ((torus.encode(x) - x).abs() > 1e-6).all()  # every angle moves


def test_a_torus_flow_integrates_to_one_and_has_no_seam():
    torch.manual_seed(1)
    flow = TorusFlow(2, layers=3, width=8, bins=4).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.4)
    ticks = (torch.arange(200, dtype=torch.float64) + 0.5) / 200 * 2 * math.pi - math.pi
    with torch.no_grad():
        mass = flow.log_prob(torch.cartesian_prod(ticks, ticks)).exp().mean() * (2 * math.pi) ** 2
        sides = [flow.log_prob(torch.stack([torch.full_like(ticks, side), ticks], 1)) for side in SEAM[:, 0].tolist()]
    assert abs(mass - 1) < 2e-3
    assert torch.allclose(*sides, atol=1e-8)


def test_samples_of_a_torus_flow_obey_the_seed_and_the_density(torus):
    x = torus.sample(20_000, generator=torch.Generator().manual_seed(3))
    assert x.equal(torus.sample(20_000, generator=torch.Generator().manual_seed(3))) and x.abs().max() <= math.pi + 1e-6
    with torch.no_grad():
        ratio = (UniformAngles(3).log_prob(x) - torus.log_prob(x)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / 20_000**0.5


def test_uniform_angles():
    z = torch.tensor([[0.0, 3.0], [math.nan, 0.0]])
    value = UniformAngles(2).log_prob(z)
    assert value[0] == pytest.approx(-2 * math.log(2 * math.pi)) and value[1].isnan()
    assert TorusFlow(2).to("meta").log_prob(torch.zeros(3, 2, device="meta")).shape == (3,)


@pytest.mark.parametrize("wrong", [lambda: Spline(bins=1), lambda: Spline(limit=0.0), lambda: CircularSpline(bins=1)])
def test_bad_arguments(wrong):
    with pytest.raises(ValueError, match="expected 2 bins or more"):
        wrong()


def raw_numbers(n, bins=8):
    "Bounded answers as ours reads them, and the unbounded numbers behind them."
    answer = answers(Spline(bins), n)
    return answer, torch.tanh(answer).split([bins, bins, bins - 1], 1)


@pytest.mark.skipif(not importlib.util.find_spec("nflows"), reason="nflows is not installed")
def test_the_spline_is_that_of_nflows():
    from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline

    answer, (widths, heights, slopes) = raw_numbers(200)
    x = torch.linspace(-5, 5, 200, dtype=torch.float64)
    settings = {"tails": "linear", "tail_bound": 4.0, "min_bin_width": 0.0, "min_bin_height": 0.0}
    theirs = lambda v, back: unconstrained_rational_quadratic_spline(
        v, widths, heights, torch.log(torch.expm1(slopes.exp() - 1e-9)), inverse=back, min_derivative=1e-9, **settings)
    z, log_slope = Spline().forward(x[:, None], answer)
    value, log_value = theirs(x, False)
    assert torch.allclose(z[:, 0], value, atol=1e-5) and torch.allclose(log_slope[:, 0], log_value, atol=1e-5)
    assert torch.allclose(Spline().inverse(z, answer)[0][:, 0], theirs(value, True)[0], atol=1e-5)


@pytest.mark.skipif(not importlib.util.find_spec("zuko"), reason="zuko is not installed")
def test_the_spline_is_that_of_zuko():
    from zuko.transforms import MonotonicRQSTransform

    answer, (widths, heights, slopes) = raw_numbers(200)
    soft = lambda v, size: v / (1 - (v / size).abs())  # undoes their bound v / (1 + |v| / size)
    size = -math.log(1e-3)
    theirs = MonotonicRQSTransform(soft(widths, size / 2), soft(heights, size / 2), soft(slopes, size), bound=4.0)
    x = torch.linspace(-5, 5, 200, dtype=torch.float64)
    z, log_slope = Spline().forward(x[:, None], answer)
    value, log_value = theirs.call_and_ladj(x)
    assert torch.allclose(z[:, 0], value, atol=1e-5) and torch.allclose(log_slope[:, 0], log_value, atol=1e-5)
