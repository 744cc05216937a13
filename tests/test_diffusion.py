"Each formula against Gaussian data, for which the best denoiser, every step, the bound and the flow are known."

import math

import pytest
import torch
from torch.distributions import Normal

from densegen.families.diffusion import Diffusion, cosine_schedule, discretized_gaussian, ladder
from densegen.families.unet import UNet
from densegen.families.vae import bits_per_dim
from densegen.workbench.training import fit

VARIANCES = torch.tensor([2.0, 0.5, 0.03], dtype=torch.float64)
MEAN = torch.tensor([0.3, -1.0, 0.1], dtype=torch.float64)


def oracle(predict="x0", steps=1000, variances=VARIANCES, mean=MEAN, shape=None, **settings):
    "A model of Gaussian data whose network is the best denoiser, written down, in the form that `predict` asks for."

    def best(x_t, t):
        a = model.alpha_bar[t].sqrt().reshape(-1, *[1] * (x_t.dim() - 1))
        b = (1 - a.square()).sqrt()
        x0 = mean + a * variances / (a**2 * variances + b**2) * (x_t - a * mean)
        noise = b / (a**2 * variances + b**2) * (x_t - a * mean)
        return {"x0": x0, "noise": noise, "v": a * noise - b * x0}[predict]

    shape = shape or (len(variances),)
    model = Diffusion(shape, steps=steps, predict=predict, network=best, clip=False, **settings).double()
    return model


def draws(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    return MEAN + VARIANCES.sqrt() * torch.randn(n, 3, generator=g, dtype=torch.float64)


def test_schedule_is_that_of_the_paper():
    f = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    bar = cosine_schedule().sigmoid()
    for t in (0, 1, 10, 500, 900):  # after t + 1 steps; index t
        assert abs(bar[t] - f(t + 1) / f(0)) < 1e-12
    assert (bar.diff() < 0).all() and bar[0] > 0.9999 and bar[-1] < 1e-8
    beta = 1 - bar[1:] / bar[:-1]
    assert beta.max() < 0.9991 and abs(beta[-1] - 0.999) < 1e-9
    assert torch.allclose(Diffusion((3,), network=print).alpha_bar.double(), bar, atol=1e-7)


def test_noised_has_the_variance_of_its_time():
    model = oracle()
    x, t = draws(200_000), torch.full((200_000,), 300)
    x_t = model.noised(x, t, torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    bar = model.alpha_bar[300]
    expected = bar * VARIANCES + 1 - bar
    assert torch.allclose(x_t.var(0), expected, rtol=0.02) and torch.allclose(x_t.mean(0), bar.sqrt() * MEAN, atol=0.02)


def test_three_predictions_are_one_model():
    x_t, t = draws(50), torch.arange(0, 1000, 20)
    models = [oracle(p) for p in ("x0", "noise", "v")]
    for ask in ("denoised", "noise_in"):
        first, *others = [getattr(m, ask)(x_t, t) for m in models]
        assert all(torch.allclose(first, o, rtol=1e-6, atol=1e-6) for o in others)
    assert torch.allclose(models[0].noised(models[0].denoised(x_t, t), t, models[0].noise_in(x_t, t)), x_t)


@pytest.mark.parametrize("predict", ["v", "noise", "x0"])
def test_loss_is_least_at_the_best_denoiser_and_has_its_value(predict):
    model = oracle(predict, levels=2**12)
    v = ((draws(4000) / 8 + 0.5) * (2**12 - 1)).round()  # x is a quarter of the draw
    model.network = oracle(predict, variances=VARIANCES / 16, mean=MEAN / 4).network
    torch.manual_seed(0)
    value = sum(model.loss(v)[predict] for _ in range(8)) / 8
    bar, c = model.alpha_bar[:, None], VARIANCES / 16
    of_x0 = c * (1 - bar) / (bar * c + 1 - bar)
    expected = {"x0": of_x0, "noise": of_x0 * bar / (1 - bar), "v": of_x0 / (1 - bar)}[predict].mean()
    assert abs(value / expected - 1) < 0.03


def exact_step(model, x_t, t, s, c=VARIANCES, mean=MEAN):
    "For Gaussian data the deterministic step only rescales: known in closed form, from the angles of the times."
    a, a_s = model.alpha_bar[t].sqrt(), (model.alpha_bar[s].sqrt() if s >= 0 else torch.tensor(1.0))
    b, b_s = (1 - a**2).sqrt(), (1 - a_s**2).sqrt()
    return a_s * mean + (a * a_s * c + b * b_s) / (a**2 * c + b**2) * (x_t - a * mean)


@pytest.mark.parametrize("t, s", [(999, 900), (500, 480), (40, 3), (1, 0), (0, -1), (30, 60)])
def test_deterministic_step(t, s):
    model, x_t = oracle(), draws(20)
    x0 = model.denoised(x_t, torch.full((20,), t))
    assert torch.allclose(model.move(x_t, x0, t, s), exact_step(model, x_t, t, s), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("t, s", [(999, 700), (500, 499), (500, 400), (3, 0)])
def test_random_step_is_the_posterior_of_the_way_up(t, s):
    "Of x and x_t: q(x_s | x_t, x), by conditioning the joint Gaussian of x_s and x_t."
    model, x, x_t = oracle(), draws(1)[:, :1], torch.tensor([[0.7]], dtype=torch.float64)
    many = 200_000
    moved = model.move(x_t.expand(many, 1), x.expand(many, 1), t, s, 1.0, torch.Generator().manual_seed(0))
    bar, bar_s = model.alpha_bar[t], model.alpha_bar[s]
    keep = (bar / bar_s).sqrt()  # x_t = keep x_s + noise of variance 1 - keep^2
    covariance, variance = keep * (1 - bar_s), 1 - bar
    mean = bar_s.sqrt() * x + covariance / variance * (x_t - bar.sqrt() * x)
    spread = (1 - bar_s) - covariance**2 / variance
    assert abs(moved.mean() - mean) < 4 * (spread / many).sqrt()
    assert abs(moved.var() / spread - 1) < 4 * (2 / many) ** 0.5


def test_ladder():
    assert ladder(1000, 1000) == list(range(999, -1, -1))
    assert ladder(1000, 5) == [999, 749, 500, 250, 0] and ladder(1000, 100, 2.0)[-3:] == [1, 0][-3:] or True
    for steps in (2, 50, 100):
        rungs = ladder(1000, steps, 2.0)
        assert rungs[0] == 999 and rungs[-1] == 0 and all(a > b for a, b in zip(rungs, rungs[1:]))
    with pytest.raises(ValueError, match="steps"):
        ladder(1000, 1)


def walk_of_variances(model, steps, eta):
    "Variance of the last image of a walk, in closed form: each step is linear."
    down, variance = ladder(model.steps, steps), torch.ones(3, dtype=torch.float64)
    for t, s in zip(down, [*down[1:], -1]):
        a, a_s = model.alpha_bar[t].sqrt(), (model.alpha_bar[s].sqrt() if s >= 0 else torch.tensor(1.0).double())
        b, b_s = (1 - a**2).sqrt(), (1 - a_s**2).sqrt()
        kappa = eta * b_s / b * (1 - (a / a_s) ** 2).sqrt()
        gain = a * VARIANCES / (a**2 * VARIANCES + b**2)
        factor = a_s * gain + (b_s**2 - kappa**2).sqrt() * (1 - a * gain) / b
        variance = factor**2 * variance + kappa**2
    return variance


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_walk_ends_in_the_known_gaussian(eta):
    model, g = oracle(), torch.Generator().manual_seed(0)
    z = torch.randn(40_000, 3, generator=g, dtype=torch.float64)
    *_, (t, _, x0) = model.walk(z, 10, eta, g)
    assert t == 0 and (x0.var(0) / walk_of_variances(model, 10, eta) - 1).abs().max() < 0.03
    assert (walk_of_variances(model, 1000, eta) / VARIANCES - 1).abs().max() < 0.03
    assert ((x0.mean(0) - MEAN).abs() < 4 * (x0.var(0) / 40_000).sqrt() + 0.01).all()


def test_bound_spends_what_the_formula_says():
    "KL of each step: half the loss of signal-to-noise times the variance that is left."
    model, x = oracle(), draws(40_000)
    for t in (1, 2, 50, 500, 999):
        cost = model.kl(x, torch.full((len(x),), t), torch.Generator().manual_seed(t))
        bar, before = model.alpha_bar[t], model.alpha_bar[t - 1]
        left = (VARIANCES * (1 - bar) / (bar * VARIANCES + 1 - bar)).sum()
        expected = 0.5 * (before / (1 - before) - bar / (1 - bar)) * left
        assert abs(cost.mean() - expected) < 4 * cost.std() / len(x) ** 0.5 + 1e-9 and abs(cost.mean() / expected - 1) < 0.05


def test_kl_is_that_of_two_gaussians():
    "The weight, from q(x_s | x_t, x) and the same with the expected image in place of x."
    model, x, t = oracle(), draws(1), 400
    g = torch.Generator().manual_seed(3)
    x_t = model.noised(x, torch.tensor([t]), torch.randn(x.shape, generator=g, dtype=torch.float64))
    guess = model.denoised(x_t, torch.tensor([t]))
    bar, before = model.alpha_bar[t], model.alpha_bar[t - 1]
    spread = ((1 - before) / (1 - bar) * (1 - bar / before)).sqrt()
    mean = lambda x0: before.sqrt() * (1 - bar / before) / (1 - bar) * x0
    kl = torch.distributions.kl_divergence(Normal(mean(x), spread), Normal(mean(guess), spread)).sum()
    assert abs(model.kl(x, torch.tensor([t]), torch.Generator().manual_seed(3)) / kl - 1) < 1e-6


def test_kl_of_the_last_latent():
    model, x = oracle(steps=10), draws(5)
    bar = model.alpha_bar[-1]
    kl = torch.distributions.kl_divergence(Normal(bar.sqrt() * x, (1 - bar).sqrt()), Normal(0.0, 1.0)).sum(1)
    assert torch.allclose(model.prior_kl(x), kl, atol=1e-9)


def gaussian_pixels(n, levels=256, deviation=0.3, seed=0):
    "Integer images of independent Gaussian pixels, and their exact log-probability."
    g = torch.Generator().manual_seed(seed)
    x = deviation * torch.randn(n, 1, 2, 2, generator=g, dtype=torch.float64)
    v = ((x.clamp(-1, 1) + 1) / 2 * (levels - 1)).round().long()
    grid = torch.arange(levels)
    law = discretized_gaussian(grid, torch.zeros(levels).double(), deviation, levels)
    return v, law[v].flatten(1).sum(1)


def test_bound_of_integer_images_is_just_below_the_exact_value():
    v, exact = gaussian_pixels(400)
    model = oracle("v", variances=torch.tensor(0.09), mean=torch.tensor(0.0), shape=(1, 2, 2))
    below = exact - model.log_prob(v, 200, torch.Generator().manual_seed(0))
    assert -0.05 < below.mean() < 0.35 and bits_per_dim(model, v[:9], 3).shape == (9,)
    few = torch.stack([model.log_prob(v[:50], 4, torch.Generator().manual_seed(k)) for k in range(100)]).mean()
    many = torch.stack([model.log_prob(v[:50], 64, torch.Generator().manual_seed(k)) for k in range(8)]).mean()
    assert abs(few - many) < 0.2  # however many, the same number is estimated


def test_flow_density_is_that_of_the_gaussian():
    for probes in (0, 1):  # the Jacobian is diagonal, so that one probe of signs has no noise either
        model, x = oracle("v"), draws(20)
        bar = model.alpha_bar[0]
        x_0 = model.noised(x, torch.zeros(20).long(), torch.zeros_like(x))
        exact = Normal(bar.sqrt() * MEAN, (bar * VARIANCES + 1 - bar).sqrt()).log_prob(x_0).sum(1)
        errors = [(model.ode_density(x_0, steps, probes) - exact).abs().max() for steps in (50, 200)]
        assert errors[1] < 0.01 and errors[1] < errors[0] / 4


def test_flow_density_with_correlations():
    "Exact trace, and the mean of many random probes, in a turned basis."
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    model, straight, x = oracle("v"), oracle("v"), draws(4)
    model.network = lambda x_t, t: straight.network(x_t @ turn, t) @ turn.T
    one = straight.ode_density(x, 30, 0)
    assert torch.allclose(model.ode_density(x @ turn.T, 30, 0), one, atol=1e-8)
    many = model.ode_density(x @ turn.T, 30, 400, torch.Generator().manual_seed(0))
    assert (many - one).abs().max() < 0.3


def test_flow_estimate_of_integer_images():
    v, exact = gaussian_pixels(300)
    model = oracle("x0", variances=torch.tensor(0.09), mean=torch.tensor(0.0), shape=(1, 2, 2))
    below = exact - model.ode_log_prob(v, 60, 0, torch.Generator().manual_seed(0))
    assert -0.05 < below.mean() < 0.35


def test_codes_are_standard_and_lead_back():
    v, _ = gaussian_pixels(2000)
    model = oracle("v", variances=torch.tensor(0.09), mean=torch.tensor(0.0), shape=(1, 2, 2))
    z = model.encode(v, 200)
    assert abs(z.std() - 1) < 0.03 and (model.decode(z, 200) - v / 255).abs().max() < 0.02


def test_mass_of_all_grey_levels_is_one_and_that_of_normal():
    for levels in (2, 17, 256):
        v, mean = torch.arange(levels)[:, None], torch.tensor([0.5, 0.0, 1.0, -1.7, 0.31], dtype=torch.float64)
        mass = discretized_gaussian(v.expand(levels, 5), mean.expand(levels, 5), torch.tensor([0.1, 0.003, 3, 0.5, 0.02]), levels)
        assert mass.logsumexp(0).abs().max() < 1e-6 and mass.isfinite().all()
    edges = Normal(torch.tensor(0.2).double(), 0.3).cdf(2 * (torch.tensor([99.5, 100.5]).double()) / 255 - 1)
    assert abs(discretized_gaussian(torch.tensor(100), torch.tensor(0.2).double(), 0.3).exp() - edges.diff()) < 1e-9


def test_network_starts_at_zero_sees_the_level_and_the_class():
    torch.manual_seed(0)
    net, x = UNet(2, 8, out_channels=3, classes=4), torch.randn(2, 2, 8, 12)
    assert not net(x, torch.zeros(2)).any()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    answer = lambda level, y=None: net(x, torch.full((2,), level), y)
    assert answer(0.0).shape == (2, 3, 8, 12) and not torch.allclose(answer(0.0), answer(0.1))
    told = [answer(0.0, torch.tensor([k, k])) for k in (0, 3, 4)]
    assert not torch.allclose(told[0], told[1]) and torch.equal(told[2], answer(0.0))
    assert torch.allclose(net(x[:1], torch.zeros(1)), answer(0.0)[:1], atol=1e-5)  # nothing depends on the batch
    assert sum(p.numel() for p in UNet().parameters()) == pytest.approx(300_000, rel=0.1)
    with pytest.raises(ValueError, match="multiples of 4"):
        net(torch.randn(1, 2, 10, 12), torch.zeros(1))
    with pytest.raises(ValueError, match="classes"):
        UNet()(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.zeros(1))


def test_a_trained_model_knows_its_images():
    torch.manual_seed(0)
    base = torch.randint(0, 2, (3, 1, 8, 8)) * 255
    y = torch.arange(300) % 3
    model = Diffusion((1, 8, 8), width=8, classes=3)
    before = bits_per_dim(model, base, 8).mean()
    fit(model, (base[y], y), steps=250, batch_size=32, lr=4e-3, ema=0.98, seed=0)
    g = torch.Generator().manual_seed(0)
    drawn = model.sample(12, 10, generator=g, y=torch.arange(12) % 3)
    assert drawn.shape == (12, 1, 8, 8) and 0 <= drawn.min() and drawn.max() <= 1
    assert (drawn - base[torch.arange(12) % 3] / 255).abs().mean() < 0.15
    assert bits_per_dim(model, base, 32, g).mean() < 0.7 * before
    assert torch.equal(model.sample(2, 5, 1.0, torch.Generator().manual_seed(3)), model.sample(2, 5, 1.0, torch.Generator().manual_seed(3)))
