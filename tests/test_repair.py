"""The energy at many noise levels: where it begins it is known, its loss is written again, its walks have a closed form."""
import math

import pytest
import torch

from densegen.energy.jem import JEM, conv_classifier
from densegen.families.repair import NoisyJEM, at, noisy_loss, repair, repair_weights


def stirred(**options):
    "A model whose last layers are not zero."
    torch.manual_seed(1)
    model = NoisyJEM(width=4, middle=16, **options).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, 0.0, 0.1)
    return model


@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_it_begins_as_the_error_of_the_best_linear_denoiser(sigma):
    x = torch.randn(5, 1, 28, 28)
    clear = at(NoisyJEM(spread=0.8), sigma)
    error = x - x * 0.64 / (sigma**2 + 0.64)
    assert torch.allclose(clear.energy(x), 0.5 / sigma**2 * error.square().flatten(1).sum(1) - math.log(10), rtol=1e-4)
    assert torch.allclose(clear.posterior(x), torch.full((5, 10), 0.1))


def test_the_residual_is_common_to_all_classes():
    model, x = stirred(), torch.randn(4, 1, 28, 28).double()
    logits = at(model, 0.5).classifier(x)
    with torch.no_grad():
        model.up[1].bias += 1.0  # of the residual's network alone
    moved = at(model, 0.5).classifier(x)
    assert torch.allclose(logits.softmax(1), moved.softmax(1)) and (logits - moved).abs().min() > 1.0


def test_levels_and_pixels_reach_energy_and_classes():
    model, x = stirred(), torch.randn(2, 1, 28, 28).double()
    low, high = (at(model, s) for s in (0.2, 1.0))
    assert (low.posterior(x) - high.posterior(x)).abs().max() > 1e-4
    (by_pixel,) = torch.autograd.grad(low.posterior(x.requires_grad_())[:, 0].sum(), x)
    assert (by_pixel.abs() > 0).double().mean() > 0.9


def test_the_loss_is_that_of_vincent_weighed_and_reaches_every_weight():
    model = stirred()
    v, y = torch.randint(0, 256, (6, 1, 28, 28)), torch.arange(6)
    torch.manual_seed(3)
    terms = noisy_loss(model.float(), (v, y), weight=0.5)
    torch.manual_seed(3)
    x = v.float() / 127.5 - 1
    sigma = 0.1 * 20 ** torch.rand(6)
    noise, found = torch.randn_like(x), []
    for k, s in enumerate(sigma.tolist()):
        noisy = (x[k : k + 1] + s * noise[k : k + 1]).requires_grad_()
        (slope,) = torch.autograd.grad(at(model, s).energy(noisy).sum(), noisy)
        score = -noise[k] / s  # of the noise's density, at the noisy image
        found.append((s**2 * (s**2 + 0.36) / 0.36 * 0.5 * (-slope[0] - score).square().mean()).item())
    assert terms["denoising"].item() == pytest.approx(sum(found) / 6, rel=1e-4)
    posterior = torch.stack([at(model, s).posterior(x[k : k + 1] + s * noise[k])[0, k] for k, s in enumerate(sigma.tolist())])
    assert terms["class"].item() == pytest.approx(-0.5 * posterior.log().mean().item(), rel=1e-4)
    sum(terms.values()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def bend(s, w=0.6):
    "Slope of the untrained energy over x."
    return s**2 / (s**2 + w**2) ** 2


def test_a_descent_has_its_closed_form():
    "On a round bowl every step multiplies by one number."
    model, x = NoisyJEM(), torch.randn(3, 1, 28, 28)
    factor = lambda s, rate: 1 - rate * s**2 * bend(s)
    expected = x * factor(1.0, 0.2) * factor(0.1**0.5, 0.2) * factor(0.1, 0.2) * factor(0.1, 1.0)
    assert torch.allclose(repair(model, x, 1.0, 3, noisy=True, rate=0.2, heat=0.0), expected, atol=1e-5)


def test_walks_at_one_level_have_its_temperature():
    model = NoisyJEM(smallest=0.5)
    found = repair(model, torch.zeros(40, 1, 28, 28), 0.5, 100, rate=0.4, generator=torch.Generator().manual_seed(0))
    step = 0.4 * 0.25
    expected = math.sqrt(2 * step / (1 - (1 - step * bend(0.5)) ** 2)) * (1 - 0.25 * bend(0.5))  # of the chain, then its last step
    assert found.std().item() == pytest.approx(expected, rel=0.02)


def test_trusted_pixels_stay_and_hold_the_others():
    model, x = stirred().float(), torch.randn(2, 1, 28, 28)
    trusted = torch.rand(x.shape) < 0.5
    run = lambda **options: repair(model, x, 1.0, 4, generator=torch.Generator().manual_seed(0), **options)
    held = run(trusted=trusted)
    assert torch.equal(held[trusted], x[trusted]) and not torch.equal(held[~trusted], run()[~trusted])
    assert torch.equal(held, run(trusted=trusted)) and (held[~trusted] != x[~trusted]).all()


def test_an_unknown_level_is_refused():
    for sigma in (0.05, 3.0):
        with pytest.raises(ValueError, match="expected 0.1 to 2.0"):
            at(NoisyJEM(), sigma)
    with pytest.raises(ValueError, match="sigma"):
        repair(NoisyJEM(), torch.zeros(1, 1, 28, 28), 2.5)


@pytest.mark.parametrize("way", ["denoising", "chains"])
def test_both_trainings_move_their_weights(way):
    torch.manual_seed(0)
    v, y = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8), torch.arange(40) % 10
    weights = repair_weights(way, v, y, 2)
    model = NoisyJEM() if way == "denoising" else JEM(conv_classifier((1, 28, 28), width=16))
    before = {k: w.clone() for k, w in model.state_dict().items()}
    model.load_state_dict(weights)
    assert all(not torch.equal(before[k], w) for k, w in weights.items())
