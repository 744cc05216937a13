"""Trains RealNVP and its four affine peers on digits and on two moons, and saves the table that `31_coupling` reads.

`python tests/benchmarks/affine_peers.py` makes 45 trainings, which take about an hour on two cores, and writes
`results/31_coupling.json`. With `--try` every library that is installed takes three steps, and nothing is written.
"""
import argparse
import copy
import importlib.util
import math
from functools import partial

import torch
from torch import nn

from densegen.flows.bijections import Affine, StandardNormal
from densegen.flows.coupling import RealNVP, coupling_net
from densegen.workbench.data import density2d, images
from densegen.workbench.run import save_table, start
from densegen.workbench.training import Diverged, cosine, fit

D, LEVELS = 64, 17  # pixels of a digit and their grey levels
FORMS = {"plain": {}, "dropout, averaging": {"dropout": 0.3}}


class Peer(nn.Module):
    "Any object with log_prob(x) as a model that `fit` can train."

    def __init__(self, model, log_prob):
        super().__init__()
        self.model, self._log_prob = model, log_prob

    def log_prob(self, x):
        return self._log_prob(self.model, x)

    def loss(self, x):
        return -self.log_prob(x).mean()


class IgnoreContext(nn.Sequential):
    def forward(self, x, context=None):
        return super().forward(x)


def normflows_flow(dim: int, dropout: float = 0.0) -> Peer:
    import normflows as nf

    parts = []
    for i in range(8):
        parts += [nf.flows.Permute(dim)] if dim > 2 and i % 2 == 0 else []
        net = coupling_net(dim // 2, dim, dropout=dropout)
        parts += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(dim, mode="swap")]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(dim, trainable=False), parts)
    return Peer(model, lambda m, x: m.log_prob(x))


def zuko_flow(dim: int, dropout: float = 0.0) -> Peer:
    import zuko

    options = {"hidden_features": (128, 128), "activation": lambda: nn.Sequential(nn.ReLU(), nn.Dropout(dropout))}
    return Peer(zuko.flows.NICE(dim, transforms=8, randmask=dim > 2, **options), lambda m, x: m().log_prob(x))


def nflows_flow(dim: int, dropout: float = 0.0) -> Peer:
    from nflows import distributions, flows, transforms

    parts, net = [], lambda i, o: IgnoreContext(coupling_net(i, o, dropout=dropout))
    for i in range(8):
        parts += [transforms.RandomPermutation(dim)] if dim > 2 and i % 2 == 0 else []
        mask = (torch.arange(dim) < dim // 2) ^ (i % 2 == 1)
        parts.append(transforms.AffineCouplingTransform(mask, net))
    model = flows.Flow(transforms.CompositeTransform(parts), distributions.StandardNormal([dim]))
    return Peer(model, lambda m, x: m.log_prob(x))


def freia_flow(dim: int, dropout: float = 0.0) -> Peer:
    from FrEIA import framework, modules

    model, base = framework.SequenceINN(dim), StandardNormal(dim)
    for _ in range(4):  # a block changes both halves
        model.append(modules.PermuteRandom)
        model.append(modules.GLOWCouplingBlock, subnet_constructor=partial(coupling_net, dropout=dropout))

    def log_prob(m, x):
        z, ladj = m(x)
        return base.log_prob(z) + ladj

    return Peer(model, log_prob)


CONTEST = {"densegen": RealNVP, "normflows": normflows_flow, "zuko": zuko_flow, "nflows": nflows_flow, "FrEIA": freia_flow}


class Digits(nn.Module):
    "A density of standardized vectors as a bound for digits, in bits per dimension."

    def __init__(self, density: nn.Module, standardize: Affine):
        super().__init__()
        self.density, self.standardize = density, standardize

    def bits_per_dim(self, v, generator=None):
        x = (v.flatten(1) + torch.rand(len(v), D, generator=generator)) / LEVELS
        z, ladj = self.standardize(x)
        return (D * math.log(LEVELS) - self.density.log_prob(z) - ladj) / (D * math.log(2))

    def loss(self, v):
        return self.bits_per_dim(v).mean()


def bits(model: Digits, v: torch.Tensor) -> torch.Tensor:
    "Bits/dim of each image: the mean over four draws of the noise, the same for every model."
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return torch.stack([model.bits_per_dim(v, generator) for _ in range(4)]).mean(0)


class Choice:
    "Mean bits/dim of the validation digits, and a copy of the model from its best moment."

    def __init__(self, v: torch.Tensor):
        self.v, self.bits, self.model = v, math.inf, None

    def __call__(self, model: Digits) -> float:
        now = bits(model, self.v).mean().item()
        if now < self.bits:
            self.bits, self.model = now, copy.deepcopy(model)
        return now


def digits_row(name: str, form: str, seed: int, steps: int = 600) -> dict:
    "One training on the digits: the test at the moment chosen on validation, and what came after it."
    pixels, test = images("digits", split="train").images, images("digits", split="test").images
    train, choice = pixels[:1250], Choice(pixels[1250:])
    noisy = (train.flatten(1) + torch.rand(len(train), D, generator=torch.Generator().manual_seed(0))) / LEVELS
    standardize = Affine(D, shift=noisy.mean(0), log_scale=noisy.std(0).log()).requires_grad_(False)
    torch.manual_seed(seed)
    model = Digits(CONTEST[name](D, **FORMS[form]), standardize)
    settings = {"steps": steps, "batch_size": 128, "lr": 2e-3, "clip": 50.0, "seed": seed, "every": min(50, steps)}
    try:
        history = fit(model, train, evaluate=choice, ema=0.99 if FORMS[form] else None, **settings)
        end, step = history.evaluated[-1][1], history.best[0]
    except Diverged:
        end, step = None, None
    row = {"set": "digits", "model": name, "form": form, "seed": seed, "parameters": parameters(model)}
    row |= {"test bits/dim": bits(choice.model, test).mean().item(), "validation bits/dim": choice.bits}
    return row | {"validation, last": end, "chosen at step": step}


def moons_row(name: str, seed: int, steps: int = 600) -> dict:
    "One training on two moons, where the data never end: no choice, the last weights."
    moons = density2d("two_moons")
    torch.manual_seed(seed)
    model = CONTEST[name](2)
    fit(model, moons.sample, steps=steps, lr=3e-3, schedule=cosine(), clip=10.0, seed=seed)
    with torch.no_grad():
        nats = model.log_prob(moons.sample(10_000, generator=torch.Generator().manual_seed(1))).mean().item()
    row = {"set": "two moons", "model": name, "form": "plain", "seed": seed}
    return row | {"parameters": parameters(model), "test nats": nats}


def parameters(model: nn.Module) -> int:
    "How many numbers are trained."
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", action="store_true", dest="short", help="three steps each, nothing is written")
    short = parser.parse_args().short
    present = [name for name in CONTEST if importlib.util.find_spec(name)]
    print("installed here:", ", ".join(present))
    start("smoke" if short else "long", 0, "cpu")
    length, seeds = {"steps": 3} if short else {}, (0,) if short else (0, 1, 2)
    rows = [digits_row(name, form, s, **length) for s in seeds for name in present for form in FORMS]
    rows += [moons_row(name, s, **length) for s in seeds for name in present]
    assert all(math.isfinite(row.get("test bits/dim", row.get("test nats"))) for row in rows)
    if not short:
        save_table("31_coupling", rows)


if __name__ == "__main__":
    main()
