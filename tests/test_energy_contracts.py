"""What every energy-based model promises, whether or not it knows its constant."""
import pytest
import torch
from zoo import ENERGIES, randomized


@pytest.fixture(params=ENERGIES)
def case(request):
    make, draw = ENERGIES[request.param]
    return randomized(make(), 0.3), draw, make


def test_log_prob_is_minus_energy_and_one_constant(case):
    model, draw, _ = case
    x = draw(20)
    constant = (model.log_prob(x) + model.energy(x)).double()
    assert constant.shape == (20,) and constant.std() < 1e-5 * (1 + constant.abs().max())
    if model.log_prob_is == "unnormalized":
        assert (constant == 0).all()
    else:
        assert torch.allclose(-constant[0], model.log_partition().double(), atol=1e-4)


def test_rows_do_not_see_each_other(case):
    model, draw, _ = case
    x = draw(7)
    alone = torch.cat([model.energy(row[None]) for row in x])
    assert torch.allclose(model.energy(x), alone, atol=1e-5)
    assert model.energy(x[:0]).shape == (0,)


def test_energies_have_a_slope_in_x(case):
    model, draw, _ = case
    x = draw(5).requires_grad_()
    (slope,) = torch.autograd.grad(model.energy(x).sum(), x)
    assert slope.shape == x.shape and torch.isfinite(slope).all() and (slope != 0).any()


def test_double_precision_agrees(case):
    model, draw, _ = case
    x = draw(9)
    single = model.energy(x)
    double = model.double().energy(x.double())
    assert single.dtype == torch.float32 and double.dtype == torch.float64
    assert torch.allclose(single.double(), double, atol=1e-4)


@pytest.mark.parametrize("how", ["bfloat16", "half", "autocast"])
def test_energies_of_narrow_networks_are_float32(case, how):
    model, draw, _ = case
    x = draw(32)
    if how != "autocast":
        dtype = getattr(torch, how)
        model, x = model.to(dtype), x.to(dtype)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        energy, value = model.energy(x), model.log_prob(x)
    assert energy.dtype == value.dtype == torch.float32
    wanted = model.double().energy(x.double())
    assert (energy.double() - wanted).abs().mean() < 0.01 * (x[0].numel() + wanted.abs().mean())


def test_saved_and_loaded(case):
    model, draw, make = case
    x, other = draw(4), make()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval().energy(x), model.energy(x))


def test_says_what_its_number_is(case):
    assert case[0].log_prob_is in ("exact", "quadrature", "bound", "estimate", "unnormalized")
