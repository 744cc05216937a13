"Each term of the bound against a closed form: mass of a pixel, KL, gap, gradient."

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from densegen.families.vae import VAE, ImageVAE, bits_per_dim, discretized_logistic, kl_to_standard
from densegen.workbench.training import fit

D, L, NOISE = 5, 2, 0.4


def linear(seed=0, samples=400):
    "A linear Gaussian VAE with the best diagonal encoder, data of it, the exact log-density, the gap."
    g = torch.Generator().manual_seed(seed)
    W, b = torch.randn(D, L, generator=g, dtype=torch.float64), torch.randn(D, generator=g, dtype=torch.float64)
    W[:, 1] += 0.4 * W[:, 0]  # so that a diagonal guess misses
    precision = torch.eye(L) + W.T @ W / NOISE**2

    class Encoder(nn.Module):
        def forward(self, x):
            mean = (x - b) @ W @ torch.linalg.inv(precision) / NOISE**2
            return torch.cat([mean, (-0.5 * precision.diagonal().log()).expand_as(mean)], 1)

    class Decoder(nn.Module):
        def forward(self, z):
            return z @ W.T + b

    model = VAE(Encoder(), Decoder(), lambda x, mean: Normal(mean, NOISE).log_prob(x).sum(1), L)
    truth = MultivariateNormal(b, W @ W.T + NOISE**2 * torch.eye(D))
    x = torch.randn(samples, L, generator=g, dtype=torch.float64) @ W.T + b
    x = x + NOISE * torch.randn(samples, D, generator=g, dtype=torch.float64)
    return model, x, truth.log_prob(x), 0.5 * (precision.diagonal().log().sum() - precision.logdet())


def test_mass_of_all_grey_levels_is_one():
    for levels in (2, 17, 256):
        v = torch.arange(levels)[:, None]
        mean = torch.tensor([0.5, 0.0, 1.0, -0.7, 2.0, 0.31], dtype=torch.float64).expand(levels, 6)
        log_scale = torch.tensor([0.1, 0.003, 0.5, 0.02, 10.0, 1e-4], dtype=torch.float64).log().expand(levels, 6)
        total = discretized_logistic(v.expand(levels, 6), mean, log_scale, levels).logsumexp(0)
        assert total.abs().max() < 1e-9


def test_mass_is_the_difference_of_sigmoids():
    v, m, s = torch.arange(1, 255), torch.tensor(0.4, dtype=torch.float64), 0.07
    a, b = ((v.double() + side) / 255 - m for side in (-0.5, 0.5))
    direct = ((b / s).sigmoid() - (a / s).sigmoid()).log()
    ours = discretized_logistic(v, m.expand(254), torch.full((254,), math.log(s)).double())
    assert torch.allclose(ours, direct, atol=1e-9)


def test_far_pixels_are_finite_and_have_gradients():
    mean, log_scale = torch.tensor([0.0, 1.0, 0.5], requires_grad=True), torch.tensor([-7.0, -7.0, -7.0], requires_grad=True)
    value = discretized_logistic(torch.tensor([255, 0, 3]), mean, log_scale)
    gradients = torch.autograd.grad(value.sum(), (mean, log_scale))
    assert value.isfinite().all() and all(g.isfinite().all() for g in gradients) and (gradients[0].sign() == torch.tensor([1, -1, -1])).all()


def test_kl_is_that_of_torch():
    mean, log_std = torch.randn(20, 4), 0.5 * torch.randn(20, 4)
    assert torch.allclose(kl_to_standard(mean, log_std), kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)), atol=1e-6)


def test_elbo_misses_by_the_predicted_gap():
    model, x, exact, gap = linear(samples=4000)
    reconstruction, kl = model.elbo(x, torch.Generator().manual_seed(1))
    missing = exact - (reconstruction - kl.sum(1))
    assert abs(missing.mean() - gap) < 4 * missing.std() / len(x) ** 0.5 and gap > 0.05
    single = exact - model.log_prob(x, 1, torch.Generator().manual_seed(1))
    assert abs(single.mean() - gap) < 4 * single.std() / len(x) ** 0.5


def test_more_samples_reach_the_density():
    model, x, exact, _ = linear()
    below = [(exact - model.log_prob(x, k, torch.Generator().manual_seed(2))).mean() for k in (1, 10, 1000)]
    assert below[0] > below[1] > below[2] and abs(below[2]) < 0.01


def test_importance_weights_are_unbiased():
    model, x, exact, _ = linear(samples=3)
    many = torch.stack([model.log_prob(x, 1, torch.Generator().manual_seed(k)) for k in range(4000)])
    ratio = (many - exact).exp()
    assert ((ratio.mean(0) - 1).abs() < 4 * ratio.std(0) / 4000**0.5).all()


def test_loss_is_the_bound_in_bits_and_beta_weighs_the_kl():
    torch.manual_seed(0)
    v = torch.randint(0, 256, (8, 1, 8, 8))
    model = ImageVAE((1, 8, 8), latents=3, width=4)
    torch.manual_seed(1)
    one = model.loss(v)
    model.beta = 3.0
    torch.manual_seed(1)
    three = model.loss(v)
    assert torch.allclose(three["kl"], 3 * one["kl"]) and torch.equal(three["reconstruction"], one["reconstruction"])
    torch.manual_seed(1)
    reconstruction, kl = model.elbo(v)
    assert torch.allclose(sum(one.values()), (kl.sum(1) - reconstruction).mean() / (64 * math.log(2)))


def test_a_trained_image_vae_codes_and_samples():
    torch.manual_seed(0)
    base = torch.randint(0, 256, (4, 1, 8, 8))
    v = base[torch.arange(256) % 4]
    model = ImageVAE((1, 8, 8), latents=4, width=8)
    before = bits_per_dim(model, v[:64]).mean()
    fit(model, v, steps=250, batch_size=32, lr=3e-3, seed=0)
    with torch.no_grad():
        assert bits_per_dim(model, v[:64], 10).mean() < 0.6 * before
        assert (model.decode(model.encode(v[:4])) - v[:4] / 255).abs().mean() < 0.1
        drawn = model.sample(16, torch.Generator().manual_seed(0))
        assert drawn.shape == (16, 1, 8, 8) and 0 <= drawn.min() and drawn.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_follow_the_model(dtype):
    model = ImageVAE((3, 8, 8), latents=2, width=4, levels=17).to(dtype)
    v = torch.randint(0, 17, (5, 3, 8, 8), dtype=torch.uint8)
    assert model.log_prob(v, 3).shape == (5,) and model.log_prob(v).dtype == dtype
