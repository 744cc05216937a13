"""What the live figures carry along: weights, latents' pictures and heat maps, made by the package with fixed seeds.

`python book/live/make.py [layers] [stream] [latents] [threshold]` writes NAME_data.js, classic scripts that define one constant.
"""

import base64
import io
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from densegen.dense.road_detector import load_shipped
from densegen.flows.continuous import FlowMatching, VectorField, walk
from densegen.flows.coupling import RealNVP
from densegen.flows.glow import Glow
from densegen.workbench.data import density2d, images
from densegen.workbench.training import cosine, fit

LIVE = Path(__file__).resolve().parent
ASSETS = LIVE.parent.parent / "densegen" / "assets"
PHOTOGRAPHS = ("sheep", "goose", "cones")
STEPS = 5  # of the way between two digits, in each level


def text(numbers: Tensor | np.ndarray | bytes) -> str:
    "Bytes, or an array's, as base64."
    return base64.b64encode(numbers if isinstance(numbers, bytes) else np.ascontiguousarray(numbers).tobytes()).decode()


def layers_of(net: nn.Sequential) -> list[list]:
    "Each linear layer as [inputs, outputs, weights row by row and then biases, float32]."
    linear = [m for m in net if isinstance(m, nn.Linear)]
    both = lambda m: torch.cat([m.weight.detach().flatten(), m.bias.detach()]).float().numpy()
    return [[m.in_features, m.out_features, text(both(m))] for m in linear]


def write(name: str, data) -> None:
    "One constant of a classic script, which node reads as a module."
    constant = f"{name.upper()}_DATA"
    said = f"// made by book/live/make.py\nconst {constant} = {json.dumps(data, separators=(',', ':'))};\n"
    (LIVE / f"{name}_data.js").write_text(f'{said}if (typeof module !== "undefined") module.exports = {{ {constant} }};\n')


def trained(model, data, seed: int, steps: int = 2500):
    "A model of the plane after training."
    return fit(model, data, steps=steps, batch_size=256, lr=3e-3, schedule=cosine(), ema=0.995, clip=10.0, seed=seed) and model.eval()


def coupling_flow() -> RealNVP:
    "A small flow that has learned two moons."
    torch.manual_seed(0)
    return trained(RealNVP(2, layers=8, width=24), density2d("two_moons").sample, 0)


def layers() -> None:
    write("layers", [layers_of(layer.net) for layer in coupling_flow().bijection.layers])


def fields() -> list[nn.Module]:
    "The field of independent pairs, and that of one round of reflow."
    torch.manual_seed(0)
    first = trained(FlowMatching(VectorField(2, width=40, layers=2), 2), density2d("pinwheel").sample, 0, steps=1500)
    noise = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = walk(first.bijection.field, noise, 0.0, 1.0, 100, "midpoint")
    field = VectorField(2, width=40, layers=2)
    field.load_state_dict(first.bijection.field.state_dict())
    second = trained(FlowMatching(field, 2), (ends, noise), 1, steps=1500)
    return [first.bijection.field, second.bijection.field]


def stream() -> None:
    write("stream", [layers_of(field.net) for field in fields()])


@torch.no_grad()
def ways(glow: Glow, digits: Tensor) -> Tensor:
    "Between each pair of ten digits: [pair, step of the coarse latents, step of the fine ones, 8, 8], in 0..1."
    z, coarse = glow.encode(digits), glow.level == glow.level.max()
    a, b = torch.triu_indices(10, 10, 1)
    far = torch.linspace(0, 1, STEPS)
    share = torch.where(coarse, far[:, None, None, None, None], far[None, :, None, None, None])
    mixed = torch.lerp(z[a][:, None, None], z[b][:, None, None], share)
    return glow.decode(mixed.flatten(0, 2)).clamp(0, 1).reshape(len(a), STEPS, STEPS, 8, 8)


def latents() -> None:
    train, held = images("digits", split="train"), images("digits", split="test")
    torch.manual_seed(0)
    glow = Glow((1, 8, 8), levels=2, steps=4, width=64, classes=10, grey_levels=17).initialize(train.images[:256])
    options = {"ema": 0.995, "clip": 50.0, "schedule": cosine(), "lr": 2e-3, "batch_size": 128}
    fit(glow.train(), (train.images, train.labels), steps=500, seed=0, **options)
    judge = LogisticRegression(C=0.1, max_iter=2000).fit(train.images.flatten(1) / 16.0, train.labels)
    sure = torch.from_numpy(judge.predict_proba(held.images.flatten(1) / 16.0)).gather(1, held.labels[:, None])[:, 0]
    best = torch.stack([sure.masked_fill(held.labels != digit, 0).argmax() for digit in range(10)])
    digits = (held.images[best] + 0.5) / 17  # the one of each class that the judge is surest of
    between = ways(glow.eval(), digits)
    chances = judge.predict_proba(((between * 17 - 0.5).clamp(0, 16) / 16).flatten(3).flatten(0, 2))
    grey = (between * 15).round().byte().flatten()
    pack = (grey[0::2] * 16 + grey[1::2]).numpy()  # two pixels of sixteen greys in a byte
    write("latents", {"pictures": text(pack), "digits": text(held.images[best].byte().numpy()),
                      "read": "".join(map(str, chances.argmax(1))), "sure": text((chances.max(1) * 100).round().astype(np.uint8))})


def photograph(name: str, detector) -> tuple[str, np.ndarray, np.ndarray]:
    "A photograph as JPEG text, its scores and its mask on 160 x 90 cells."
    with Image.open(ASSETS / f"road_{name}.jpg") as file:
        jpeg, large = io.BytesIO(), np.asarray(file.resize((640, 360), Image.Resampling.LANCZOS))
        file.save(jpeg, "JPEG", quality=55, optimize=True)
    score = detector.score(torch.from_numpy(large.copy()).permute(2, 0, 1)[None])[0]
    with Image.open(ASSETS / f"road_{name}_mask.png") as file:
        mask = np.asarray(file).reshape(90, 2, 160, 2).mean((1, 3)) >= 0.5
    return text(jpeg.getvalue()), score.reshape(90, 4, 160, 4).mean((1, 3)).numpy(), mask


def threshold() -> None:
    detector = load_shipped()
    found = {name: photograph(name, detector) for name in PHOTOGRAPHS}
    scores = np.stack([score for _, score, _ in found.values()])
    low, high = float(scores.min()), float(scores.max())
    credits = (ASSETS / "CREDITS.md").read_text()
    by = {name: re.search(rf"road_{name}.jpg \| ([^|]*?),? \|", re.sub(r" https?://\S+| \(\S+@\S+\)", "", credits))[1] for name in found}
    photos = [{"name": name, "by": by[name], "jpeg": jpeg, "mask": text(np.packbits(mask)),
               "score": text(((score - low) / (high - low) * 255).round().astype(np.uint8))}
              for name, (jpeg, score, mask) in found.items()]
    write("threshold", {"low": low, "high": high, "alarm": detector.calibration.threshold, "photos": photos})


if __name__ == "__main__":
    for make in sys.argv[1:] or ("layers", "stream", "latents", "threshold"):
        {"layers": layers, "stream": stream, "latents": latents, "threshold": threshold}[make]()
