"""JEM: the posterior, the marginal, calibration against a direct computation, attacks inside their box."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densegen.energy.jem import JEM, JointLoss, calibration, calibration_error, mass_score, pgd, smooth_classifier
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
