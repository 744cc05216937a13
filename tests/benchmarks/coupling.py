"""Times RealNVP beside the bare coupling networks (the limit) and its peers; prints a Markdown table and judges nothing.

Run `make bench` on a quiet machine. All models take turns in one process, so that a drift of the machine hits all alike;
the numbers are medians over the rounds, the last columns their ratios to the bare networks.
"""
import importlib.util
import platform
import statistics
import time

import torch
from torch import nn

from densegen.flows.bijections import StandardNormal
from densegen.flows.coupling import RealNVP, coupling_net

DIM, LAYERS, WIDTH, BATCH, ROUNDS, REPEAT = 2, 8, 128, 512, 150, 5


def net(inputs: int, outputs: int) -> nn.Sequential:
    return coupling_net(inputs, outputs, WIDTH)


class Bare(nn.Module):
    "The coupling networks alone, one after the other."

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(net(DIM // 2, DIM) for _ in range(LAYERS))

    def log_prob(self, x):
        half = x[:, : DIM // 2]
        return sum(net(half).sum() for net in self.nets) / len(x)


class Peer(nn.Module):
    def __init__(self, model, log_prob, sample=None):
        super().__init__()
        self.model, self._log_prob, self._sample = model, log_prob, sample

    def log_prob(self, x):
        return self._log_prob(self.model, x)

    def sample(self, n):
        return self._sample(self.model, n)


def normflows() -> Peer:
    import normflows as nf

    flows = []
    for _ in range(LAYERS):
        flows.append(nf.flows.AffineCouplingBlock(nf.nets.MLP([DIM // 2, WIDTH, WIDTH, DIM], init_zeros=True)))
        flows.append(nf.flows.Permute(DIM, mode="swap"))
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(DIM, trainable=False), flows)
    return Peer(model, lambda m, x: m.log_prob(x), lambda m, n: m.sample(n)[0])


def zuko() -> Peer:
    import zuko

    model = zuko.flows.NICE(DIM, transforms=LAYERS, hidden_features=(WIDTH, WIDTH))
    return Peer(model, lambda m, x: m().log_prob(x), lambda m, n: m().sample((n,)))


class WithoutContext(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x, context=None):
        return self.net(x)


def nflows() -> Peer:
    from nflows import distributions, flows, transforms

    parts = [
        transforms.AffineCouplingTransform(
            (torch.arange(DIM) + i) % 2, lambda a, b: WithoutContext(net(a, b))
        )
        for i in range(LAYERS)
    ]
    model = flows.Flow(transforms.CompositeTransform(parts), distributions.StandardNormal([DIM]))
    return Peer(model, lambda m, x: m.log_prob(x), lambda m, n: m.sample(n))


def freia() -> Peer:
    from FrEIA import framework, modules

    model, base = framework.SequenceINN(DIM), StandardNormal(DIM)
    for _ in range(LAYERS // 2):
        model.append(modules.GLOWCouplingBlock, subnet_constructor=net)
        model.append(modules.PermuteRandom)

    def log_prob(m, x):
        z, ladj = m(x)
        return base.log_prob(z) + ladj

    return Peer(model, log_prob, lambda m, n: m(base.sample(n), rev=True)[0])


def contestants() -> dict[str, nn.Module]:
    models = {
        "bare networks": Bare(),
        "densegen RealNVP": RealNVP(DIM, layers=LAYERS, width=WIDTH),
    }
    for name, make, package in (
        ("normflows", normflows, "normflows"),
        ("zuko NICE", zuko, "zuko"),
        ("nflows", nflows, "nflows"),
        ("FrEIA GLOW", freia, "FrEIA"),
    ):
        if importlib.util.find_spec(package):
            models[name] = make()
    return models


def interleaved(work: dict, rounds: int = ROUNDS, repeat: int = REPEAT) -> dict[str, float]:
    "Median milliseconds of each piece of work, in turn."
    times = {name: [] for name in work}
    for _ in range(rounds):
        for name, call in work.items():
            began = time.perf_counter()
            for _ in range(repeat):
                call()
            times[name].append(1e3 * (time.perf_counter() - began) / repeat)
    return {name: statistics.median(t) for name, t in times.items()}


def training_step(model: nn.Module, x: torch.Tensor):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def call():
        optimizer.zero_grad()
        (-model.log_prob(x).mean()).backward()
        optimizer.step()

    return call


def density(model: nn.Module, x: torch.Tensor):
    @torch.no_grad()
    def call():
        model.log_prob(x)

    return call


def sampling(model: nn.Module):
    @torch.no_grad()
    def call():
        model.sample(BATCH)

    return call


def main() -> None:
    torch.manual_seed(0)
    models, x = contestants(), torch.randn(BATCH, DIM)
    steps = interleaved({name: training_step(m, x) for name, m in models.items()})
    logs = interleaved({name: density(m, x) for name, m in models.items()})
    samples = interleaved({name: sampling(m) for name, m in models.items() if hasattr(m, "sample")})
    print(f"RealNVP({DIM}, layers={LAYERS}, width={WIDTH}), batch {BATCH}, float32; torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {platform.machine()}; medians of {ROUNDS} interleaved rounds\n")
    print("| model | parameters | step ms | times bare | log_prob ms | times bare | sample ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, model in models.items():
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        sample = f"{samples[name]:.2f}" if name in samples else ""
        ratios = steps[name] / steps["bare networks"], logs[name] / logs["bare networks"]
        print(f"| {name} | {size:,} | {steps[name]:.2f} | {ratios[0]:.2f} | {logs[name]:.2f} | {ratios[1]:.2f} | {sample} |")


if __name__ == "__main__":
    main()
