"No pixel sees itself or what follows, all images add up to one, and samples follow the density."

import math

import pytest
import torch
from scipy import stats

from densegen.families.autoregressive import PixelCNN, TwoStacks, mixture_log_prob, mixture_sample, unpack
from densegen.families.vae import discretized_logistic
from densegen.workbench.training import fit


def everything(shape, levels):
    "All images of a shape."
    D = math.prod(shape)
    return torch.cartesian_prod(*[torch.arange(levels)] * D).reshape(-1, *shape)


def wild(model, seed=0):
    "The model in double precision with weights that make its mixtures differ from pixel to pixel."
    g = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = p.data + 0.5 * torch.randn(p.shape, generator=g)
    return model.double()


@pytest.mark.parametrize("first, depth", [(3, 5), (7, 2), (5, 3)])
def test_every_pixel_sees_all_earlier_ones_within_reach_and_no_other(first, depth):
    torch.manual_seed(0)
    side = 6
    net, x = TwoStacks(1, 2, 6, depth, first).double(), torch.randn(1, 1, side, side, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda x: net(x).sum((0, 1)), x)[:, :, 0, 0].abs().flatten(2).flatten(0, 1)
    place = torch.arange(side * side)
    earlier = place < place[:, None]
    assert net.reach >= side - 1 and torch.equal(slopes > 0, earlier)


def test_reach_is_as_far_as_it_says():
    torch.manual_seed(0)
    net, x = TwoStacks(1, 1, 6, 2, 5).double(), torch.randn(1, 1, 12, 12, dtype=torch.float64, requires_grad=True)
    seen = torch.autograd.grad(net(x)[0, 0, 10, 6], x)[0][0, 0] != 0
    rows, columns = seen.any(1).nonzero(), seen[10].nonzero()
    assert rows.min() == 10 - net.reach and rows.max() == 10 and columns.min() == 6 - net.reach and columns.max() == 5


@pytest.mark.parametrize("shape, levels", [((1, 3, 3), 2), ((1, 2, 2), 5), ((3, 1, 2), 2), ((2, 2, 1), 4)])
def test_all_images_add_up_to_one(shape, levels):
    torch.manual_seed(1)
    model = wild(PixelCNN(shape, width=6, depth=2, components=3, levels=levels))
    with torch.no_grad():
        log_p = model.log_prob(everything(shape, levels))
    assert abs(log_p.exp().sum() - 1) < 1e-9 and log_p.std() > 0.1


def test_one_grey_bump_is_the_logistic_of_the_vae_lecture():
    g = torch.Generator().manual_seed(0)
    raw, v = torch.randn(7, 3, generator=g, dtype=torch.float64), torch.randint(0, 256, (7, 1), generator=g)
    _, mean, log_scale, _ = unpack(raw, 1)
    assert torch.allclose(mixture_log_prob(raw, v, 256), discretized_logistic(v, mean[:, 0], log_scale[:, 0])[:, 0])


def test_later_channels_move_with_earlier_ones():
    "One bump, three channels, narrow: the mean of each is its own plus multiples of the pixels before it."
    raw = torch.tensor([[0.0, -0.3, -0.3, -0.3, -9, -9, -9, 0.5, 0.25, 1.0]], dtype=torch.float64)
    v = mixture_sample(raw.repeat(200, 1), 3, 101, torch.Generator().manual_seed(0)).double() / 100
    assert (v[:, 0].mean() - 0.2).abs() < 0.01 and (v[:, 1].mean() - 0.3).abs() < 0.01
    assert (v[:, 2].mean() - (0.2 + 0.25 * 0.2 + 1.0 * 0.3)).abs() < 0.01


@pytest.mark.parametrize("channels, levels", [(1, 4), (3, 2)])
def test_a_drawn_pixel_follows_its_mixture(channels, levels):
    raw = torch.randn(1, 3 * (1 + 2 * channels + channels * (channels - 1) // 2), generator=torch.Generator().manual_seed(3))
    pixels = everything((channels,), levels)
    expected = 20_000 * mixture_log_prob(raw.expand(len(pixels), -1), pixels, levels).double().exp()
    drawn = mixture_sample(raw.expand(20_000, -1), channels, levels, torch.Generator().manual_seed(0))
    weights = levels ** torch.arange(channels - 1, -1, -1)
    observed = torch.bincount((drawn * weights).sum(1), minlength=len(pixels))
    assert stats.chisquare(observed.double(), expected * 20_000 / expected.sum()).pvalue > 1e-3


def test_samples_follow_the_density_of_whole_images():
    torch.manual_seed(0)
    model = wild(PixelCNN((2, 2, 2), width=6, depth=2, components=2, levels=2), 4)
    states = everything((2, 2, 2), 2)
    with torch.no_grad():
        expected = 8000 * model.log_prob(states).exp()
        drawn = model.sample(8000, torch.Generator().manual_seed(0)).round().long().flatten(1)
    observed = torch.bincount((drawn * 2 ** torch.arange(7, -1, -1)).sum(1), minlength=256).double()
    often = expected >= 5
    cells = [torch.cat([t[often], t[~often].sum(0, keepdim=True)]) for t in (observed, expected)]
    assert often.sum() > 10 and stats.chisquare(*cells).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(1, 9, 11), (3, 10, 8)])
def test_the_cache_changes_no_pixel(shape):
    torch.manual_seed(0)
    model = wild(PixelCNN(shape, width=4, depth=1))
    one, other = (model.sample(2, torch.Generator().manual_seed(5), cached=cached) for cached in (True, False))
    assert torch.equal(one, other) and 0 <= one.min() and one.max() <= 1 and one.shape == (2, *shape)


def test_completions_keep_what_is_given():
    model, v = PixelCNN((1, 6, 5), width=4, depth=1, levels=8), torch.randint(0, 8, (3, 1, 6, 5))
    done = model.sample(3, torch.Generator().manual_seed(0), v, rows=4) * 7
    assert torch.allclose(done[:, :, :4], v[:, :, :4].float()) and not torch.equal(done[:, :, 4:].round(), v[:, :, 4:].float())
    assert torch.allclose(model.sample(3, torch.Generator().manual_seed(0), v, rows=6) * 7, v.float())
    with pytest.raises(ValueError, match=r"given: expected integers \[3, 1, 6, 5\] to keep 4 rows of; got None"):
        model.sample(3, rows=4)


def test_loss_is_the_density_in_bits():
    torch.manual_seed(0)
    model, v = PixelCNN((1, 5, 5), width=4, depth=1), torch.randint(0, 256, (6, 1, 5, 5), dtype=torch.uint8)
    assert torch.allclose(model.loss(v)["bits"], -model.log_prob(v).mean() / (25 * math.log(2)))
    assert torch.allclose(model.log_probs(v).sum((1, 2)), model.log_prob(v)) and model.log_probs(v).shape == (6, 5, 5)


def test_training_reaches_the_entropy():
    "A chain of five binary pixels that copy their left neighbour with probability 0.8."
    states = everything((1, 1, 5), 2)
    same = (states[..., 1:] == states[..., :-1]).sum((1, 2, 3))
    p = 0.5 * 0.8**same * 0.2 ** (4 - same)
    entropy = -(p * p.log()).sum()
    drawn = states[torch.multinomial(p, 4000, True, generator=torch.Generator().manual_seed(0))]
    torch.manual_seed(0)
    model = PixelCNN((1, 1, 5), width=8, depth=1, components=2, levels=2)
    fit(model, drawn, steps=120, batch_size=200, lr=1e-2, seed=0)
    with torch.no_grad():
        excess = -(p * model.log_prob(states)).sum() - entropy
    assert 0 <= excess < 0.02 < 5 * math.log(2) - entropy


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_follow_the_model(dtype):
    model = PixelCNN((3, 4, 4), width=4, depth=1, levels=17).to(dtype)
    v = torch.randint(0, 17, (5, 3, 4, 4), dtype=torch.uint8)
    log_p = model.log_prob(v)
    log_p.sum().backward()
    assert log_p.shape == (5,) and log_p.dtype == dtype and model.sample(1).dtype == dtype
    assert all(q.grad is not None and q.grad.abs().sum() > 0 for q in model.parameters())
