"""Glow and its peers on one device: images a second, peak memory, and the share of the measured matmul rate.

`python tests/benchmarks/gpu.py --device cuda` prints a Markdown table. All models take turns in one process with the same
coupling networks; every time ends with the device idle, and is a median over the rounds."""
import argparse
import importlib.util
import statistics
import time

import flows as glows
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from densegen.flows.glow import Glow

PEERS = {"normflows": glows.normflows, "nflows": glows.nflows, "FrEIA": glows.freia}


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def median_seconds(call, device: torch.device, rounds: int) -> float:
    times = []
    for _ in range(rounds + 2):
        wait(device)
        began = time.perf_counter()
        call()
        wait(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    "Operations a second of a product of two square matrices."
    a = torch.randn(side, side, device=device, dtype=dtype)
    return 2 * side**3 / median_seconds(lambda: a @ a, device, 10)


def training_step(model: nn.Module, x: torch.Tensor, dtype: torch.dtype, compiled: bool):
    "Forward, backward and update; the mean of -log p."
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    log_prob = torch.compile(model.log_prob) if compiled else model.log_prob

    def call():
        with torch.autocast(x.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = -log_prob(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return call


def measured(name, make, batch, dtype, compiled, device, rounds, rate) -> dict:
    "One row; an error is a row, too."
    row = {"model": name, "numbers": str(dtype).removeprefix("torch."), "compiled": "yes" if compiled else "no"}
    torch.manual_seed(0)
    cuda = device.type == "cuda"
    try:
        model, x = make().to(device), torch.rand(batch, *glows.SHAPE, device=device)
        with torch.no_grad():
            model.log_prob(x)  # starts what starts from data
        plain = training_step(model, x, dtype, False)
        with FlopCounterMode(display=False) as counter:
            plain()
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        seconds = median_seconds(training_step(model, x, dtype, True) if compiled else plain, device, rounds)
        row["images/s, training"] = f"{batch / seconds:,.0f}"
        row["peak MiB"] = f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}" if cuda else "not measured"
        row["share of matmul rate"] = f"{counter.get_total_flops() / seconds / rate:.3f}"
        with torch.no_grad():
            row["images/s, log p"] = f"{batch / median_seconds(lambda: model.log_prob(x), device, rounds):,.0f}"
            if hasattr(model, "sample"):
                row["images/s, sampling"] = f"{batch / median_seconds(lambda: model.sample(batch), device, rounds):,.0f}"
    except Exception as error:
        row["images/s, training"] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return row


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cuda")
    options.add_argument("--batch", type=int, default=256)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--side", type=int, default=8192, help="of the matrices whose product is the measure")
    options.add_argument("--no-compile", action="store_true")
    args = options.parse_args()
    device, makes = torch.device(args.device), {"bare networks": glows.Bare}
    makes["densegen Glow"] = lambda: Glow(glows.SHAPE, glows.LEVELS, glows.STEPS, glows.WIDTH)
    makes |= {name: make for name, make in PEERS.items() if importlib.util.find_spec(name)}
    glows.BATCH, rows = args.batch, []
    for dtype in (torch.float32, torch.bfloat16):
        rate = matmul_rate(device, dtype, args.side)
        print(f"matmul in {dtype}: {rate / 1e12:.2f} TFLOP/s  ", flush=True)
        for name, make in makes.items():
            for compiled in (False, True) if name == "densegen Glow" and not args.no_compile else (False,):
                rows.append(measured(name, make, args.batch, dtype, compiled, device, args.rounds, rate))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print("\n| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row.get(column, "") for column in columns) + " |")


if __name__ == "__main__":
    main()
