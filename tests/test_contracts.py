"""One contract over all bijections and densities; the models stand in zoo.py."""
import copy
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import BIJECTIONS, DENSITIES, randomized, trained

from densegen.flows.masked import MaskedAutoregressive
from densegen.flows.bijections import Bijection, Compose, Flow, Permutation, StandardNormal, StandardUniform, reference_ladj
from densegen.flows.coupling import Coupling, RealNVP
from densegen.flows.splines import Spline

bijections = pytest.mark.parametrize("case", BIJECTIONS.values(), ids=BIJECTIONS)
densities = pytest.mark.parametrize("case", DENSITIES.values(), ids=DENSITIES)
EVERYTHING = BIJECTIONS | DENSITIES
everything = pytest.mark.parametrize("case", EVERYTHING.values(), ids=EVERYTHING)


def evaluate(model, x, c):
    "The numbers that a model computes from data, as one tuple."
    if hasattr(model, "log_prob"):
        return (model.log_prob(x) if c is None else model.log_prob(x, c),)
    return model(x, c)


def same(a, b, **tolerance):
    return all(torch.allclose(p, q, equal_nan=True, **tolerance) for p, q in zip(a, b, strict=True))


@bijections
@pytest.mark.parametrize("state", ["random", "trained"])
def test_round_trip_in_float32(case, state):
    torch.manual_seed(2)  # seed 0 draws a whole Glow that magnifies rounding to 1.01 times the bound on some processors
    model = case.make()
    model = randomized(model, 0.3) if state == "random" else trained(model, case) if list(model.parameters()) else model
    x, c = case.inputs(200)
    with torch.no_grad():
        z, ladj = model(x, c)
        back, ladj_back = model.inverse(z, c)
    assert z.isfinite().all() and (back - x).abs().max() < 1e-4
    assert (ladj + ladj_back).abs().max() < 1e-3


@bijections
def test_round_trip_far_outside(case):
    model = randomized(case.make(), 0.3)
    x, c = case.inputs(50)
    with torch.no_grad():
        z, _ = model(30 * x, c)
        back, _ = model.inverse(z, c)
    assert z.isfinite().all() and back.isfinite().all()
    assert ((back - 30 * x).abs() / (1 + 30 * x.abs())).max() < 1e-2


@bijections
@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
def test_ladj_against_autograd(case, inverse):
    model = randomized(case.make(), 0.3).double()
    x, c = case.inputs(6, torch.float64)
    _, ladj = model.inverse(x, c) if inverse else model(x, c)
    assert ladj.shape == (6,)
    assert torch.allclose(ladj, reference_ladj(model, x, c, inverse), atol=1e-8)


@densities
def test_integrates_to_one(case):
    if case.shape != (2,):
        pytest.skip("quadrature is for two dimensions")
    model = randomized(case.make(), 0.25).double()
    t = torch.linspace(-40, 40, 1601, dtype=torch.float64)
    x = torch.cartesian_prod(t, t)
    c = torch.randn(1, case.context, dtype=torch.float64).expand(len(x), -1) if case.context else None
    with torch.no_grad():
        mass = evaluate(model, x, c)[0].exp().sum() * (t[1] - t[0]) ** 2
    assert abs(mass.item() - 1) < 1e-3


@densities
def test_samples_follow_the_density(case):
    "E[p_other / p] under p is 1 for any density p_other: a sampler that disagrees with log_prob fails."
    model = randomized(case.make(), 0.2)
    n = 40_000
    c = torch.randn(1, case.context).expand(n, -1) if case.context else None
    with torch.no_grad():
        x = model.sample(n) if c is None else model.sample(n, c)
        inside = x.flatten(1)
        other = torch.distributions.Normal(inside.mean(0), 0.4 * inside.std(0))
        ratio = (other.log_prob(inside).sum(1) - evaluate(model, x, c)[0]).double().exp()
    assert x.shape == (n, *case.shape)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / n**0.5


@everything
def test_gradients_reach_every_parameter(case):
    model = randomized(case.make()).train()
    x, c = case.inputs(16)
    out = evaluate(model, x.requires_grad_(), c)
    sum((o * torch.randn_like(o)).sum() for o in out).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


@everything
def test_eval_equals_train(case):
    model = randomized(case.make())
    if any(isinstance(m, torch.nn.Dropout) for m in model.modules()):
        pytest.skip("dropout differs by intent")
    x, c = case.inputs(7)
    assert same(evaluate(model.train(), x, c), evaluate(model.eval(), x, c))


@everything
def test_save_and_load(case, tmp_path):
    model, other = randomized(case.make()), randomized(case.make())
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    x, c = case.inputs(5)
    assert same(evaluate(model, x, c), evaluate(other, x, c), rtol=0, atol=0)
    assert same(evaluate(model, x, c), evaluate(copy.deepcopy(model), x, c), rtol=0, atol=0)


@everything
@pytest.mark.parametrize("n", [0, 1])
def test_small_batches(case, n):
    model = randomized(case.make())
    x, c = case.inputs(n)
    assert all(len(o) == n for o in evaluate(model, x, c))
    x8, c8 = case.inputs(8)
    if n:
        whole = evaluate(model, x8, c8)
        single = evaluate(model, x8[:1], None if c8 is None else c8[:1])
        assert same([o[:1] for o in whole], single, atol=1e-5)


@everything
def test_items_do_not_influence_each_other(case):
    model = randomized(case.make())
    x, c = case.inputs(4)
    before = evaluate(model, x, c)
    x[0] += 1
    assert same([o[1:] for o in before], [o[1:] for o in evaluate(model, x, c)], atol=1e-6)


@everything
def test_double_precision(case):
    model = randomized(case.make(), 0.3)
    x, c = case.inputs(5, torch.float64)
    exact = evaluate(copy.deepcopy(model).double(), x, c)
    assert all(o.dtype == torch.float64 for o in exact)
    single = evaluate(model, x.float(), None if c is None else c.float())
    assert same([o.double() for o in single], exact, atol=1e-3, rtol=1e-3)


def arguments(x, c):
    return (x,) if c is None else (x, c)


def narrow_agrees_with_double(model, x, c, narrow):
    "Log-determinants and log-densities of a narrow format are float32, and those of float64 to one per cent."
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        *z, value = narrow(model, x, c)
        wanted = evaluate(exact, x.double(), None if c is None else c.double())[-1]
    assert value.dtype == torch.float32
    assert (value.double() - wanted).abs().mean() < 0.01 * (x[0].numel() + wanted.abs().mean())
    return z


@everything
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half], ids=str)
def test_the_format_follows_the_model(case, dtype):
    model = randomized(case.make(), 0.2).to(dtype)
    x, c = case.inputs(64, dtype)
    z = narrow_agrees_with_double(model, x, c, evaluate)
    assert all(t.dtype == dtype for t in z)
    narrow_agrees_with_double(model, case.inputs(64)[0], c, evaluate)  # wide inputs stay wide
    with torch.no_grad():
        if isinstance(model, Bijection):
            back, ladj = model.inverse(z[0], c)
            assert back.dtype == dtype and ladj.dtype == torch.float32
            assert (back - x).abs().mean() < 0.02 * (1 + x.abs().mean())
        else:
            drawn = model.sample(4) if c is None else model.sample(4, c[:4])
            assert drawn.dtype == dtype and drawn.isfinite().all()


@everything
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.half, torch.float64], ids=str)
def test_losses_and_bits_in_every_format(case, dtype):
    model = randomized(case.make(), 0.1).to(dtype).train()
    x, c = case.inputs(16, dtype)
    if isinstance(model, Bijection) or not hasattr(model, "loss"):
        pytest.skip("no loss")
    if hasattr(model, "bits_per_dim"):
        x = torch.randint(0, 256, x.shape, dtype=torch.uint8)
        bits, single = model.bits_per_dim(x), copy.deepcopy(model).float().bits_per_dim(x)
        assert bits.dtype == torch.promote_types(dtype, torch.float32)
        assert (bits.double().mean() - single.double().mean()).abs() < 0.2
    loss = model.loss(x if c is None else (x, c))
    total = sum(loss.values()) if isinstance(loss, dict) else loss
    total.backward()
    assert all(p.grad is None or (p.grad.dtype == dtype and p.grad.isfinite().all()) for p in model.parameters())


@everything
def test_sums_stay_in_float32_under_autocast(case):
    def mixed(model, x, c):
        with torch.autocast("cpu", torch.bfloat16):
            return evaluate(model, x, c)

    model = randomized(case.make(), 0.2)
    z = narrow_agrees_with_double(model, *case.inputs(64), mixed)
    assert all(t.dtype == torch.float32 for t in z)


@everything
def test_inference_mode_equals_eager(case):
    model = randomized(case.make(), 0.3)
    x, c = case.inputs(5)
    with torch.inference_mode():
        fast = [o.clone() for o in evaluate(model, x, c)]
    assert same(evaluate(model, x, c), fast, atol=1e-6)


@densities
def test_nan_stays_nan_and_alone(case):
    "As -inf it would look like a very certain anomaly."
    model = randomized(case.make(), 0.3)
    x, c = case.inputs(4)
    x = x.clamp(-1, 1)
    before = evaluate(model, x, c)[0]
    x[1].view(-1)[0] = torch.nan
    value = evaluate(model, x, c)[0]
    assert value.isnan().tolist() == [False, True, False, False]
    assert torch.allclose(value[2:], before[2:], atol=1e-6)


@densities
@pytest.mark.parametrize("size", [1e13, 1e19, 3e38, torch.inf])
def test_values_out_of_all_measure_have_no_density_and_no_gradient(case, size):
    "Today's gradients of Glow are NaN from 1e19 on, its log-density from 1e38 on."
    model = randomized(case.make(), 0.3).train()
    x, c = case.inputs(4)
    x = torch.cat([size * x[:2].sign(), x[2:].clamp(-1, 1)]).requires_grad_()
    value = evaluate(model, x, c)[0]
    if isinstance(model, StandardNormal):
        assert not value.isnan().any() and (value[:2] < -1e12).all()
        return
    assert (value[:2] == -torch.inf).all() and value[2:].isfinite().all()
    (-value).mean().backward()
    assert (x.grad[:2] == 0).all() and x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@everything
def test_shapes_on_the_meta_device(case):
    model = case.make().to("meta")
    x, c = case.inputs(3, device="meta")
    out = evaluate(model, x, c)
    assert all(o.device.type == "meta" for o in out) and out[-1].shape == (3,)


@everything
@pytest.mark.filterwarnings("ignore")
def test_compiled_equals_eager(case):
    if sys.platform != "linux":
        pytest.skip("torch.compile needs a C++ compiler, which is certain on Linux only")
    torch._dynamo.reset()
    model = randomized(case.make(), 0.3)
    x, c = case.inputs(9)
    with torch.no_grad():
        compiled = torch.compile(lambda x, c: evaluate(model, x, c), fullgraph=True, backend="aot_eager")
        assert same(compiled(x, c), evaluate(model, x, c), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_equals_eager():
    "The whole compiler once: code generation takes long, tracing (above) is what models can break."
    torch._dynamo.reset()
    model = randomized(RealNVP(2, layers=2, width=8), 0.3)
    x = torch.randn(16, 2)
    try:
        compiled = torch.compile(model.log_prob, fullgraph=True)(x)
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"no working C++ compiler here: {error}")
    assert torch.allclose(compiled, model.log_prob(x), atol=1e-5)


@densities
def test_sampling_obeys_the_seed(case):
    model = randomized(case.make(), 0.3)
    args = (case.inputs(4)[1],) if case.context else ()
    first = model.sample(4, *args, generator=torch.Generator().manual_seed(1))
    assert first.equal(model.sample(4, *args, generator=torch.Generator().manual_seed(1)))
    assert not first.equal(model.sample(4, *args, generator=torch.Generator().manual_seed(2)))


@densities
@pytest.mark.parametrize("shape", [(3,), (4, 7), (4, 2, 2)])
def test_wrong_shapes_are_refused(case, shape):
    model = case.make()
    if isinstance(model, StandardNormal):
        pytest.skip("a base density is called by a flow, which checks")
    with pytest.raises(ValueError, match=r"expected a batch of shape \[B, .*got \["):
        model.log_prob(torch.zeros(shape))


@pytest.mark.parametrize("context", [None, torch.zeros(4, 2), torch.zeros(3, 3)])
def test_wrong_contexts_are_refused(context):
    with pytest.raises(ValueError, match=r"context: expected \[4, 3\]; got"):
        RealNVP(2, layers=2, width=8, context=3).log_prob(torch.zeros(4, 2), context)


def test_unwanted_context_is_refused():
    with pytest.raises(ValueError, match="context=0"):
        RealNVP(2, layers=2, width=8).log_prob(torch.zeros(4, 2), torch.zeros(4, 3))


def test_other_bad_arguments():
    with pytest.raises(ValueError, match="at least 2 components"):
        Coupling(1)
    with pytest.raises(ValueError, match="permutation of 0..2"):
        Permutation(torch.tensor([0, 0, 2]))
    with pytest.raises(ValueError, match="expected floating-point numbers; got torch.uint8"):
        RealNVP(2, layers=2, width=8).log_prob(torch.zeros(4, 2, dtype=torch.uint8))


@pytest.mark.parametrize("order", [[1, 0], [1, 2, 0]])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int32, torch.float32, list], ids=str)
def test_a_permutation_of_any_number_type_is_no_mask(order, dtype):
    if dtype is torch.bool and len(order) > 2:
        pytest.skip("two truth values")
    given = order if dtype is list else torch.tensor(order).to(dtype)
    x = torch.randn(3, len(order))
    z, _ = Permutation(given)(x)
    assert z.equal(x[:, torch.tensor(order)]) and Permutation(given).inverse(z)[0].equal(x)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 6), st.integers(0, 2))
def test_realnvp_takes_any_shape(dim, layers, n, context):
    model = randomized(RealNVP(dim, layers=layers, width=4, context=context), 0.3).double()
    x = torch.randn(n, dim, dtype=torch.float64)
    c = torch.randn(n, context, dtype=torch.float64) if context else None
    z, ladj = model.bijection(x, c)
    assert z.shape == x.shape and ladj.shape == (n,)
    assert torch.allclose(model.bijection.inverse(z, c)[0], x, atol=1e-8)
    assert torch.allclose(ladj, reference_ladj(model.bijection, x, c) if n else x.new_zeros(0), atol=1e-8)


def test_every_component_of_realnvp_changes():
    model = randomized(RealNVP(6, layers=2, width=16), 0.5)
    x = torch.randn(4, 6)
    moved = model.encode(x).sort(1).values - x.sort(1).values
    assert (moved.abs() > 1e-4).all()


class Cube:
    "A transform of a user's own: z = a x + x^3 with a > 0, solved back by Newton's method."
    outputs = 1

    def forward(self, x, answer):
        a = answer.exp()
        return a * x + x**3, (a + 3 * x.square()).log()

    def inverse(self, z, answer):
        a, x = answer.exp(), torch.zeros_like(z)
        for _ in range(60):
            x = x - (a * x + x**3 - z) / (a + 3 * x.square())
        return x, -(a + 3 * x.square()).log()


@pytest.mark.parametrize("layer", [Coupling, MaskedAutoregressive])
def test_a_transform_is_whatever_has_the_two_directions(layer):
    model = randomized(layer(3, width=8, transform=Cube()), 0.3).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    z, ladj = model(x)
    assert torch.allclose(model.inverse(z)[0], x, atol=1e-8)
    assert torch.allclose(ladj, reference_ladj(model, x), atol=1e-10)


def test_a_spline_knows_its_slope_and_its_root():
    answer = 2 * torch.randn(1, 3 * 8 - 1, dtype=torch.float64)
    x = torch.linspace(-5, 5, 201, dtype=torch.float64)[:, None].requires_grad_()
    z, log_slope = Spline().forward(x, answer.expand(201, -1))
    slope = torch.autograd.grad(z.sum(), x, retain_graph=True)[0]
    assert torch.allclose(slope.log(), log_slope, atol=1e-10)
    assert torch.allclose(Spline().inverse(z, answer.expand(201, -1))[0], x, atol=1e-10)


def test_masks_let_an_output_see_smaller_numbers_only():
    masks = [layer.mask for layer in MaskedAutoregressive(5, width=7).net if hasattr(layer, "mask")]
    paths = masks[2] @ masks[1] @ masks[0] > 0
    below = torch.ones(5, 5).tril(-1).bool()
    assert paths.equal(torch.cat([below, below]))


def test_uniform_base_is_minus_infinity_outside():
    base = StandardUniform(2)
    assert base.log_prob(torch.tensor([[0.5, 0.5], [1.5, 0.5], [0.5, -0.1]])).tolist() == [0.0, -torch.inf, -torch.inf]
    assert base.log_prob(torch.tensor([[torch.nan, 5.0], [0.0, 1.0]])).isnan().tolist() == [True, False]


def test_empty_composition_is_the_identity():
    flow = Flow(Compose(), StandardNormal(3))
    x = torch.randn(5, 3)
    assert flow.encode(x).equal(x) and flow.log_prob(x).equal(StandardNormal(3).log_prob(x))


def test_density_agrees_with_torch_distributions():
    x = torch.randn(9, 4)
    normal = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(4), 1.0), 1)
    assert torch.allclose(StandardNormal(4).log_prob(x), normal.log_prob(x), atol=1e-6)
