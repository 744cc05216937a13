"""Residual flows: true operator norms, an inverse that converges or says so, estimates against slogdet, item-wise gradients."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import randomized

from densegen.flows.bijections import Affine, Compose, Flow, Inverse, StandardNormal, reference_ladj
from densegen.flows.dequantization import ImageFlow, multiscale
from densegen.flows.residual import (
    LipschitzConv2d,
    LipschitzLinear,
    LipSwish,
    NotContractive,
    ResidualBlock,
    ResidualFlow,
    exact_ladj,
    fixed_point,
    lipschitz_net,
    roulette,
    series_ladj,
    tighten,
)


def lively(shape, width=8):
    "A contraction far from zero, in double precision."
    net = lipschitz_net(shape, width).double()
    for p in net.parameters():
        nn.init.normal_(p)
    tighten(net, tolerance=1e-10)
    return net.eval()


def true_norm(layer, shape):
    matrix = torch.autograd.functional.jacobian(lambda x: layer(x)[0].flatten(), torch.zeros(1, *shape).to(layer.weight))
    return torch.linalg.matrix_norm(matrix.flatten(1), 2).item()


def signs(x):
    return torch.randn_like(x).sign()


def gradient(loss, net):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)])


# bounded layers


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.sampled_from([1, 3, 5]), st.integers(1, 6), st.integers(1, 6))
def test_convolutions_keep_their_operator_norm(inputs, outputs, kernel, height, width):
    torch.manual_seed(0)
    layer = LipschitzConv2d(inputs, outputs, kernel, (height, width)).double()
    nn.init.normal_(layer.weight, std=3)
    tighten(layer, tolerance=1e-7)
    raw = lambda x: layer.linear(x, layer.weight).flatten()
    matrix = torch.autograd.functional.jacobian(raw, torch.zeros(1, inputs, height, width).double())
    wanted = min(0.98, torch.linalg.matrix_norm(matrix.flatten(1), 2).item())
    assert true_norm(layer.eval(), (inputs, height, width)) == pytest.approx(wanted, abs=2e-3)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 0.99))
def test_linear_layers_keep_their_operator_norm(inputs, outputs, coeff):
    torch.manual_seed(0)
    layer = LipschitzLinear(inputs, outputs, coeff).double()
    nn.init.normal_(layer.weight, std=3)
    tighten(layer, tolerance=1e-9)
    wanted = min(coeff, torch.linalg.matrix_norm(layer.weight, 2).item())
    assert true_norm(layer.eval(), (inputs,)) == pytest.approx(wanted, abs=2e-3)


def test_small_weights_are_left_alone():
    layer = LipschitzLinear(4, 4).eval()
    nn.init.constant_(layer.weight, 0.01)
    x = torch.randn(3, 4)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_the_norm_has_the_gradient_of_the_largest_singular_value():
    layer = LipschitzLinear(5, 4).double()
    layer.tighten(tolerance=1e-14)
    wanted = torch.autograd.grad(torch.linalg.matrix_norm(layer.weight, 2), layer.weight)[0]
    assert torch.allclose(torch.autograd.grad(layer.norm(), layer.weight)[0], wanted, atol=1e-5)


def test_a_weight_of_zero_does_not_freeze_the_power_iteration():
    layer = LipschitzLinear(4, 4)
    nn.init.zeros_(layer.weight)
    layer.tighten()
    nn.init.normal_(layer.weight, std=5)
    layer.tighten(tolerance=1e-6)
    assert true_norm(layer.eval(), (4,)) < 0.99


def test_nothing_moves_in_evaluation_and_training_renews_once_for_each_change():
    layer = LipschitzLinear(6, 6).eval()
    nn.init.normal_(layer.weight, std=5)
    before = layer.v.clone()
    layer(torch.zeros(1, 6))
    assert layer.v.equal(before)
    layer.train()(torch.zeros(1, 6))
    renewed = layer.v.clone()
    assert not renewed.equal(before)
    layer(torch.zeros(1, 6))
    assert layer.v.equal(renewed)
    nn.init.normal_(layer.weight, std=5)
    assert true_norm(layer.eval(), (6,)) < 0.981, "leaving training settles the norm"


def test_resuming_is_exact():
    "Saved between a step and the next forward pass, when the norm is out of date."
    def step(flow):
        torch.manual_seed(1)
        loss = flow.loss(torch.randn(8, 3))
        with torch.no_grad():
            for p, grad in zip(flow.parameters(), torch.autograd.grad(loss, list(flow.parameters()))):
                p -= 0.1 * grad

    flow, other = ResidualFlow(3, blocks=2, width=6), ResidualFlow(3, blocks=2, width=6)
    step(flow)
    other.load_state_dict(flow.state_dict())
    step(flow), step(other)
    assert all(torch.equal(a, b) for a, b in zip(flow.state_dict().values(), other.state_dict().values()))


def test_a_loaded_or_copied_layer_computes_the_same_bits(tmp_path):
    flow = ResidualFlow((1, 4, 4), blocks=2, width=6, ladj="exact")
    optimizer = torch.optim.Adam(flow.parameters(), 0.05)
    for _ in range(5):
        optimizer.zero_grad()
        flow.loss(torch.randn(16, 1, 4, 4)).backward()
        optimizer.step()
    flow.eval()
    torch.save(flow.state_dict(), tmp_path / "weights.pt")
    other = ResidualFlow((1, 4, 4), blocks=2, width=6, ladj="exact")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    other.eval()
    x = torch.randn(5, 1, 4, 4)
    for twin in (other, copy.deepcopy(flow)):
        assert torch.equal(flow.log_prob(x), twin.log_prob(x))


@pytest.mark.parametrize("beta", [-20.0, -1.0, 0.5, 3.0, 30.0])
def test_lipswish_has_slopes_up_to_one(beta):
    swish = LipSwish().double()
    nn.init.constant_(swish.beta, beta)
    x = (torch.linspace(-10, 10, 40_001).double() / F.softplus(swish.beta.detach())).requires_grad_()
    slope = torch.autograd.grad(swish(x).sum(), x)[0]
    assert 0.999 < slope.max() <= 1 and slope.min() > -0.1
    assert torch.allclose(swish(x), x * torch.sigmoid(F.softplus(swish.beta) * x) / 1.1)


def test_a_network_of_bounded_layers_is_a_contraction():
    net = lively((1, 5, 5))
    x, y = torch.randn(500, 1, 5, 5).double(), torch.randn(500, 1, 5, 5).double()
    ratio = (net(x) - net(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)
    assert ratio.max() < 0.98**3


# the inverse


@pytest.mark.parametrize("c", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_worst_case_converges_to_the_tolerance(c, dtype):
    z = torch.randn(20, 3, dtype=dtype)
    x, changes = fixed_point(lambda x: z + c * x, z)
    error = ((x - z / (1 - c)) / (1 + x.abs())).abs().max().item()
    rounding = torch.finfo(dtype).eps / (1 - c)
    assert error < max(1e-6 if dtype == torch.float32 else 1e-10, 8 * rounding)
    assert 0.4 < len(changes) * math.log(c) / math.log(1e-7 if dtype == torch.float32 else 1e-11) < 2


@pytest.mark.parametrize("step", [lambda x: 1 - x, lambda x: -1.01 * x + 1, lambda x: x * x + 1, lambda x: x * math.nan])
def test_no_contraction_is_an_error_not_an_answer(step):
    with pytest.raises(NotContractive, match="expected a contraction; got"):
        fixed_point(step, torch.zeros(2))


def test_a_block_with_too_large_weights_refuses_to_invert():
    block = ResidualBlock(nn.Linear(3, 3))
    nn.init.constant_(block.g.weight, 2.0)
    with pytest.raises(NotContractive, match="tighten"):
        block.inverse(torch.randn(2, 3))


def test_gradients_through_the_inverse():
    block = ResidualBlock(lively((3,)), ladj="exact")
    z = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: block.inverse(z), z, atol=1e-5)
    weight = block.g[1].bias
    direction = torch.randn_like(weight)
    slope = (torch.autograd.grad(block.solve(z).sum(), weight)[0] * direction).sum()
    values = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            weight += h * direction
            values.append(block.solve(z).sum())
            weight -= h * direction
    assert slope.item() == pytest.approx(((values[0] - values[1]) / 2e-5).item(), rel=1e-4)


# log-determinants


@pytest.mark.parametrize("shape", [(1,), (4,), (2, 3, 3)])
def test_exact_against_slogdet(shape):
    block, x = ResidualBlock(lively(shape), ladj="exact"), torch.randn(5, *shape).double()
    assert torch.allclose(block(x)[1], reference_ladj(block, x), atol=1e-10)


def test_a_long_series_with_all_probes_is_the_log_determinant():
    "Over all 2^D sign vectors the mean of v^T A v is the trace, without any noise."
    g, x = lively((3,)), torch.randn(2, 3).double()
    probes = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0]).double()] * 3)
    values = [series_ladj(g, x, [1.0] * 400, p.expand(2, 3))[1] for p in probes]
    assert torch.allclose(torch.stack(values).mean(0), exact_ladj(g, x)[1], atol=1e-8)


def test_truncation_keeps_its_bound_and_the_worst_case_reaches_it():
    for c in (0.5, 0.9):
        g = nn.Linear(4, 4, bias=False).double()
        g.weight = nn.Parameter(-c * torch.eye(4, dtype=torch.float64))
        value = series_ladj(g, torch.zeros(1, 4).double(), [1.0] * 5)[1].item()
        bound = 4 * (-math.log(1 - c) - sum(c**k / k for k in range(1, 6)))
        assert value - 4 * math.log(1 - c) == pytest.approx(bound)


def test_the_weights_of_the_roulette_are_one_over_the_probabilities():
    draws = [roulette(2, 0.3) for _ in range(20_000)]
    for k in range(7):
        counted = torch.tensor([w[k] if len(w) > k else 0.0 for w in draws])
        assert abs(counted.mean() - 1) <= 5 * counted.std() / 20_000**0.5
    assert all(w[:2] == [1.0, 1.0] for w in draws)
    repeated = [roulette(1, generator=torch.Generator().manual_seed(s)) for s in (5, 5)]
    assert repeated[0] == repeated[1]


def test_the_mean_of_20000_roulettes_is_slogdet():
    g, x = lively((3,), 4), torch.randn(4, 3).double()
    with torch.no_grad():
        throws = [series_ladj(g, x.repeat(10, 1), roulette(2))[1].reshape(10, 4).mean(0) for _ in range(2000)]
    means = torch.stack(throws)
    assert ((means.mean(0) - exact_ladj(g, x)[1]).abs() < 4 * means.std(0) / 2000**0.5).all()


def test_the_mean_gradient_is_that_of_slogdet_with_random_weights():
    g, x = lively((3,), 4), torch.randn(4, 3).double()
    upstream = torch.randn(4).double()
    target = gradient((upstream * exact_ladj(g, x)[1]).sum(), g)
    directions = torch.randn(len(target), 5).double()
    ten = lambda: gradient((upstream.repeat(10) * series_ladj(g, x.repeat(10, 1), roulette(2))[1]).sum() / 10, g)
    sampled = torch.stack([ten() for _ in range(2000)]) @ directions
    assert ((sampled.mean(0) - target @ directions).abs() < 4 * sampled.std(0) / 2000**0.5).all()


@pytest.mark.parametrize("shape", [(4,), (2, 3, 3)])
@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [1.0, 1.0, 2.0, 4.0]])
def test_the_saving_gradient_equals_autograd_item_by_item(shape, weights):
    g, x = lively(shape), torch.randn(5, *shape).double().requires_grad_()
    probe, upstream = signs(x), torch.randn(5).double()
    product, neumann, y = probe, weights[0] * probe, g(x)
    for k, weight in enumerate(weights[1:], 1):
        (product,) = torch.autograd.grad(y, x, product, retain_graph=True)
        neumann = neumann + (-1) ** k * weight * product
    (product,) = torch.autograd.grad(y, x, neumann, create_graph=True)
    outer = torch.randn_like(y)
    plain = (upstream * (product * probe).flatten(1).sum(1)).sum() + (outer * y).sum()
    ours_y, ladj = series_ladj(g, x, weights, probe)
    ours = (upstream * ladj).sum() + (outer * ours_y).sum()
    inputs = [x, *g.parameters()]
    for a, b in zip(*(torch.autograd.grad(v, inputs, materialize_grads=True) for v in (ours, plain))):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_the_printed_value_is_the_estimate_not_a_surrogate():
    g, x = lively((4,)), torch.randn(3, 4).double()
    probe = signs(x)
    J = torch.stack([torch.autograd.functional.jacobian(g, row) for row in x])
    terms = [torch.einsum("bi,bij,bj->b", probe, torch.linalg.matrix_power(J, k), probe) for k in (1, 2, 3)]
    wanted = terms[0] - 1.5 * terms[1] / 2 + 3 * terms[2] / 3
    assert torch.allclose(series_ladj(g, x, [1.0, 1.5, 3.0], probe)[1], wanted)


def test_frozen_parameters_and_other_grad_modes():
    g, x = lively((4,)), torch.randn(3, 4).double()
    g[1].weight.requires_grad_(False)
    series_ladj(g, x, [1.0, 1.0])[1].sum().backward()
    assert g[1].weight.grad is None and g[3].weight.grad is not None
    probe = signs(x)
    wanted = series_ladj(g, x, [1.0, 1.0], probe)[1].detach()
    with torch.no_grad():
        assert torch.equal(series_ladj(g, x, [1.0, 1.0], probe)[1], wanted)
    with torch.inference_mode():
        assert torch.equal(series_ladj(g, x, [1.0, 1.0], probe)[1], wanted)


# the flow


@pytest.mark.parametrize("shape", [3, (1, 4, 4), (3, 6, 4)])
@pytest.mark.parametrize("ladj", ["exact", "series", "roulette"])
def test_the_flow_obeys_the_protocol(shape, ladj):
    flow = randomized(ResidualFlow(shape, blocks=2, width=6, ladj=ladj)).double()
    tighten(flow, tolerance=1e-9)
    x = flow.base.sample(5)
    assert x.dtype == torch.float64
    z, log_prob = flow.encode(x), flow.log_prob(x)
    assert log_prob.dtype == torch.float64 and log_prob.shape == (5,)
    assert torch.allclose(z, flow.bijection(x)[0], atol=1e-12)
    assert torch.allclose(flow.decode(z), x, atol=1e-8)
    assert torch.allclose(flow.decode(z), flow.bijection.inverse(z)[0], atol=1e-12)
    assert flow.log_prob_is == ("exact" if ladj == "exact" else "estimate")
    assert len(flow.sample(0)) == 0 and len(flow.log_prob(x[:0])) == 0


def test_decode_computes_no_volume(monkeypatch):
    flow = ResidualFlow((1, 4, 4), blocks=2, width=4)
    monkeypatch.setattr(ResidualBlock, "measure", lambda *_: pytest.fail("a log-determinant in decode"))
    flow.decode(torch.randn(2, 1, 4, 4)), flow.encode(torch.randn(2, 1, 4, 4)), flow.sample(2)


@pytest.mark.parametrize("fused", [False, True])
def test_estimates_of_a_trained_flow_agree_with_its_exact_density(fused):
    "Fused optimizers do not count their changes of a weight, so that nothing may rely on that count."
    flow = ResidualFlow(6, blocks=2, width=16)
    optimizer = torch.optim.Adam(flow.parameters(), 0.01, fused=fused)
    for _ in range(60):
        x = torch.randn(64, 6)
        optimizer.zero_grad()
        flow.loss(x + 0.5 * x.square()).backward()
        optimizer.step()
    flow.eval()
    x = torch.randn(50, 6)
    estimate = torch.stack([flow.log_prob(x) for _ in range(40)]).detach()
    for block in flow.blocks:
        block.ladj = "exact"
    assert ((estimate.mean(0) - flow.log_prob(x)).mean().abs() < 0.05)
    assert (flow.decode(flow.encode(x)) - x).abs().max() < 1e-4
    norms = [true_norm(m, m.v.shape[1:]) for m in flow.modules() if isinstance(m, LipschitzLinear)]
    assert max(norms) < 0.98 * 1.005


def test_training_under_autocast_stays_finite():
    flow = ResidualFlow((1, 4, 4), blocks=2, width=8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = flow.loss(torch.randn(8, 1, 4, 4))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in flow.parameters())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert flow.sample(3).dtype == torch.float32


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LipschitzLinear(2, 2, coeff=1.0), "coeff: expected a number between 0 and 1; got 1.0"),
        (lambda: LipschitzConv2d(1, 1, 2, (4, 4)), "kernel: expected an odd side"),
        (lambda: lipschitz_net((1, 8), 4), r"shape: expected \[D\] or \[C, H, W\]; got \[1, 8\]"),
        (lambda: ResidualBlock(nn.Identity(), ladj="brute"), "ladj in .*got 'brute'"),
        (lambda: ResidualBlock(nn.Identity(), terms=0), "terms >= 1"),
        (lambda: series_ladj(nn.Linear(2, 2), torch.zeros(1, 2), []), "at least one term"),
        (lambda: ResidualFlow(2, blocks=1, width=4).log_prob(torch.zeros(3, 3)), r"shape \[B, 2\]; got \[3, 3\]"),
        (lambda: ResidualFlow(2, blocks=1, width=4).encode(torch.zeros(3, 3)), r"shape \[B, 2\]; got \[3, 3\]"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_without_blocks_it_is_the_base():
    x = torch.randn(4, 3)
    assert torch.equal(ResidualFlow(3, blocks=0).log_prob(x), StandardNormal(3).log_prob(x))


@pytest.mark.parametrize("ladj", ["exact", "series", "roulette"])
def test_what_a_flow_says_of_its_density_follows_from_its_parts(ladj):
    "Two calls of a roulette differ, so nothing built around one may say that its density is exact."
    block = lambda: ResidualBlock(lipschitz_net((1, 4, 4), 4), ladj)
    wanted = "exact" if ladj == "exact" else "estimate"
    wrapped = Compose(Affine((1, 4, 4)), Inverse(Compose(block(), block())))
    assert Flow(wrapped, StandardNormal((1, 4, 4))).log_prob_is == wanted
    pyramid = multiscale(1, 2, lambda c: ResidualBlock(lipschitz_net((c, 2 if c == 4 else 1, 2 if c == 4 else 1), 4), ladj))
    images = ImageFlow(pyramid, StandardNormal((1, 4, 4)))
    assert images.log_prob_is == wanted and images.bits_per_dim_is == ("bound" if ladj == "exact" else "estimate")
    assert Flow(Affine((1, 4, 4)), images).log_prob_is == wanted
