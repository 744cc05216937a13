"Boltzmann generators: weights, log Z and its error, and the losses."
import math

import pytest
import torch
from torch import nn
from zoo import randomized

from densegen.flows.bijections import Affine, Flow, StandardNormal
from densegen.flows.boltzmann import BoltzmannGenerator, draw, effective_size, log_partition, reverse_kl, weighted_mean
from densegen.flows.coupling import RealNVP

F64 = torch.float64
M, TAU = 0.7, 0.8


def bowl(x):
    return 0.5 * ((x[:, 0] - M) / TAU).square()


def test_effective_size():
    assert effective_size(torch.full((50,), -1234.0)) == pytest.approx(50)
    assert effective_size(torch.tensor([0.0, -500.0, -900.0])) == pytest.approx(1)
    assert effective_size(torch.tensor([1.0, 1.0, 2.0]).log() + 700) == pytest.approx(16 / 6, rel=1e-5)


def test_log_partition_and_its_error():
    w = torch.tensor([1.0, 2.0, 5.0, 3.0], dtype=F64)
    value, error = log_partition(w.log())
    assert value == pytest.approx(math.log(11 / 4))
    assert error == pytest.approx((w.std(correction=0) / w.mean()).item() / 2)  # of the mean, relative
    assert log_partition(w.log() + 800)[0] == pytest.approx(value + 800)
    assert log_partition(torch.zeros(9)) == pytest.approx((0, 0))


def test_weighted_mean_and_its_error():
    torch.manual_seed(0)
    w, v = torch.rand(30, dtype=F64), torch.randn(30, dtype=F64)
    value, error = weighted_mean(v, w.log() - 900)
    assert value == pytest.approx(((w * v).sum() / w.sum()).item())
    assert error == pytest.approx(((w * (v - value)).square().sum().sqrt() / w.sum()).item())


def test_the_error_of_a_weighted_mean_is_that_of_repetitions():
    torch.manual_seed(0)
    flow = Flow(Affine(1, M, math.log(1.5)), StandardNormal(1)).double()
    found = []
    with torch.no_grad():
        for _ in range(400):
            x, log_w = draw(flow, bowl, flow.base.sample(300))
            found.append([*weighted_mean(x[:, 0], log_w), *log_partition(log_w)])
    mean, error, log_z, log_z_error = torch.tensor(found).T
    assert abs(mean.mean() - M) < 0.01 and abs(log_z.mean() - math.log(TAU * math.sqrt(2 * math.pi))) < 0.01
    assert 0.85 < error.mean() / mean.std() < 1.15 and 0.85 < log_z_error.mean() / log_z.std() < 1.15


def test_weights_are_the_energy_and_the_density_of_the_flow():
    torch.manual_seed(0)
    flow = randomized(RealNVP(2, layers=4, width=16), 0.4).double()

    class Model(nn.Module):
        def energy(self, x):
            return x.square().sum(1)

    z = torch.randn(40, 2, dtype=F64)
    x, log_w = draw(flow, Model(), z)
    assert torch.allclose(flow.encode(x), z, atol=1e-9)
    assert torch.allclose(log_w, -x.square().sum(1) - flow.log_prob(x), atol=1e-9)


def test_reverse_kl_and_its_gradient():
    flow = Flow(Affine(1, 0.2, -0.3), StandardNormal(1)).double()
    t = torch.linspace(-9, 9, 4001, dtype=F64)
    z = t[:, None]
    log_w = draw(flow, bowl, z)[1]
    weight = flow.base.log_prob(z).exp() * (t[1] - t[0])  # quadrature in place of draws
    shift, log_scale = flow.bijection.shift, flow.bijection.log_scale
    kl = math.log(TAU) - log_scale + ((2 * log_scale).exp() + (shift - M) ** 2) / (2 * TAU**2) - 0.5
    log_z = math.log(TAU * math.sqrt(2 * math.pi))
    assert torch.allclose(-(weight * log_w).sum() + log_z, kl, atol=1e-9)
    ours = torch.autograd.grad(-(weight * log_w).sum(), [shift, log_scale])
    assert torch.allclose(torch.cat(ours), torch.cat(torch.autograd.grad(kl.sum(), [shift, log_scale])), atol=1e-9)
    assert torch.equal(reverse_kl(flow, bowl, z), -log_w.mean())


def test_the_loss_holds_what_its_weight_says():
    torch.manual_seed(0)
    flow = randomized(Flow(Affine(1), StandardNormal(1)), 0.3)
    z, states = torch.randn(30, 1), torch.randn(20, 1)
    energy_term, data_term = reverse_kl(flow, bowl, z), -flow.log_prob(states).mean()
    assert BoltzmannGenerator(flow, bowl, 1.0).loss((z, states)) == {"reverse": energy_term}
    assert BoltzmannGenerator(flow, bowl, 0.0).loss((z, states)) == {"forward": data_term}
    both = BoltzmannGenerator(flow, bowl, 0.3).loss((z, states))
    assert torch.allclose(both["reverse"], 0.3 * energy_term) and torch.allclose(both["forward"], 0.7 * data_term)
    with pytest.raises(ValueError, match="reverse"):
        BoltzmannGenerator(flow, bowl, 1.5)


def test_training_on_the_energy_finds_the_gaussian():
    torch.manual_seed(0)
    model = BoltzmannGenerator(Flow(Affine(1), StandardNormal(1)), bowl, reverse=1.0)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    for _ in range(200):
        optimizer.zero_grad()
        sum(model.loss((torch.randn(256, 1), torch.zeros(1, 1))).values()).backward()
        optimizer.step()
    assert abs(model.flow.bijection.shift.item() - M) < 0.06
    assert abs(model.flow.bijection.log_scale.item() - math.log(TAU)) < 0.06


def test_nothing_that_was_not_drawn_is_seen():
    "The estimate of log Z has the well that the flow knows, and an error that does not tell of the other."
    torch.manual_seed(0)
    two = lambda x: -torch.logaddexp(-0.5 * (x[:, 0] - 30).square() + math.log(3), -0.5 * (x[:, 0] + 30).square())
    flow = Flow(Affine(1, 30.0), StandardNormal(1)).double()
    with torch.no_grad():
        log_w = draw(flow, two, flow.base.sample(1000))[1]
    value, error = log_partition(log_w)
    assert effective_size(log_w) > 999 and error < 1e-3
    assert value == pytest.approx(math.log(4 * math.sqrt(2 * math.pi)) + math.log(0.75), abs=1e-6)
