"""Energies: the partition function against closed forms, the gradient identity, exact samples."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from densegen.energy.energy import EnergyModel, QuadratureEBM, box_grid, energy_net, log_partition


@settings(deadline=None, max_examples=30)
@given(dim=st.integers(1, 3), points=st.integers(1, 12), limit=st.floats(0.1, 10))
def test_cells_fill_the_box(dim, points, limit):
    centres, log_cell = box_grid(dim, limit, points)
    assert centres.shape == (points**dim, dim) and centres.abs().max() < limit
    assert math.isclose(points**dim * math.exp(log_cell), (2 * limit) ** dim, rel_tol=1e-6)
    assert centres.mean(0).abs().max() < 1e-5 * limit


@pytest.mark.parametrize("dim, points", [(1, 200), (2, 100), (3, 50)])
def test_log_partition_of_gaussians(dim, points):
    root = torch.randn(dim, dim, dtype=torch.float64) * 0.3 + torch.eye(dim, dtype=torch.float64)
    precision = root @ root.T + 0.5 * torch.eye(dim, dtype=torch.float64)
    centres, log_cell = box_grid(dim, 9.0, points)
    got = log_partition(lambda x: 0.5 * torch.einsum("bi,ij,bj->b", x, precision, x), centres.double(), log_cell)
    known = 0.5 * dim * math.log(2 * math.pi) - 0.5 * torch.logdet(precision)
    assert abs(got - known) < 1e-5


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_constants_pass_through_without_underflow(shift):
    centres, log_cell = box_grid(1, 8.0, 400)
    got = log_partition(lambda x: 0.5 * x.square().squeeze(1) + shift, centres.double(), log_cell)
    assert abs(got - (0.5 * math.log(2 * math.pi) - shift)) < 1e-6


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gradient_identity(dim):
    "Expectation under the model minus the datum's term equals autograd through log Z (float64)."
    model = QuadratureEBM(dim, width=8, limit=4.0, points=24).double()
    datum = torch.randn(3, dim, dtype=torch.float64).clamp(-3, 3)
    parameters = list(model.parameters())
    direct = torch.autograd.grad(model.log_prob(datum).mean(), parameters)
    weights = torch.softmax(-model.energy(model.centres), 0).detach()
    expectation = torch.autograd.grad((weights * model.energy(model.centres)).sum(), parameters)
    at_datum = torch.autograd.grad(model.energy(datum).mean(), parameters)
    for d, e, a in zip(direct, expectation, at_datum, strict=True):
        assert torch.allclose(d, e - a, rtol=1e-9, atol=1e-12)


def test_loss_is_the_negative_log_likelihood():
    model, x = QuadratureEBM(2, width=8, points=32), torch.randn(50, 2).clamp(-3, 3)
    terms = model.loss(x)
    assert set(terms) == {"energy", "log Z"}
    assert torch.allclose(sum(terms.values()), -model.log_prob(x).mean(), atol=1e-5)


def test_density_is_zero_outside_the_box():
    model = QuadratureEBM(2, width=8, limit=2.0, points=16)
    values = model.log_prob(torch.tensor([[0.0, 0.0], [2.1, 0.0], [0.0, -9.0]]))
    assert values[0].isfinite() and (values[1:] == -torch.inf).all()
    assert model.sample(1000).abs().max() <= 2.0


def test_nan_and_huge_values_keep_to_themselves():
    "NaN stays NaN; outside the box the density is zero, and so is its gradient."
    model = QuadratureEBM(2, width=8, limit=2.0, points=16)
    x = torch.tensor([[0.0, 0.0], [torch.nan, 0.0], [3e38, -3e38], [torch.inf, 0.0]], requires_grad=True)
    value = model.log_prob(x)
    assert value[0].isfinite() and value[1].isnan() and (value[2:] == -torch.inf).all()
    x = x.detach()[[0, 2, 3]].requires_grad_()
    model.log_prob(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


def test_samples_have_the_moments_of_the_density():
    model = QuadratureEBM(1, width=8, limit=6.0, points=600).double()
    with torch.no_grad():
        model.net[-1].weight.mul_(5)
        p = torch.softmax(-model.energy(model.centres), 0)
        mean = (p * model.centres[:, 0]).sum()
        variance = (p * (model.centres[:, 0] - mean).square()).sum()
    x = model.sample(100_000, torch.Generator().manual_seed(1))[:, 0]
    assert abs(x.mean() - mean) < 4 * (variance / len(x)).sqrt()
    assert abs(x.var() / variance - 1) < 0.03


def test_sampling_obeys_the_generator():
    model = QuadratureEBM(2, width=8, points=16)
    draw = lambda seed: model.sample(5, torch.Generator().manual_seed(seed))
    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))


def test_energy_model_takes_images_and_adds_the_bowl():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    x = torch.randn(4, 3, 2, 2)
    plain, bowl = EnergyModel(net, bowl=None), EnergyModel(net, bowl=2.0)
    assert torch.allclose(bowl.energy(x) - plain.energy(x), x.square().flatten(1).sum(1) / 8, atol=1e-5)
    assert torch.equal(plain.log_prob(x), -plain.energy(x)) and plain.log_prob_is == "unnormalized"


def test_no_parameter_is_a_mere_constant():
    "A bias of the last layer would have no gradient from any likelihood."
    assert energy_net(2)[-1].bias is None


@pytest.mark.parametrize("dim", [0, 4])
def test_dimensions_beyond_a_grid_are_refused(dim):
    with pytest.raises(ValueError, match="expected 1, 2 or 3"):
        QuadratureEBM(dim)
