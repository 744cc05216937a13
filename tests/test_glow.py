"""Glow and dequantization: what the contracts of all models cannot see."""
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import randomized

from densegen.flows.bijections import Compose, StandardNormal, StandardUniform, reference_ladj
from densegen.flows.coupling import ImageCoupling, Spline
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
from densegen.flows.glow import ActNorm, Glow, GlowSteps, InvertibleConv


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
