"Masked autoregressive flows: what depends on what, and the order between layers."
import torch
from zoo import randomized

from densegen.flows.masked import MAF, MaskedAutoregressive
from densegen.flows.bijections import reference_ladj


def test_a_component_depends_on_exactly_those_before():
    torch.manual_seed(0)
    layer = randomized(MaskedAutoregressive(6, width=40), 0.4).double()
    J = torch.autograd.functional.jacobian(lambda v: layer(v)[0][0], torch.randn(1, 6, dtype=torch.float64))[:, 0]
    assert J.triu(1).abs().max() == 0 and J.abs()[torch.ones(6, 6).tril() > 0].min() > 0


def test_the_order_is_turned_between_layers():
    torch.manual_seed(0)
    flow = randomized(MAF(4, layers=2, width=24), 0.4).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    J = torch.autograd.functional.jacobian(lambda v: flow.encode(v)[0], x[:1])[:, 0]
    assert (J.abs() > 0).sum() == 16  # every latent hears of every component
    assert torch.allclose(flow.bijection(x)[1], reference_ladj(flow.bijection, x), atol=1e-9)
    assert torch.allclose(flow.decode(flow.encode(x)), x, atol=1e-9)


def test_a_flow_of_one_layer_starts_as_a_standard_normal():
    flow, x = MAF(3, layers=1, width=8), torch.randn(5, 3)
    assert torch.allclose(flow.log_prob(x), flow.base.log_prob(x), atol=1e-6)
