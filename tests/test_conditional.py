"Guidance against Gaussians whose every answer is known, and Bayes' rule against posteriors computed by hand."

import math

import pytest
import torch

from densegen.families.conditional import by_bayes, class_bounds, class_diffusion_weights, guided
from densegen.families.diffusion import Diffusion, cosine_schedule

SHARES = cosine_schedule().sigmoid()
MEANS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)  # of the classes
TOLD, UNTOLD = (MEANS, 1.0), (torch.tensor(0.3, dtype=torch.float64), 2.0)  # mean and variance


def answer(law, t, x_t, labels=None):
    "E[x | x_t] of a Gaussian."
    a2 = SHARES[t].reshape(-1, *[1] * (x_t.dim() - 1))
    mean, variance = law
    mean = mean if labels is None else mean[labels].reshape(a2.shape)
    return mean + a2.sqrt() * variance / (a2 * variance + 1 - a2) * (x_t - a2.sqrt() * mean)


def model(shape=(1,), levels=256, told=TOLD, untold=UNTOLD):
    network = lambda x, t, y=None: answer(untold, t, x) if y is None else answer(told, t, x, y)
    return Diffusion(shape, levels=levels, predict="x0", network=network, clip=False, classes=3).double()


def walks(weight, eta, n=20_000, steps=300):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 1, generator=g, dtype=torch.float64)
    *_, (_, _, x) = guided(model(), torch.tensor(1), weight).walk(x, steps, eta, g)
    return x.mean().item(), x.var().item()


@pytest.mark.parametrize("weight", [0.0, 1.0, 3.5, -0.5])
def test_the_guided_score_is_the_weighted_sum_of_scores(weight):
    y, t = torch.tensor([0, 1, 2, 1]), torch.tensor([5, 300, 600, 990])
    x_t = torch.randn(4, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a2 = SHARES[t][:, None]
    score = lambda mean, variance: (a2.sqrt() * mean - x_t) / (a2 * variance + 1 - a2)
    expected = weight * score(MEANS[y][:, None], 1.0) + (1 - weight) * score(*UNTOLD)
    found = (a2.sqrt() * guided(model(), y, weight).denoised(x_t, t) - x_t) / (1 - a2)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_weight_zero_is_the_marginal_and_one_the_conditional(eta):
    for weight, (mean, variance) in ((0.0, UNTOLD), (1.0, (MEANS[1], 1.0))):
        found = walks(weight, eta)
        assert abs(found[0] - mean) < 0.03 and abs(found[1] / variance - 1) < 0.03


def test_guided_variances_are_those_of_the_two_equations_and_not_the_tempered_one():
    "Of N(0.5, 1) against N(0.3, 2), weight 3 (Bradley and Nakkiran 2024): the variances do not depend on the means."
    flow, noisy = walks(3.0, 0.0), walks(3.0, 1.0)
    assert abs(flow[1] / 2**-2 - 1) < 0.04
    assert abs(noisy[1] / ((2 - 2**-4) / 5) - 1) < 0.04
    far = 0.3 + (0.5 - 0.3) * (2 - 2**-2)  # of the walk with fresh noise
    assert abs(noisy[0] - far) < 0.03


def test_one_label_serves_a_batch_and_many_keep_their_order():
    x_t, t = torch.zeros(3, 1, dtype=torch.float64), torch.full((3,), 500)
    each = guided(model(), torch.tensor([2, 0, 1]), 2.0).denoised(x_t, t)
    alone = [guided(model(), torch.tensor(k), 2.0).denoised(x_t, t)[0] for k in (2, 0, 1)]
    assert torch.allclose(each, torch.stack(alone))


def test_no_network_is_asked_in_vain():
    asked = []

    def network(x, t, y=None):
        asked.append(y is not None)
        return torch.zeros_like(x)

    bare = Diffusion((1,), predict="x0", network=network, classes=2)
    for weight, expected in ((0.0, [False]), (1.0, [True]), (2.0, [False, True])):
        asked.clear()
        guided(bare, torch.tensor(0), weight).denoised(torch.zeros(2, 1), torch.tensor([3, 3]))
        assert asked == expected


def test_settings_of_the_model_are_kept():
    slow = Diffusion((1, 4, 4), levels=16, steps=50, clip=False, network=lambda x, t, y=None: 3 + 0 * x, predict="v", classes=2)
    same = guided(slow.double(), torch.tensor(1), 2.0)
    assert (same.shape, same.levels, same.steps, same.clip) == ((1, 4, 4), 16, 50, False)
    x, t = torch.ones(1, 1, 4, 4, dtype=torch.float64), torch.tensor([20])
    assert same.log_snr.dtype == torch.float64 and torch.allclose(same.denoised(x, t), slow.denoised(x, t))


@pytest.mark.parametrize("y", [torch.tensor([0, 3]), torch.tensor(-1), torch.tensor([0.0])])
def test_no_such_class(y):
    with pytest.raises(ValueError, match="classes"):
        guided(model(), y)


def test_bounds_rank_classes_as_the_exact_posterior_does():
    "Pixels of four independent Gaussians of deviation 0.3 around a class's grey: log p(v|y) is known."
    greys = torch.tensor([-0.4, 0.0, 0.4], dtype=torch.float64)
    painter = model((1, 2, 2), told=(greys, 0.09), untold=(torch.tensor(0.0, dtype=torch.float64), 0.2))
    y = torch.arange(3).repeat(40)
    noise = torch.randn(120, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (greys[y].reshape(-1, 1, 1, 1) + 0.3 * noise).clamp(-1, 1)
    v = ((x / 2 + 0.5) * 255).round().long()
    exact = -0.5 * ((painter.scaled(v) - greys.reshape(3, 1, 1, 1, 1)) / 0.3).square().flatten(2).sum(2).T
    bounds = class_bounds(painter, v, 100)
    for k in (0, 2):  # the bound's looseness is the same for all classes
        gap = (bounds - bounds[:, 1:2] - exact + exact[:, 1:2])[:, k]
        assert abs(gap.mean()) < 0.25
    assert (by_bayes(bounds).argmax(1) == by_bayes(exact).argmax(1)).double().mean() > 0.85
    assert torch.equal(class_bounds(painter, v[:3], 5, 7), class_bounds(painter, v[:3], 5, 7))
    assert not torch.equal(class_bounds(painter, v[:3], 5, 7), class_bounds(painter, v[:3], 5, 8))


def test_all_classes_meet_the_same_noise():
    "Classes that are equal get equal bounds, to the last digit."
    grey = torch.full((3,), 0.1, dtype=torch.float64)
    bounds = class_bounds(model((1, 2, 2), told=(grey, 0.09)), torch.full((5, 1, 2, 2), 140), 3)
    assert torch.equal(bounds[:, 0], bounds[:, 1]) and torch.equal(bounds[:, 0], bounds[:, 2])


def test_bayes_with_and_without_a_prior():
    likelihood = torch.tensor([[0.2, 0.6], [0.5, 0.5]]).log()
    assert torch.allclose(by_bayes(likelihood).exp(), torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    weighed = by_bayes(likelihood, torch.tensor([0.9, 0.1])).exp()
    assert torch.allclose(weighed, torch.tensor([[0.75, 0.25], [0.9, 0.1]]))
    assert torch.isfinite(by_bayes(likelihood - 1e5)).all()


def test_training_learns_the_classes():
    "Two classes, black and white: told the class, the model draws it."
    y = torch.arange(2).repeat(32)
    v = (255 * y).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    torch.manual_seed(0)
    weights = class_diffusion_weights(v, y, steps=150, width=4)
    told = Diffusion((1, 8, 8), width=4, classes=2)
    told.load_state_dict(weights)
    drawn = guided(told, torch.tensor([0, 1]).repeat(8), 1.0).sample(16, 8, generator=torch.Generator().manual_seed(0))
    means = drawn.flatten(1).mean(1)
    assert means[0::2].max() < 0.35 and means[1::2].min() > 0.65
    assert math.isfinite(sum(w.double().sum().item() for w in weights.values()))
