"""Times samplers beside the bare forward pass and input gradient of the energy network; prints a Markdown table and judges nothing.

The column "fewest" is MALA written out by hand, with nothing but what its equations need: what is above it is ours."""
import platform
import statistics
import time

import torch

from densegen.energy.energy import EnergyModel, energy_net
from densegen.energy.learning import conv_energy_net
from densegen.energy.samplers import HMC, MALA, Langevin

CHAINS, STEPS, ROUNDS = 512, 20, 12


def bare(model: EnergyModel, x: torch.Tensor) -> None:
    "As many forward passes and input gradients as the sampler makes."
    for _ in range(STEPS):
        x = x.detach().requires_grad_()
        torch.autograd.grad(model.energy(x).sum(), x)


@torch.no_grad()
def fewest(model: EnergyModel, x: torch.Tensor, step: float = 1e-3) -> None:
    "MALA in the fewest operations: two draws, a proposal, a gradient, a ratio, three choices; no checks, no first gradient."
    here, slope, size = x.new_zeros(len(x)), torch.zeros_like(x), (2 * step) ** 0.5
    for _ in range(STEPS):
        r = torch.randn_like(x).sub_(slope, alpha=0.5 * size)
        with torch.enable_grad():
            proposal = torch.add(x, r, alpha=size).requires_grad_()
            there = model.energy(proposal)
            (steep,) = torch.autograd.grad(there.sum(), proposal)
        end = torch.sub(r, steep, alpha=0.5 * size)
        kinetic = (r.square() - end.square()).flatten(1).sum(1)  # r has taken half a step already: near enough for a clock
        taken = torch.rand_like(here).log_() < here - there.detach() + 0.5 * kinetic
        rows = taken.view(-1, *[1] * (x.ndim - 1))
        x, slope = torch.where(rows, proposal.detach(), x), torch.where(rows, steep, slope)
        here = torch.where(taken, there.detach(), here)


def main() -> None:
    torch.manual_seed(0)
    shapes = {
        "MLP 64-256-256-1, 64 numbers": (EnergyModel(energy_net(64, 256)), (64,)),
        "convolutions, 1x8x8": (EnergyModel(conv_energy_net(1, 8, 32), bowl=None), (1, 8, 8)),
        "convolutions, 1x28x28": (EnergyModel(conv_energy_net(1, 28, 16), bowl=None), (1, 28, 28)),
    }
    samplers = {"Langevin": Langevin(1e-3), "MALA": MALA(1e-3)}
    print(f"{CHAINS} chains, {STEPS} gradients each, float32; torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{platform.machine()}; processor time, medians of {ROUNDS} interleaved rounds\n")
    shown = (*samplers, "MALA, fewest", "HMC")
    print("| energy | bare ms | " + " | ".join(f"{name}, times bare" for name in shown) + " |")
    print("| --- " * (2 + len(shown)) + "|")
    for name, (model, shape) in shapes.items():
        x = torch.randn(CHAINS, *shape)
        work = {"bare": lambda: bare(model, x), "HMC": lambda: HMC(1e-2, 5).sample(model, x, STEPS // 5)}
        work |= {key: lambda s=sampler: s.sample(model, x, STEPS) for key, sampler in samplers.items()}
        work["MALA, fewest"] = lambda: fewest(model, x)
        times = {key: [] for key in work}
        for _ in range(ROUNDS):
            for key, call in work.items():
                began = time.process_time()
                call()
                times[key].append(1e3 * (time.process_time() - began))
        medians = {key: statistics.median(t) for key, t in times.items()}
        ratios = " | ".join(f"{medians[key] / medians['bare']:.2f}" for key in shown)
        print(f"| {name} | {medians['bare']:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
