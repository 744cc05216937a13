"""Times samplers beside the bare forward pass and input gradient of the energy network; prints a Markdown table and judges nothing."""
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


def main() -> None:
    torch.manual_seed(0)
    shapes = {
        "MLP 64-256-256-1, 64 numbers": (EnergyModel(energy_net(64, 256)), (64,)),
        "convolutions, 1x8x8": (EnergyModel(conv_energy_net(1, 8, 32), bowl=None), (1, 8, 8)),
        "convolutions, 1x28x28": (EnergyModel(conv_energy_net(1, 28, 16), bowl=None), (1, 28, 28)),
    }
    samplers = {"Langevin": Langevin(1e-3), "MALA": MALA(1e-3)}
    print(f"{CHAINS} chains, {STEPS} gradients each, float32; torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{platform.machine()}; medians of {ROUNDS} interleaved rounds\n")
    print("| energy | bare ms | " + " | ".join(f"{name}, times bare" for name in (*samplers, "HMC")) + " |")
    print("| --- " * (3 + len(samplers)) + "|")
    for name, (model, shape) in shapes.items():
        x = torch.randn(CHAINS, *shape)
        work = {"bare": lambda: bare(model, x), "HMC": lambda: HMC(1e-2, 5).sample(model, x, STEPS // 5)}
        work |= {key: lambda s=sampler: s.sample(model, x, STEPS) for key, sampler in samplers.items()}
        times = {key: [] for key in work}
        for _ in range(ROUNDS):
            for key, call in work.items():
                began = time.perf_counter()
                call()
                times[key].append(1e3 * (time.perf_counter() - began))
        medians = {key: statistics.median(t) for key, t in times.items()}
        ratios = " | ".join(f"{medians[key] / medians['bare']:.2f}" for key in (*samplers, "HMC"))
        print(f"| {name} | {medians['bare']:.1f} | {ratios} |")


if __name__ == "__main__":
    main()
