"""Times Glow beside the bare coupling networks (the limit) and its peers on 3x32x32 images; prints a Markdown table and judges nothing.

Run `make bench` on a quiet machine. All models take turns in one process and hold the same networks; the numbers are
medians over the rounds. "Saved" is what one training step keeps for its backward pass, parameters apart. With `--parts` a
second table adds up what surrounds the networks.
"""
import argparse
import importlib.util
import platform

import torch
from coupling import Peer, WithoutContext, density, interleaved, training_step
from torch import nn

from densegen.flows.bijections import StandardNormal
from densegen.flows.coupling import ConvNet
from densegen.flows.glow import Glow, GlowSteps

SHAPE, LEVELS, STEPS, WIDTH, BATCH = (3, 32, 32), 3, 8, 128, 16


def shapes():
    "Channels and side of the images in each level."
    channels, side = SHAPE[0], SHAPE[1]
    for _ in range(LEVELS):
        channels, side = 4 * channels, side // 2
        yield channels, side
        channels //= 2


class Bare(nn.Module):
    "The coupling networks alone, channels-last; their inputs lie ready, and get gradients as in any flow."

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(ConvNet(c // 2, c, WIDTH) for c, _ in shapes() for _ in range(STEPS))
        ready = lambda c, s: torch.randn(BATCH, c // 2, s, s).to(memory_format=torch.channels_last).requires_grad_()
        self.ready = [x for c, s in shapes() for x in [ready(c, s)] * STEPS]

    def to(self, device):
        self.ready = [x.detach().to(device).requires_grad_() for x in self.ready]
        return super().to(device)

    def log_prob(self, x):
        return sum(nn.Sequential.forward(net, x).sum() for net, x in zip(self.nets, self.ready)) / BATCH


def normflows() -> Peer:
    import normflows as nf

    sizes, bases, flows, merges = list(shapes()), [], [], []
    for i, (c, side) in enumerate(reversed(sizes)):
        flows.append([nf.flows.GlowBlock(c, WIDTH) for _ in range(STEPS)] + [nf.flows.Squeeze()])
        merges += [nf.flows.Merge()] if i else []
        bases.append(nf.distributions.DiagGaussian((c if i == 0 else c // 2, side, side), trainable=False))
    model = nf.MultiscaleFlow(bases, flows, merges, class_cond=False)
    return Peer(model, lambda m, x: m.log_prob(x, None), lambda m, n: m.sample(n)[0])


def nflows() -> Peer:
    from nflows import distributions, flows, transforms

    pyramid = transforms.MultiscaleCompositeTransform(LEVELS)
    for i, (c, side) in enumerate(shapes()):
        parts = [transforms.SqueezeTransform()]
        for _ in range(STEPS):
            half = torch.arange(c) >= c // 2
            net = lambda a, b: WithoutContext(ConvNet(a, b, WIDTH))
            parts += [transforms.ActNorm(c), transforms.OneByOneConvolution(c)]
            parts.append(transforms.AffineCouplingTransform(half.int(), net))
        pyramid.add_transform(transforms.CompositeTransform(parts), (c, side, side))
    size = SHAPE[0] * SHAPE[1] * SHAPE[2]
    model = flows.Flow(pyramid, distributions.StandardNormal([size]))
    return Peer(model, lambda m, x: m.log_prob(x), lambda m, n: m.sample(n))


def freia() -> Peer:
    from FrEIA import framework as ff
    from FrEIA import modules

    net = lambda a, b: ConvNet(a, b, WIDTH)
    nodes, ends = [ff.InputNode(*SHAPE)], []
    for i, (c, side) in enumerate(shapes()):
        nodes.append(ff.Node(nodes[-1], modules.IRevNetDownsampling, {}))
        for _ in range(STEPS):
            nodes.append(ff.Node(nodes[-1], modules.AllInOneBlock, {"subnet_constructor": net}))
        if i < LEVELS - 1:
            split = ff.Node(nodes[-1], modules.Split, {"section_sizes": [c // 2, c // 2], "dim": 0})
            ends.append(ff.OutputNode(split.out1))
            nodes += [split]
            nodes.append(ff.Node(split.out0, modules.PermuteRandom, {"seed": i}))
    ends.append(ff.OutputNode(nodes[-1]))
    model = ff.GraphINN([*nodes, *ends])
    bases = [StandardNormal((c // 2, s, s)) for c, s in list(shapes())[:-1]]
    bases.append(StandardNormal((list(shapes())[-1][0], *[list(shapes())[-1][1]] * 2)))

    def log_prob(m, x):
        z, ladj = m(x)
        return sum(base.log_prob(part) for base, part in zip(bases, z)) + ladj

    return Peer(model, log_prob, lambda m, n: m([base.sample(n) for base in bases], rev=True)[0])


def saved(model: nn.Module, x: torch.Tensor) -> float:
    "MiB that one forward pass keeps for the backward pass."
    own, seen = {p.data_ptr() for p in model.parameters()}, {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model.log_prob(x).mean()
    return sum(seen.values()) / 2**20


def parts(glow: Glow, x: torch.Tensor) -> dict:
    "What a pass is made of: each entry does what the one before it does, and one thing more."
    levels = [part for part in glow.modules() if isinstance(part, GlowSteps)]
    states = [torch.randn(BATCH, c, side, side, device=x.device) for c, side in shapes()]
    ready = [state[:, : state.shape[1] // 2].contiguous(memory_format=torch.channels_last) for state in states]

    def turned(coupling, state, _):
        return coupling.net(state[:, : coupling.sizes[0]])

    def halves(coupling, state, _):
        kept, changed = state.split(coupling.sizes, 1)
        return kept, coupling.transform.forward(changed, coupling.net(kept))[0]

    def each(part):
        @torch.no_grad()
        def call():
            for level, state, kept in zip(levels, states, ready):
                for step in level.bijections:
                    part(step.bijections[2], state, kept)

        return call

    return {
        "the networks": each(lambda coupling, _, kept: nn.Sequential.forward(coupling.net, kept)),
        "+ images turned for them and back": each(turned),
        "+ tanh, exp, product and sum": each(halves),
        "+ halves joined": each(lambda *args: torch.cat(halves(*args), 1)),
        "+ ActNorm, 1x1 convolution, slopes": torch.no_grad()(lambda: [level(s) for level, s in zip(levels, states)]),
        "+ squeezes, priors, base: log_prob": density(glow, x),
        "sampling": draw(glow),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--compile", action="store_true", help="also time torch.compile and bfloat16")
    options.add_argument("--parts", action="store_true", help="also time what surrounds the networks, part by part")
    args = options.parse_args()
    torch.manual_seed(0)
    x = torch.rand(BATCH, *SHAPE, device=args.device)
    models = {"bare networks": Bare(), "densegen Glow": Glow(SHAPE, LEVELS, STEPS, WIDTH)}
    for name, make in (("normflows", normflows), ("nflows", nflows), ("FrEIA AllInOne", freia)):
        if importlib.util.find_spec(name.split()[0]):
            models[name] = make()
    for model in models.values():
        model.to(args.device).log_prob(x)
    if args.compile:
        glow, bfloat = models["densegen Glow"], torch.autocast(args.device, torch.bfloat16)
        compiled, decode = torch.compile(glow.log_prob), torch.compile(glow.decode)
        draws_fast = lambda m, n: decode(m.base.sample(n))
        models["densegen, compiled"] = Peer(glow, lambda m, x: compiled(x), draws_fast)
        models["densegen, bfloat16"] = Peer(glow, bfloat(lambda m, x: m.log_prob(x)), bfloat(lambda m, n: m.sample(n)))
    timed = lambda work: interleaved(work, args.rounds, repeat=1)
    steps = timed({name: training_step(m, x) for name, m in models.items()})
    logs = timed({name: density(m, x) for name, m in models.items()})
    draws = timed({name: draw(m) for name, m in models.items()})
    print(f"Glow {SHAPE}, {LEVELS} levels, {STEPS} steps, width {WIDTH}, batch {BATCH}; torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {platform.machine()}, {args.device}; medians of {args.rounds} rounds\n")
    print("| model | parameters | step ms | times bare | log_prob ms | times bare | sample ms | times bare | saved MiB |")
    print("| --- " * 9 + "|")
    for name, model in models.items():
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        cells = [f"{t[name]:.1f} | {t[name] / t['bare networks']:.2f}" for t in (steps, logs, draws)]
        print(f"| {name} | {size:,} | {' | '.join(cells)} | {saved(model, x):.0f} |")
    if args.parts:
        took = timed(parts(models["densegen Glow"], x))
        print("\n| of a pass | ms | times the networks |\n| --- | --- | --- |")
        for name, ms in took.items():
            print(f"| {name} | {ms:.1f} | {ms / took['the networks']:.2f} |")


def draw(model: nn.Module):
    "Sampling of a batch; for the bare networks, once more their forward pass."

    @torch.no_grad()
    def call():
        model.sample(BATCH) if hasattr(model, "sample") else model.log_prob(None)

    return call


if __name__ == "__main__":
    main()
