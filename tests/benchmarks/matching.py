"""Times flow matching beside the bare network and torchcfm, and its densities beside zuko; prints two Markdown tables, judges nothing.

Run `make bench` on a quiet machine. All take turns in one process and hold the same network; medians over the rounds.
"""
import importlib.util
import platform

import torch
from coupling import interleaved
from torch import nn

from densegen.flows.bijections import Flow, StandardNormal
from densegen.flows.continuous import ContinuousFlow, FlowMatching, VectorField

DIM, BATCH, ROUNDS, TOLERANCE = 2, 256, 40, 1e-5


def step(field: nn.Module, loss):
    "One update of the field."
    optimizer = torch.optim.Adam(field.parameters(), 1e-3, fused=True)

    def call():
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return call


def bare(field: VectorField, x: torch.Tensor):
    "A regression of the same network on places, times and targets that lie ready."
    t, target = torch.rand(len(x)), torch.randn_like(x)
    return lambda: (field(x, t) - target).square().sum(1).mean()


def ours(field: VectorField, x: torch.Tensor, pairs: str):
    model = FlowMatching(field, DIM, pairs=pairs)
    return lambda: sum(model.loss(x).values())


def torchcfm(field: VectorField, x: torch.Tensor, pairs: str):
    from torchcfm import ConditionalFlowMatcher, ExactOptimalTransportConditionalFlowMatcher

    matcher = {"independent": ConditionalFlowMatcher, "optimal": ExactOptimalTransportConditionalFlowMatcher}[pairs](0.0)

    def loss():
        t, place, velocity = matcher.sample_location_and_conditional_flow(torch.randn_like(x), x)
        return (field(place, t) - velocity).square().sum(1).mean()

    return loss


def densities(field: VectorField, x: torch.Tensor) -> dict:
    "Log-densities of x by adaptive solvers, exact divergence."
    flow = Flow(ContinuousFlow(field, TOLERANCE), StandardNormal(DIM))
    calls = {"densegen": torch.no_grad()(lambda: flow.log_prob(x))}
    if importlib.util.find_spec("zuko"):
        from zuko.transforms import FreeFormJacobianTransform

        slope = lambda t, x: field(x, t.expand(len(x)))
        peer = FreeFormJacobianTransform(slope, 0.0, 1.0, atol=TOLERANCE, rtol=TOLERANCE).inv

        def log_prob():
            z, ladj = peer.call_and_ladj(x)
            return StandardNormal(DIM).log_prob(z) + ladj

        calls["zuko"] = torch.no_grad()(log_prob)
    return calls


def main() -> None:
    torch.manual_seed(0)
    x, fields = torch.randn(BATCH, DIM), []

    def fresh():
        fields.append(VectorField(DIM))
        return fields[-1]

    losses = {"bare network": bare(fresh(), x)}
    for pairs in ("independent", "optimal"):
        losses[f"densegen, {pairs}"] = ours(fresh(), x, pairs)
        if importlib.util.find_spec("torchcfm") and importlib.util.find_spec("ot"):
            losses[f"torchcfm, {pairs}"] = torchcfm(fresh(), x, pairs)
    steps = interleaved({name: step(f, loss) for f, (name, loss) in zip(fields, losses.items())}, ROUNDS)
    print(f"flow matching, batch {BATCH} in {DIM} dimensions; torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"{platform.machine()}; medians of {ROUNDS} rounds\n\n| training step | ms | times bare |\n| --- | --- | --- |")
    for name, ms in steps.items():
        print(f"| {name} | {ms:.2f} | {ms / steps['bare network']:.2f} |")
    field = fields[1]
    for p in field.parameters():
        nn.init.normal_(p, std=0.25)
    truth = Flow(ContinuousFlow(field.double(), 1e-10), StandardNormal(DIM))
    calls = densities(field, x.double())
    with torch.no_grad():
        right = truth.log_prob(x.double())
    times = interleaved(calls, 9, 1)
    print(f"\n| log_prob, tolerance {TOLERANCE:g}, float64 | ms | largest error, nats |\n| --- | --- | --- |")
    for name, call in calls.items():
        print(f"| {name} | {times[name]:.1f} | {(call() - right).abs().max():.1e} |")


if __name__ == "__main__":
    main()
