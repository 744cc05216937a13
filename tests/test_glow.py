"""Glow and dequantization: what the contracts of all models cannot see."""
import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import randomized

from densegen.flows.bijections import Compose, StandardNormal, StandardUniform, reference_ladj
from densegen.flows.coupling import ImageCoupling
from densegen.flows.dequantization import (
    ImageFlow,
    Logit,
    Squeeze,
    UniformNoise,
    VariationalNoise,
    bits_per_dim,
    level_map,
    multiscale,
)
from densegen.flows.glow import ActNorm, ClassNormal, Glow, GlowSteps, InvertibleConv
from densegen.flows.splines import Spline


def little(**options) -> Glow:
    return Glow((1, 4, 4), levels=2, steps=2, width=8, grey_levels=4, **options)


def test_actnorm_starts_once_and_survives_loading():
    "nflows #4, FrEIA #33, normflows #2 and glow-pytorch #6 initialized again after loading."
    x, other = 5 + 3 * torch.randn(32, 2, 4, 4), torch.randn(32, 2, 4, 4)
    norm, loaded = ActNorm(2), ActNorm(2)
    norm.initialize(x)
    before = norm(other)[0]
    norm.initialize(other)
    loaded.load_state_dict(norm.state_dict())
    loaded.initialize(other)
    assert norm(other)[0].equal(before) and loaded(other)[0].equal(before)


def test_actnorm_of_a_constant_channel_stays_finite():
    norm = ActNorm(1)
    norm.initialize(torch.full((4, 1, 2, 2), 7.0))
    assert norm(torch.full((4, 1, 2, 2), 7.0))[0].abs().max() == 0


def test_initialize_reaches_every_norm_and_later_calls_change_nothing():
    glow = little()
    v = torch.randint(0, 4, (64, 1, 4, 4), dtype=torch.uint8)
    glow.initialize(v)
    norms = [m for m in glow.modules() if isinstance(m, ActNorm)]
    assert len(norms) == 4 and all(m.initialized for m in norms)
    assert all(m.together for m in glow.modules() if isinstance(m, GlowSteps))
    before = [p.clone() for p in glow.parameters()]
    glow.initialize(v[:8])
    assert all(a.equal(b) for a, b in zip(before, glow.parameters()))
    assert glow.encode((v + 0.5) / 4).std() < 3


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 9), st.integers(1, 4), st.booleans())
def test_steps_together_equal_steps_in_turn(channels, steps, spline):
    options = {"transform": Spline(bins=3)} if spline else {}
    level = randomized(GlowSteps(channels, steps, width=4, **options), 0.3).double()
    x = torch.randn(2, channels, 3, 2, dtype=torch.float64)
    for a, b in zip(level(x), Compose.forward(level, x)):
        assert torch.allclose(a, b, atol=1e-9)
    z, _ = level(x)
    for a, b in zip(level.inverse(z), Compose.inverse(level, z)):
        assert torch.allclose(a, b, atol=1e-9)


def test_gradients_together_equal_gradients_in_turn():
    level = randomized(GlowSteps(4, 3, width=4), 0.3).double()
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    weight, slopes = torch.randn_like(x), torch.randn(3, dtype=torch.float64)
    gradients = []
    for forward in (level.forward, lambda x: Compose.forward(level, x)):
        z, ladj = forward(x)
        gradients.append(torch.autograd.grad((z * weight).sum() + (ladj * slopes).sum(), list(level.parameters())))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(*gradients))


def test_log_determinant_has_the_factor_of_the_pixels():
    mix = randomized(InvertibleConv(3)).double()
    x = torch.randn(1, 3, 5, 2, dtype=torch.float64)
    assert torch.allclose(mix(x)[1], 10 * torch.linalg.slogdet(mix.weight()).logabsdet)


def test_class_densities_add_up():
    glow = randomized(little(classes=3), 0.2).double()
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64)
    every = torch.stack([glow.log_prob(x, torch.full((5,), k)) for k in range(3)], 1)
    assert torch.allclose(glow.log_prob(x), every.logsumexp(1) - math.log(3))
    assert torch.allclose(glow.class_log_prob(x), every.log_softmax(1))


def test_labels_are_refused_by_a_glow_without_classes():
    with pytest.raises(ValueError, match="made without classes"):
        little().log_prob(torch.rand(2, 1, 4, 4), torch.tensor([0, 1]))


def test_loss_with_labels_is_bits_and_classification():
    glow = randomized(little(classes=3), 0.1)
    batch = (torch.randint(0, 4, (16, 1, 4, 4)), torch.randint(0, 3, (16,)))
    torch.manual_seed(1)
    terms = glow.loss(batch)
    torch.manual_seed(1)
    assert set(terms) == {"bits", "classification"}
    assert torch.allclose(terms["bits"], glow.bits_per_dim(*batch).mean(), atol=1e-5)


def test_temperature_by_level():
    glow = little().eval()
    cold = glow.sample(3, temperature=0.0)
    assert (cold - cold[0]).abs().max() < 1e-6
    z = glow.encode(glow.sample(50, temperature=[0.0, 1.0]))
    assert z[:, glow.level == 0].abs().max() < 1e-4 and z[:, glow.level == 1].std() > 0.8


@pytest.mark.parametrize("shape", [(3, 30, 32), (1, 32, 20)])
def test_sides_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 8; got"):
        Glow(shape, levels=3)


def test_squeeze_refuses_odd_sides():
    with pytest.raises(ValueError, match="even height and width"):
        Squeeze()(torch.zeros(1, 1, 3, 4))


def test_probabilities_of_all_small_images_sum_to_at_most_one():
    "Enumeration: exp of the bound over every image of 2x2 pixels and 3 grey levels."
    flow = randomized(ImageFlow(Compose(Logit(), ImageCoupling(4, width=4)), StandardNormal((4, 1, 1)), grey_levels=3), 0.3)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))[..., None, None]
    with torch.no_grad():
        one, many = flow.bits_per_dim(every), flow.bits_per_dim(every, samples=3000)
    mass = lambda bits: torch.exp(-4 * math.log(2) * bits.double()).sum()
    assert mass(many) < 1.02 and mass(many) > 0.5 and many.mean() < one.mean()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 500), st.integers(2, 256))
def test_bits_of_a_uniform_density(dims, levels):
    assert torch.allclose(bits_per_dim(torch.zeros(2), dims, levels), torch.tensor(math.log2(levels)))


def test_noise_never_reaches_another_integer():
    "In float32, (v + u) / 256 does in about 50 of 10 million pixels."
    v = torch.randint(256, (10_000_000,), generator=torch.Generator().manual_seed(0))
    x, _ = UniformNoise()(v, 256, torch.Generator().manual_seed(1))
    assert (256 * x).floor().eq(v).all()


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_extremes_of_the_noise_stay_in_their_cube(u, monkeypatch):
    "The smallest and the largest number that `rand` returns, at every level of every number of levels."
    monkeypatch.setattr(torch, "rand", lambda shape, dtype, **_: torch.full(shape, u, dtype=dtype))
    for levels in range(2, 257):
        v = torch.arange(levels)
        assert (levels * UniformNoise()(v, levels)[0]).floor().equal(v.float())


def test_learned_noise_never_reaches_another_integer():
    "A sigmoid of a large number is one in float32."
    noise = VariationalNoise(1, layers=2, width=4)
    for sign in (-1, 1):
        noise.flow.bijections[0].inverse = lambda z, context=None: (torch.sigmoid(sign * 100 * z.abs()), z.flatten(1).sum(1))
        v = torch.randint(256, (100, 1, 4, 4))
        assert (256 * noise(v, 256)[0]).floor().equal(v.float())


def test_variational_noise_knows_its_density():
    noise = randomized(VariationalNoise(1, layers=2, width=4), 0.3).double()
    v = torch.randint(0, 8, (3, 1, 2, 2))
    torch.set_default_dtype(torch.float64)
    try:
        x, log_q = noise(v, 8)
        u, context = 8 * x - v, v / 8 - 0.5
        eps, ladj = noise.flow(u, context)
        assert torch.allclose(ladj, reference_ladj(noise.flow, u, context), atol=1e-6)
        base = StandardNormal((1, 2, 2)).log_prob(eps / 1.7) - 4 * math.log(1.7)
        assert torch.allclose(log_q, base + ladj, atol=1e-6)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (u > 0).all() and (u < 1).all()


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_level_map_is_where_latents_leave(levels):
    "A pyramid whose steps add k at level k marks its own latents."
    depth = itertools.count()

    class Mark(ImageCoupling):
        def __init__(self, channels):
            super().__init__(channels, width=1)
            self.add = next(depth)

        def forward(self, x, context=None):
            return torch.full_like(x, self.add), x.new_zeros(len(x))

    marked, _ = multiscale(1, levels, Mark)(torch.zeros(1, 1, 8, 8))
    assert marked[0].long().equal(level_map((1, 8, 8), levels))


def test_whole_glow_in_code_that_is_compiled():
    torch._dynamo.reset()
    glow = randomized(little(), 0.1)
    x = torch.rand(4, 1, 4, 4)
    try:
        compiled = torch.compile(glow.log_prob, fullgraph=True)(x)
    except torch._inductor.exc.InductorError as error:
        pytest.skip(f"no working C++ compiler here: {error}")
    assert torch.allclose(compiled, glow.log_prob(x), atol=1e-4)


# formats, images and labels


def lively(levels: int = 17) -> tuple[Glow, torch.Tensor]:
    "A Glow whose layers all do something, and images."
    glow, v = Glow((1, 8, 8), levels=2, steps=4, width=32, grey_levels=levels), torch.randint(0, levels, (64, 1, 8, 8))
    glow.initialize(v)
    with torch.no_grad():
        for p in glow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return glow, v


@pytest.mark.parametrize("how", ["autocast", "bfloat16"])
def test_half_precision_does_not_shift_the_density(how):
    "With sums and a state in bfloat16 the mean is off by 0.13 (autocast) and 0.19 nats, each image by 0.4."
    glow, v = lively()
    x = (v + 0.5) / 17
    with torch.no_grad():
        if how == "autocast":
            exact = copy.deepcopy(glow).double().log_prob(x.double())
            with torch.autocast("cpu", torch.bfloat16):
                value = glow.log_prob(x)
        else:
            glow.bfloat16()
            exact, value = copy.deepcopy(glow).double().log_prob(x.double()), glow.log_prob(x)
    error = value.double() - exact
    assert value.dtype == torch.float32 and error.mean().abs() < 0.05 and error.std() < 0.1


def test_under_autocast_the_map_is_still_undone():
    glow, v = lively()
    x = (v + 0.5) / 17
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z, ladj = glow.bijection(x)
        back, ladj_back = glow.bijection.inverse(z)
    assert z.dtype == back.dtype == torch.float32 and (back - x).abs().max() < 1e-3
    assert (ladj + ladj_back).abs().max() < 1e-3 * ladj.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.half], ids=str)
@pytest.mark.parametrize("noise", [None, VariationalNoise], ids=["uniform", "variational"])
def test_everything_that_a_glow_does_follows_its_format(dtype, noise):
    glow = randomized(little(classes=3, noise=noise and noise(1, layers=2, width=4)), 0.1).to(dtype)
    v, labels = torch.randint(0, 4, (6, 1, 4, 4)), torch.arange(6) % 3
    wide = torch.promote_types(dtype, torch.float32)
    glow.initialize(v)
    assert all(p.dtype == dtype and p.isfinite().all() for p in glow.parameters())
    assert glow.sample(3).dtype == glow.sample(3, labels[:3]).dtype == dtype
    for value in (glow.log_prob(glow.sample(3)), glow.bits_per_dim(v, labels), glow.class_log_prob(glow.sample(3))):
        assert value.dtype == wide and value.isfinite().all()
    assert all(term.dtype == wide and term.isfinite() for term in glow.loss((v, labels)).values())


@pytest.mark.parametrize(
    "v, got",
    [
        (torch.rand(2, 1, 4, 4), "torch.float32; round"),
        (torch.full((2, 1, 4, 4), 4), "4..4; check grey_levels"),
        (torch.full((2, 1, 4, 4), -1), "-1..-1"),
        (torch.full((2, 1, 4, 4), 200, dtype=torch.uint8), "200..200"),
    ],
)
@pytest.mark.parametrize("noise", [None, VariationalNoise], ids=["uniform", "variational"])
def test_images_are_integers_of_the_grey_levels(v, got, noise):
    "Floats in 0..1 gave a better-looking number of bits, values out of range another one."
    glow = little(noise=noise and noise(1, layers=2, width=4))
    for ask in (glow.bits_per_dim, glow.loss, glow.initialize):
        with pytest.raises(ValueError, match=rf"images: expected integers 0..3; got {got}"):
            ask(v)
    assert not any(m.initialized for m in glow.modules() if isinstance(m, ActNorm))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool], ids=str)
def test_images_of_any_integer_type_cost_the_same(dtype):
    glow, v = Glow((1, 4, 4), levels=2, steps=2, width=8, grey_levels=2), torch.randint(0, 2, (5, 1, 4, 4))
    bits = [glow.bits_per_dim(t, generator=torch.Generator().manual_seed(0)) for t in (v, v.to(dtype))]
    assert bits[0].equal(bits[1])
    assert len(glow.bits_per_dim(v[:0].to(dtype))) == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32], ids=str)
def test_labels_of_any_integer_type_are_no_mask(dtype):
    glow, labels = randomized(little(classes=3), 0.3), torch.tensor([2, 0, 1, 1])
    v = torch.randint(0, 4, (4, 1, 4, 4))
    for ask in (
        lambda y, g: glow.sample(4, y, g),
        lambda y, g: glow.bits_per_dim(v, y, generator=g),
        lambda y, g: glow.log_prob((v + 0.5) / 4, y),
    ):
        wanted, got = (ask(y, torch.Generator().manual_seed(0)) for y in (labels, labels.to(dtype)))
        assert wanted.equal(got)
    assert set(glow.loss((v, labels.to(dtype)))) == {"bits", "classification"}
    for ask in (lambda: glow.sample(4, labels.float()), lambda: glow.loss((v, labels / 2))):
        with pytest.raises(ValueError, match="labels: expected integers; got torch.float32"):
            ask()


@pytest.mark.parametrize("n", [0, 1])
def test_one_value_a_channel_has_no_deviation(n):
    "The last level of this Glow is 1x1: one image would leave NaN there for ever, and half of the norms begun."
    glow = Glow((1, 4, 4), levels=2, steps=2, width=8)
    before = copy.deepcopy(glow.state_dict())
    with pytest.raises(ValueError, match="initialize: expected two or more finite values a channel; got a batch"):
        glow.initialize(torch.randint(0, 256, (n, 1, 4, 4)))
    assert all(torch.equal(t, before[name]) for name, t in glow.state_dict().items())
    glow.initialize(torch.randint(0, 256, (32, 1, 4, 4)))
    assert glow.loss(torch.randint(0, 256, (4, 1, 4, 4))).isfinite()


@pytest.mark.parametrize("x", [torch.zeros(1, 2, 1, 1), torch.full((4, 2, 3, 3), torch.nan), torch.full((4, 2, 3, 3), torch.inf)])
def test_actnorm_refuses_what_has_no_deviation(x):
    norm = ActNorm(2)
    with pytest.raises(ValueError, match="initialize: expected two or more finite values a channel"):
        norm.initialize(x)
    assert not norm.initialized and (norm.shift == 0).all() and (norm.log_scale == 0).all()


def test_actnorm_divides_by_the_deviation_in_half_precision():
    norm, x = ActNorm(2).bfloat16(), 300 + torch.randn(4000, 2, 4, 4)
    norm.initialize(x)
    z = norm(x)[0]
    assert abs(z.std() - 1) < 0.02
class Shy(torch.nn.Module):
    "Noise in the middle tenth of each cube: its density is 10 for each component."

    def forward(self, v, grey_levels, generator=None):
        u = 0.45 + 0.1 * torch.rand(v.shape, generator=generator)
        return (v + u) / grey_levels, torch.full((len(v),), v[0].numel() * math.log(10))


def test_the_density_of_the_noise_is_taken_off():
    "Under a uniform density each component costs log2 of the levels, and log2 of 10 more for the choice of the noise."
    flow = ImageFlow(Compose(), StandardUniform((1, 2, 2)), grey_levels=8, noise=Shy())
    v = torch.randint(0, 8, (5, 1, 2, 2))
    assert flow.bits_per_dim(v).tolist() == pytest.approx([3 + math.log2(10)] * 5, abs=1e-5)
    assert flow.bits_per_dim(v, samples=3).tolist() == pytest.approx([3 + math.log2(10)] * 5, abs=1e-5)


def test_the_loss_with_labels_takes_the_noise_off_and_weighs_the_classes():
    shy = randomized(little(classes=3, classification=0.25, noise=Shy()), 0.1)
    shy.base.mean.data = torch.randn(3, 1, 4, 4)
    v, labels = torch.randint(0, 4, (16, 1, 4, 4)), torch.randint(0, 3, (16,))
    torch.manual_seed(1)
    terms = shy.loss((v, labels))
    torch.manual_seed(1)
    x, log_q = shy.noise(v, 4)
    log_prob = torch.stack([shy.log_prob(x, torch.full((16,), k)) for k in range(3)], 1)
    given = log_prob.gather(1, labels[:, None]).squeeze(1)
    assert terms["bits"].item() == pytest.approx(bits_per_dim(given - log_q, 16, 4).mean().item(), rel=1e-5)
    cross_entropy = (log_prob.logsumexp(1) - given).mean().item()
    assert terms["classification"].item() == pytest.approx(0.25 * cross_entropy, rel=1e-4)


def test_samples_have_the_class_that_is_asked_for():
    glow = little(classes=3).eval()
    glow.base.mean.data += torch.tensor([-9.0, 0.0, 9.0]).view(3, 1, 1, 1)
    labels = torch.tensor([2, 0, 1, 2, 2, 0, 1])
    assert glow.class_log_prob(glow.sample(7, labels)).argmax(1).equal(labels)
    assert len(glow.class_log_prob(glow.sample(60)).argmax(1).unique()) == 3


def test_actnorm_starts_with_mean_zero_and_deviation_one():
    norm, x = ActNorm(2), 5 + 3 * torch.randn(64, 2, 4, 4)
    norm.initialize(x)
    z = norm(x)[0]
    assert z.mean((0, 2, 3)).abs().max() < 1e-4 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-4


def test_a_class_is_a_gaussian_around_its_mean():
    base = ClassNormal((1, 2, 2), 3).double()
    torch.nn.init.normal_(base.mean, std=2.0)
    z = 2 * torch.randn(5, 1, 2, 2, dtype=torch.float64)
    by_class = torch.stack([StandardNormal((1, 2, 2)).log_prob(z - mean) for mean in base.mean], 1)
    assert torch.allclose(base.by_class(z), by_class)
