"""The picture of the front page, made by the course: a photograph, its heat map, and points that fall into a density."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from densegen.dense.road_detector import load_shipped
from densegen.dense.your_model import heat_map
from densegen.energy.samplers import Langevin
from densegen.workbench.data import density2d
from densegen.workbench.figures import COLOURS, show_points

NBS = Path(__file__).resolve().parent.parent / "nbs"
ASSETS = NBS.parent / "densegen" / "assets"


def photograph(name: str) -> tuple[np.ndarray, np.ndarray]:
    "A photograph and its heat map by the detector of the package."
    image = np.asarray(Image.open(ASSETS / name).resize((640, 360), Image.Resampling.LANCZOS))
    detector = load_shipped()
    score = detector.score(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0]
    return image, heat_map(image, score.numpy(), detector.calibration)


def particles(name: str, steps: int) -> torch.Tensor:
    "Langevin chains on a density of the plane."
    density = density2d(name)
    start, generator = 1.6 * torch.randn(1200, 2), torch.Generator().manual_seed(0)
    return Langevin(step=0.003).sample(lambda v: -density.log_prob(v), start, steps, generator)


def main() -> None:
    torch.manual_seed(0)
    fig, axes = plt.subplots(1, 4, figsize=(12.8, 2.32), width_ratios=(16 / 9, 16 / 9, 1, 1), layout="constrained")
    for ax, picture in zip(axes, photograph("road_sheep.jpg")):
        ax.imshow(picture)
    for ax, steps in zip(axes[2:], (1, 400)):
        show_points(particles("pinwheel", steps), ax, limit=2.9, s=2, color=COLOURS["blue"])
    for ax in axes:
        ax.set_axis_off()
    fig.savefig(NBS / "front.png", dpi=130, transparent=True)


if __name__ == "__main__":
    main()
