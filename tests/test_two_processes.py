"Two processes (gloo, on the CPU) train, count and draw as one process does with the same global batch."
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from densegen.anomaly.scores import StreamingMetrics
from densegen.energy.energy import EnergyModel, energy_net
from densegen.energy.learning import ContrastiveDivergence, Learner
from densegen.energy.samplers import Langevin, ReplayBuffer
from densegen.families.vq import Codebook
from densegen.flows.bijections import StandardNormal
from densegen.flows.coupling import RealNVP
from densegen.flows.glow import Glow, initialize_actnorm
from densegen.flows.residual import ResidualFlow
from densegen.workbench.training import Diverged, fit

ITEMS, STEPS = 64, 6
SAME = {"steps": STEPS, "seed": 5, "lr": 0.01}


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


class Quiet(nn.Module):
    "A density that is trained without noise: what differs between one process and two is then a mistake."

    def __init__(self, density):
        super().__init__()
        self.density = density

    def loss(self, x):
        return -self.density.log_prob(x).mean()


class Codes(nn.Module):
    "A codebook that follows what an encoder says."

    def __init__(self):
        super().__init__()
        self.encoder, self.codebook = nn.Linear(2, 2), Codebook(4, 2, decay=0.5, restart=False)

    def loss(self, x):
        z = self.encoder(x)
        index = self.codebook.nearest(z)
        if self.training:
            self.codebook.update(z.detach(), index)
        return (z - self.codebook.vectors[index]).square().mean()


def actnorm():
    "Its start depends on the data: on those that the process holds, unless the others hear of it."
    glow = Glow((1, 4, 4), levels=1, steps=2, width=4)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    initialize_actnorm(glow.bijection, (1 + rank) * torch.randn(16, 1, 4, 4, generator=dice(7)))
    return Quiet(glow), {"clip": 1.0}


MODELS = {
    "average of the weights": lambda: (Quiet(RealNVP(2, layers=2, width=8)), {"ema": 0.8}),
    "best by evaluation": lambda: (Quiet(RealNVP(2, layers=2, width=8)), {
        "evaluate": lambda m: float(m.loss(torch.ones(4, 2))), "every": 2, "keep": "best"}),
    "start of actnorm": actnorm,
    "power iteration": lambda: (Quiet(ResidualFlow(2, blocks=2, width=8, ladj="exact")).double(), {}),  # it magnifies rounding
    "codebook": lambda: (Codes(), {}),
}


def trained(name, fabric=None):
    "The weights and buffers, and the losses, of a training of so many items at each step, together."
    torch.manual_seed(0)
    model, options = MODELS[name]()
    shape = (1, 4, 4) if name == "start of actnorm" else (2,)
    x = (1 + torch.randn(200, *shape, generator=dice())).to(next(model.parameters()).dtype)
    size = ITEMS // (fabric.world_size if fabric else 1)
    history = fit(model, x, batch_size=size, fabric=fabric, **SAME | options)
    return {"state": model.state_dict(), "losses": torch.tensor(history.loss), "looks": torch.tensor(history.evaluated)}


class Drawn(nn.Module):
    "Remembers the noise that its loss has drawn."

    def __init__(self):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.zeros(())), []

    def loss(self, x):
        self.seen.append(torch.rand(()))
        return self.w.square()


class Poisoned(Drawn):
    "Its loss is infinite at the fourth step, in the second process alone."

    def loss(self, x):
        super().loss(x)
        bad = len(self.seen) == 4 and torch.distributed.get_rank() == 1
        return self.w.square() * (torch.inf if bad else 1.0) + (torch.inf if bad else 0.0)


def chains(fabric):
    "A replay buffer after a training: the chains of each process."
    torch.manual_seed(0)
    buffer = ReplayBuffer(16, (2,), reinit=0.0)
    learner = Learner(EnergyModel(energy_net(2, 4)), ContrastiveDivergence(Langevin(0.01), 2, "buffer", buffer))
    fit(learner, torch.zeros(32, 2), batch_size=16, fabric=fabric, **SAME)
    return buffer.states


def counted(rank, world):
    metrics = StreamingMetrics(bits=12)
    scores, labels = torch.randn(1000, generator=dice()), torch.arange(1000) % 3 == 0
    metrics.update(scores[rank::world] + labels[rank::world], labels[rank::world])
    return metrics


def process(fabric, folder):
    "What each of the two does."
    found = {name: trained(name, fabric) for name in MODELS}
    found["chains"], model = chains(fabric), Drawn()
    fit(model, torch.zeros(32, 1), batch_size=4, fabric=fabric, **SAME)
    found["noise"] = torch.stack(model.seen)
    found["samples"] = StandardNormal(2).sample(5)
    try:
        fit(Poisoned(), torch.zeros(32, 1), batch_size=4, fabric=fabric, **SAME)
    except Diverged as error:
        found["diverged"] = error.step
    metrics = counted(fabric.global_rank, fabric.world_size)
    metrics.counts = fabric.all_reduce(metrics.counts, reduce_op="sum")
    found["metrics"] = tuple(metrics.compute())
    torch.save(found, Path(folder) / f"{fabric.global_rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    subprocess.run([sys.executable, __file__, str(folder)], check=True, capture_output=True, timeout=180)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_are_one(two, name):
    alone = trained(name)
    for found in two:
        for key, value in alone["state"].items():
            torch.testing.assert_close(found[name]["state"][key], value, atol=1e-5, rtol=1e-5, msg=lambda m: f"{key}: {m}")
        torch.testing.assert_close(found[name]["losses"], alone["losses"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[name]["looks"], alone["looks"], atol=1e-5, rtol=1e-5)


def test_noise_and_samples_are_not_the_same_twice(two):
    for what in ("noise", "samples"):
        assert not (two[0][what] == two[1][what]).any()


def test_each_process_keeps_its_own_chains(two):
    "Copied from the first at each step, those of the second would be lost."
    assert (two[0]["chains"] != two[1]["chains"]).all(1).float().mean() > 0.9


def test_a_divergence_in_one_process_stops_both(two):
    "The other would wait for its gradients for ever."
    assert two[0]["diverged"] == two[1]["diverged"] == 4


def test_counts_of_two_streams_add_up(two):
    expected = tuple(counted(0, 1).compute())
    assert two[0]["metrics"] == two[1]["metrics"] == expected


if __name__ == "__main__":
    torch.set_num_threads(1)
    Fabric(accelerator="cpu", devices=2, strategy="ddp_fork").launch(process, sys.argv[1])
