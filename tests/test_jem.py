"""JEM: the posterior, the marginal, calibration against a direct computation, attacks inside their box."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densegen.energy.jem import (
    JEM,
    JointLoss,
    best_temperature,
    calibration,
    calibration_error,
    conv_classifier,
    mass_score,
    pgd,
    smooth_classifier,
)
from densegen.energy.learning import ContrastiveDivergence
from densegen.energy.samplers import Langevin, ReplayBuffer


@pytest.fixture
def model():
    return JEM(smooth_classifier(16, classes=4, width=8)).double()


def inputs(n=6):
    return torch.rand(n, 1, 4, 4, dtype=torch.float64) * 2 - 1


def test_marginal_sums_the_joint_and_divides_to_the_posterior(model):
    x = inputs()
    joint = torch.stack([model.log_prob(x, torch.full((6,), y)) for y in range(4)], 1)
    assert torch.allclose(joint.logsumexp(1), model.log_prob(x))
    assert torch.allclose((joint - model.log_prob(x)[:, None]).exp(), model.posterior(x))
    assert torch.equal(model.energy(x), -model.log_prob(x)) and model.log_prob_is == "unnormalized"


def test_joint_loss_is_cross_entropy_plus_gap(model):
    x, y = inputs(), torch.tensor([0, 1, 2, 3, 0, 1])
    assert torch.allclose(JointLoss(noise=0.0)(model, (x, y))["class"], F.cross_entropy(model.classifier(x), y))
    buffer = ReplayBuffer(8, (1, 4, 4)).double()
    loss = JointLoss(ContrastiveDivergence(Langevin(0.1), 1, "buffer", buffer, penalty=0.1))
    assert set(loss(model, (x, y))) == {"class", "gap", "penalty"}


def one_sample(state):
    "A density term whose samples are all this image: a buffer full of it, and a sampler that does not move."
    buffer = ReplayBuffer(8, state.shape, reinit=0.0).double()
    buffer.states[:] = state
    return ContrastiveDivergence(Langevin(0.0, noise=0.0), 1, "buffer", buffer)


def gradients(value, model):
    return torch.autograd.grad(value, list(model.parameters()), retain_graph=True)


def test_density_term_raises_the_data_and_lowers_the_samples(model):
    x, y, sample = inputs(), torch.tensor([0, 1, 2, 3, 0, 1]), inputs(1)
    margin = lambda: model.log_prob(x).mean() - model.log_prob(sample).mean()
    terms = JointLoss(one_sample(sample[0]), noise=0.0)(model, (x, y))
    descent = gradients(terms["gap"], model)
    for ours, exact in zip(descent, gradients(-margin(), model)):
        assert torch.allclose(ours, exact)
    before = margin().item()
    with torch.no_grad():
        for p, g in zip(model.parameters(), descent):
            p -= 1e-3 * g
    assert margin() > before


def test_class_term_is_untouched_by_the_density(model):
    x, y = inputs(), torch.tensor([0, 1, 2, 3, 0, 1])
    alone = JointLoss(noise=0.0)(model, (x, y))["class"]
    beside = JointLoss(one_sample(inputs(1)[0]), noise=0.0)(model, (x, y))["class"]
    for ours, plain in zip(gradients(beside, model), gradients(alone, model)):
        assert torch.equal(ours, plain)


def test_class_and_density_pull_at_different_things(model):
    "Cross-entropy leaves the common height of the logits alone; -log p(x) pulls it up, with weight one in all."
    logits, y = model.classifier(inputs()).detach().requires_grad_(), torch.tensor([0, 1, 2, 3, 0, 1])
    (by_class,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), logits)
    (by_density,) = torch.autograd.grad(JEM(nn.Identity()).energy(logits).sum(), logits)
    assert torch.allclose(by_class.sum(1), torch.zeros(6).double(), atol=1e-12)
    assert torch.allclose(by_density.sum(1), -torch.ones(6).double())


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 14, 14), (3, 32, 32)])
def test_conv_classifier_is_smooth_and_looks_at_one_image(shape):
    net, x = conv_classifier(shape, classes=4, width=4).double(), torch.rand(3, *shape, dtype=torch.float64)
    assert net(x).shape == (3, 4)
    assert torch.allclose(net(x)[:1], net(x[:1]))
    line = lambda t: net(x[:1] + t)[0, 0]
    assert torch.autograd.functional.hessian(line, torch.zeros((), dtype=torch.float64)).abs() > 0


def test_best_temperature_undoes_a_factor():
    logits = 2 * torch.randn(20_000, 5, dtype=torch.float64)
    y = torch.distributions.Categorical(logits=logits).sample()
    for factor in (0.5, 1.0, 3.0):
        assert abs(best_temperature(factor * logits, y) / factor - 1) < 0.05


def test_mass_score_is_the_slope_of_the_density(model):
    x = inputs(3)
    slopes = [torch.autograd.functional.jacobian(lambda u: model.log_prob(u[None])[0], row).norm() for row in x]
    assert torch.allclose(mass_score(model, x), torch.stack(slopes))


def test_calibration_against_a_loop():
    p = torch.softmax(3 * torch.randn(500, 5, dtype=torch.float64), 1)
    y = torch.randint(5, (500,))
    confidence, guess = p.max(1)
    total = 0.0
    for low in torch.arange(10) / 10:
        chosen = (confidence > low) & (confidence <= low + 0.1)
        if chosen.any():
            gap = (guess[chosen] == y[chosen]).double().mean() - confidence[chosen].mean()
            total += chosen.double().mean() * gap.abs()
    assert torch.allclose(calibration_error(p, y), total)
    assert torch.allclose(calibration(p, y)[0].sum(), torch.ones((), dtype=torch.float64))
    assert calibration(p.float(), y)[0].dtype == calibration_error(p.float(), y).dtype == torch.float64


def test_calibrated_and_over_confident():
    sure = torch.tensor([[0.9, 0.1]]).expand(1000, 2)
    y = (torch.arange(1000) % 10 == 0).long()
    assert calibration_error(sure, y) < 1e-4
    assert abs(calibration_error(sure, (torch.arange(1000) % 2).long()) - 0.4) < 1e-4


def test_attacks_stay_in_the_box_and_raise_the_loss(model):
    x, y = inputs(20), torch.randint(4, (20,))
    attacked = pgd(model, x, y, epsilon=0.1)
    assert (attacked - x).abs().max() <= 0.1 + 1e-12 and attacked.abs().max() <= 1
    loss = lambda x: F.cross_entropy(model.classifier(x), y)
    assert loss(attacked) > loss(x) and torch.equal(pgd(model, x, y, 0.0), x)


def test_attack_on_a_linear_classifier_is_the_best_one():
    "There the worst change is known: epsilon times the sign of the weights' difference."
    net = nn.Linear(5, 2).double()
    x, y = torch.zeros(1, 5, dtype=torch.float64), torch.tensor([0])
    best = x + 0.2 * (net.weight[1] - net.weight[0]).sign()
    assert torch.allclose(pgd(JEM(net), x, y, 0.2), best.detach())


def test_noise_is_added_to_what_the_classifier_and_the_density_see():
    "Of the given deviation, anew at each call; the given images stay as they are."
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return x.flatten(1)[:, :4]

    x, y = torch.zeros(500, 1, 4, 4), torch.zeros(500, dtype=torch.long)
    for sigma in (0.03, 0.3):
        seen.clear()
        JointLoss(lambda model, x: {"gap": model.energy(x).mean()}, noise=sigma)(JEM(Spy()), (x, y))
        JointLoss(noise=sigma)(JEM(Spy()), (x, y))
        assert all(abs(t.std() / sigma - 1) < 0.05 and abs(t.mean()) < 0.05 * sigma for t in seen) and len(seen) == 3
        assert seen[0].equal(seen[1]) and not seen[0].equal(seen[2]) and (x == 0).all()


def test_the_default_noise_is_that_of_the_paper():
    assert JointLoss().noise == 0.03


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.half, torch.bfloat16], ids=str)
def test_calibration_of_two_million_in_any_format(dtype):
    "In float32 sums stop growing at 16.8 million, in half precision at 2048; 0.95 itself is rounded by the format."
    n, confidence = 2_000_000, torch.tensor(0.95).to(dtype)
    sure = torch.stack([confidence, 1 - confidence]).expand(n, 2)
    y = (torch.arange(n) % 10 == 0).long()  # right nine times in ten
    assert abs(calibration_error(sure, y) - (confidence.double() - 0.9)) < 1e-9


@pytest.mark.parametrize("wrong", [torch.randn(6, 4), torch.full((6, 4), 0.5), torch.full((6, 4), torch.nan)])
def test_logits_are_not_taken_for_probabilities(wrong):
    with pytest.raises(ValueError, match="posterior: expected rows of probabilities that add to 1"):
        calibration_error(wrong, torch.zeros(6, dtype=torch.long))


def test_densities_of_a_half_precision_classifier_are_float32(model):
    x = inputs()
    wanted = model.log_prob(x)
    narrow, posterior = model.bfloat16().log_prob(x.bfloat16()), model.posterior(x.bfloat16())
    assert narrow.dtype == posterior.dtype == torch.float32
    assert torch.allclose(narrow.double(), wanted, atol=0.05) and (posterior.sum(1) - 1).abs().max() < 1e-6


def test_each_bin_is_judged_for_itself():
    "Too sure at 0.85 and not sure enough at 0.95: together they would look calibrated."
    posterior = torch.tensor([[0.85, 0.15], [0.95, 0.05]], dtype=torch.float64).repeat_interleave(20, 0)
    y = torch.tensor([0] * 16 + [1] * 4 + [0] * 20)  # 0.80 and 1.00 are right
    assert calibration_error(posterior, y).item() == pytest.approx(0.05)
    assert calibration(posterior, y)[1].tolist() == pytest.approx([0.85, 0.95])
