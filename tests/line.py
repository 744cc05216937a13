"""A straight line to be trained, and how: what the tests of `fit` and the processes that they start share."""
import torch
from torch import nn

from densegen.workbench.training import fit


class Line(nn.Module):
    "A straight line with dropout, so that random numbers matter, and a buffer, so that buffers do."

    def __init__(self, width=1):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, 2))
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, batch):
        x, y = batch
        self.seen += len(x)
        x = nn.functional.dropout(x, 0.3, self.training)
        return {"fit": (self.w[0, 0] * x + self.w[0, 1] - y).square().mean(), "decay": 1e-3 * self.w.square().sum()}


def line_data(n=200):
    x = torch.linspace(-1, 1, n)
    return x, 2 * x - 1


def run(steps, **options):
    torch.manual_seed(3)
    model = options.pop("model", None) or Line()
    options = {"batch_size": 32, "lr": 0.05, "ema": 0.9, "seed": 1} | options
    history = fit(model, options.pop("data", line_data()), steps=steps, **options)
    return model, history
