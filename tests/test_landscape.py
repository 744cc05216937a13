"Counting of multiply-adds against closed forms, and widths for a number of parameters."

import pytest
import torch
from torch import nn

from densegen.families.landscape import multiply_adds, width_for

B, D, H = 4, 6, 10


def gradients(loss, net, create_graph=False):
    return torch.autograd.grad(loss, list(net.parameters()), create_graph=create_graph)


def test_a_convolution_forward_and_backward():
    layer, x = nn.Conv2d(2, 5, 3, 2, 1), torch.randn(B, 2, 8, 8)
    once = B * 9 * 2 * 5 * 16
    assert multiply_adds(lambda: layer(x)) == once
    assert multiply_adds(lambda: gradients(layer(x).sum(), layer)) == 2 * once
    assert multiply_adds(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * once


def test_a_transposed_convolution():
    layer, x = nn.ConvTranspose2d(3, 2, 4, 2, 1), torch.randn(B, 3, 5, 5)
    assert multiply_adds(lambda: layer(x)) == B * 16 * 3 * 2 * 25


def test_matrix_products_of_all_kinds():
    a, b = torch.randn(B, D, H), torch.randn(B, H, D)
    assert multiply_adds(lambda: a @ b) == B * D * H * D
    assert multiply_adds(lambda: torch.baddbmm(torch.zeros(B, D, D), a, b)) == B * D * H * D
    assert multiply_adds(lambda: nn.Linear(D, H)(torch.randn(B, D))) == B * D * H


def test_a_penalty_on_the_slope_counts_the_second_backward_pass():
    net, x = nn.Sequential(nn.Linear(D, H, bias=False), nn.Linear(H, 1, bias=False)), torch.randn(B, D)

    def penalty():
        x.requires_grad_()
        slope = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
        gradients(slope.square().sum(), net)

    once = B * (D * H + H)
    # forward; the slope; and of the slope: both factors of the last product, one of the first
    assert multiply_adds(penalty) == once + once + (2 * B * D * H + B * H)


def test_chains_are_counted():
    net, x = nn.Linear(D, 1, bias=False), torch.randn(B, D)

    def chain(steps=7):
        y = x
        for _ in range(steps):
            y = y.detach().requires_grad_()
            y = y - torch.autograd.grad(net(y).sum(), y)[0]

    assert multiply_adds(chain) == 7 * 2 * B * D


def test_counting_changes_nothing_and_ends():
    layer, x = nn.Linear(D, H), torch.randn(B, D)
    counted = []
    assert multiply_adds(lambda: counted.append(layer(x))) == B * D * H
    assert torch.equal(counted[0], layer(x))
    assert multiply_adds(lambda: None) == 0


@pytest.mark.parametrize("wanted, width", [(100, 10), (104, 10), (10_000, 100), (9_801, 99), (4, 2), (1, 1)])
def test_width_for_is_the_nearest(wanted, width):
    assert width_for(lambda w: nn.Linear(w, w, bias=False), wanted) == width


def test_width_for_says_where_no_width_fits():
    with pytest.raises(ValueError, match="expected about 9000; got 10000 at width 1; ask for"):
        width_for(lambda w: nn.Linear(100 * w, 100 * w, bias=False), 9000)
