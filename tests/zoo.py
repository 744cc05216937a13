"""Every bijection and density that the contracts hold to account: a model joins by one line."""
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from densegen.energy.energy import EnergyModel, QuadratureEBM, energy_net
from densegen.energy.jem import JEM, smooth_classifier
from densegen.energy.learning import RBM, conv_energy_net
from densegen.energy.samplers import Ising
from densegen.flows.masked import MAF, MaskedAutoregressive
from densegen.flows.bijections import (
    Affine,
    Bijection,
    Compose,
    Flow,
    Inverse,
    Permutation,
    SinhArcsinh,
    StandardNormal,
)
from densegen.flows.coupling import (
    CheckerboardCoupling,
    Coupling,
    Couplings,
    ImageCoupling,
    RealNVP,
    Shift,
)
from densegen.flows.dequantization import ConditionalPrior, ImageFlow, OnFirstHalf, multiscale
from densegen.flows.glow import ActNorm, Glow, GlowStep, GlowSteps, InvertibleConv
from densegen.flows.residual import ResidualBlock, ResidualFlow, lipschitz_net, tighten
from densegen.flows.splines import LogisticMixture, Spline
from densegen.flows.tarflow import CausalBlock, Patches, TarFlow


@dataclass
class Case:
    "How to make a model, and the shapes that it takes."
    make: callable
    shape: tuple[int, ...]
    context: int = 0

    def inputs(self, n: int, dtype=torch.float32, device="cpu") -> tuple[Tensor, Tensor | None]:
        x = torch.randn(n, *self.shape, dtype=dtype, device=device)
        c = torch.randn(n, self.context, dtype=dtype, device=device) if self.context else None
        return x, c


BIJECTIONS = {
    "affine": Case(lambda: Affine(3), (3,)),
    "affine of images": Case(lambda: Affine((2, 3, 3)), (2, 3, 3)),
    "permutation": Case(lambda: Permutation(torch.tensor([2, 0, 1])), (3,)),
    "sinh-arcsinh": Case(lambda: SinhArcsinh(3), (3,)),
    "inverse": Case(lambda: Inverse(SinhArcsinh(2)), (2,)),
    "compose": Case(lambda: Compose(SinhArcsinh(3), Permutation(torch.tensor([1, 2, 0])), Affine(3)), (3,)),
    "coupling": Case(lambda: Coupling(2, width=8), (2,)),
    "coupling, flipped, odd": Case(lambda: Coupling(5, width=8, flip=True), (5,)),
    "coupling with context": Case(lambda: Coupling(4, width=8, context=3), (4,), 3),
    "couplings": Case(lambda: Couplings(3, layers=4, width=8), (3,)),
    "additive coupling": Case(lambda: Coupling(3, width=8, transform=Shift()), (3,)),
    "spline coupling": Case(lambda: Coupling(3, width=8, transform=Spline(bins=4)), (3,)),
    "mixture coupling": Case(lambda: Coupling(3, width=8, transform=LogisticMixture(parts=3)), (3,)),
    "autoregressive": Case(lambda: MaskedAutoregressive(4, width=8), (4,)),
    "autoregressive spline": Case(lambda: MaskedAutoregressive(3, width=8, transform=Spline(bins=3)), (3,)),
    "image coupling": Case(lambda: ImageCoupling(3, width=8), (3, 2, 4)),
    "image coupling, context": Case(lambda: ImageCoupling(2, width=8, context=2, transform=Spline(bins=3)), (2, 3, 3), 2),
    "checkerboard": Case(lambda: CheckerboardCoupling(2, width=8, flip=True), (2, 3, 4)),
    "conditional prior": Case(lambda: ConditionalPrior(3), (3, 2, 2)),
    "first half": Case(lambda: OnFirstHalf(ImageCoupling(2, width=8)), (4, 2, 3)),
    "pyramid": Case(lambda: multiscale(1, 2, lambda c: ImageCoupling(c, width=8)), (1, 4, 8)),
    "actnorm": Case(lambda: ActNorm(2), (2, 3, 2)),
    "1x1 convolution": Case(lambda: InvertibleConv(3), (3, 2, 2)),
    "glow step": Case(lambda: GlowStep(4, width=8), (4, 2, 2)),
    "whole glow": Case(lambda: Glow((1, 4, 4), levels=2, steps=2, width=8).bijection, (1, 4, 4)),
    "glow steps": Case(lambda: GlowSteps(4, steps=3, width=8), (4, 2, 2)),
    "couplings with context": Case(lambda: Couplings(2, layers=3, width=8, context=2), (2,), 2),
    "causal block": Case(lambda: CausalBlock((4, 3), width=8, heads=2), (4, 3)),
    "causal block, turned": Case(lambda: CausalBlock((3, 2), width=8, heads=2, flip=True), (3, 2)),
    "residual block": Case(lambda: ResidualBlock(lipschitz_net((3,), 8), ladj="exact"), (3,)),
    "residual block of images": Case(lambda: ResidualBlock(lipschitz_net((1, 3, 4), 4), ladj="exact"), (1, 3, 4)),
}

DENSITIES = {
    "standard normal": Case(lambda: StandardNormal(2), (2,)),
    "flow of axes": Case(lambda: Flow(Compose(SinhArcsinh(2), Affine(2)), StandardNormal(2)), (2,)),
    "realnvp": Case(lambda: RealNVP(2, layers=4, width=16), (2,)),
    "realnvp, odd": Case(lambda: RealNVP(5, layers=3, width=16), (5,)),
    "realnvp with dropout": Case(lambda: RealNVP(4, layers=4, width=16, dropout=0.5), (4,)),
    "energy by quadrature": Case(lambda: QuadratureEBM(2, width=8, limit=8.0, points=160), (2,)),
    "spline flow": Case(lambda: RealNVP(2, layers=4, width=16, transform=Spline(bins=4)), (2,)),
    "autoregressive flow": Case(lambda: Flow(MaskedAutoregressive(2, width=8), StandardNormal(2)), (2,)),
    "maf": Case(lambda: MAF(2, layers=3, width=8), (2,)),
    "tarflow": Case(lambda: TarFlow((1, 4, 4), patch=2, width=8, blocks=2, depth=1, heads=2), (1, 4, 4)),
    "flow of images": Case(lambda: ImageFlow(CheckerboardCoupling(1, width=8), StandardNormal((1, 4, 4))), (1, 4, 4)),
    "glow": Case(lambda: Glow((1, 2, 2), levels=1, steps=2, width=8), (1, 2, 2)),
    "glow with classes": Case(lambda: Glow((1, 4, 4), levels=1, steps=2, width=8, classes=3), (1, 4, 4)),
    "realnvp with context": Case(lambda: RealNVP(2, layers=4, width=16, context=3), (2,), 3),
    "residual flow": Case(lambda: ResidualFlow(2, blocks=3, width=8), (2,)),
}


def randomized(model: nn.Module, std: float = 0.5) -> nn.Module:
    "Random parameters everywhere, in evaluation mode: a start at the identity would hide mistakes."
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=std)
    tighten(model, tolerance=1e-6)
    return model.eval()


def trained(model: nn.Module, case: Case, steps: int = 60) -> nn.Module:
    "A few steps of gradient descent towards skewed data."
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        x, c = case.inputs(128)
        x = 2 * x + 0.5 * x.square()
        if isinstance(model, Bijection):
            z, ladj = model(x, c)
            loss = (0.5 * z.square().flatten(1).sum(1) - ladj).mean()
        else:
            loss = model.loss(x if c is None else (x, c))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


# energies: `log_prob` is minus the energy and a constant, which only the exact ones know
ENERGIES = {
    "energy network": (lambda: EnergyModel(energy_net(3, 8)), lambda n: torch.randn(n, 3)),
    "energy of images": (lambda: EnergyModel(conv_energy_net(2, 8, 4), bowl=2.0), lambda n: torch.randn(n, 2, 8, 8)),
    "energy by quadrature": (lambda: QuadratureEBM(2, width=8), lambda n: torch.randn(n, 2).clamp(-3, 3)),
    "classifier as energy": (lambda: JEM(smooth_classifier(12, 4, 8)), lambda n: torch.randn(n, 3, 2, 2)),
    "boltzmann machine": (lambda: RBM(6, 4), lambda n: torch.randint(2, (n, 6)).float()),
    "ising": (lambda: Ising(4, 0.3, 0.1), lambda n: 2.0 * torch.randint(2, (n, 4, 4)) - 1),
}


def binary_states(n: int) -> Tensor:
    "All vectors of n zeros and ones [2^n, n], float64."
    return torch.arange(2**n)[:, None].bitwise_right_shift(torch.arange(n)).bitwise_and(1).double()
