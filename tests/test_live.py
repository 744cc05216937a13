"""Live figures with networks, chains and counts: their JavaScript beside the package, and what their sliders change."""
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from test_links import ROOT, conf, needs_node, script

LIVE = ROOT / "book" / "live"
sys.path.insert(0, str(LIVE))
import make  # noqa: E402

NAMES = [name for _, _, name, _, _ in conf.LIVE]


def data(name):
    "The constant of a data script."
    text = (LIVE / f"{name}_data.js").read_text()
    return json.loads(re.search(r"^const \w+ = (.*);$", text, re.M)[1])


def filled(net, layers):
    "A network of torch with the weights that a figure carries."
    linear = [m for m in net if isinstance(m, nn.Linear)]
    assert len(linear) == len(layers)
    for m, (inputs, outputs, text) in zip(linear, layers):
        numbers = torch.from_numpy(np.frombuffer(make.base64.b64decode(text), np.float32).copy())
        weight, bias = numbers.split([inputs * outputs, outputs])
        m.load_state_dict({"weight": weight.view(outputs, inputs), "bias": bias})


def flow():
    model = make.RealNVP(2, layers=8, width=24)
    for layer, layers in zip(model.bijection.layers, data("layers"), strict=True):
        filled(layer.net, layers)
    return model.double()


def fields():
    found = [make.VectorField(2, width=40, layers=2) for _ in range(2)]
    for field, layers in zip(found, data("stream"), strict=True):
        filled(field.net, layers)
    return [field.double() for field in found]


@needs_node
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_couplings_are_those_of_torch(count):
    z = 1.2 * torch.randn(9, 2, generator=torch.Generator().manual_seed(0)).double()
    got = script(f"{json.dumps(z.tolist())}.map((z) => at.undone(z, {count}))")
    x, ladj = z, torch.zeros(9).double()
    with torch.no_grad():
        for layer in list(flow().bijection.layers)[::-1][:count]:
            x, one = layer.inverse(x)
            ladj = ladj + one
    np.testing.assert_allclose([g["x"] for g in got], x, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose([g["ladj"] for g in got], ladj, rtol=1e-9, atol=1e-11)


def test_weights_are_those_of_a_trained_flow():
    x = make.density2d("two_moons").sample(2000, torch.Generator().manual_seed(5)).double()
    truth, model = make.density2d("two_moons").log_prob(x), flow()
    gaussian = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov()).log_prob(x)
    with torch.no_grad():
        assert truth.mean() - model.log_prob(x).mean() < 0.25 * (truth.mean() - gaussian.mean())


@needs_node
def test_fields_and_steps_are_those_of_torch():
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(1)).double()
    for k, field in enumerate(fields()):
        with torch.no_grad():
            at_once, ends, exact = field(x, torch.full((7,), 0.3)), make.walk(field, x, 0.0, 1.0, 5), make.walk(field, x, 0.0, 1.0, 50, "midpoint")
        got = script(f"{json.dumps(x.tolist())}.map((x) => [at.FIELDS[{k}]([...x, 0.3]), at.euler(at.FIELDS[{k}], x, 5).at(-1), at.accurate(at.FIELDS[{k}], x)])")
        expected = torch.stack([at_once, ends, exact], 1)
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)  # times are float32 in the package's walk


@needs_node
def test_reflow_needs_fewer_steps():
    one, two, many = script("[at.errorOf(0, at.waysOf(0, 1)), at.errorOf(1, at.waysOf(1, 1)), at.errorOf(0, at.waysOf(0, 32))]")
    assert two < one / 2 and many < one / 5


CENTRES = torch.arange(-6, 6.25, 0.5).double()


def bumps(x, w):
    return (w * torch.exp(-0.5 * ((x[..., None] - CENTRES) / 0.5).square())).sum(-1) + (x / 5) ** 8


@needs_node
def test_phantoms_learn_by_contrastive_divergence():
    from densegen.energy.learning import ContrastiveDivergence
    from densegen.energy.samplers import value_and_gradient

    g = torch.Generator().manual_seed(2)
    w, x, ends = torch.randn(25, generator=g).double(), 2 * torch.randn(6, generator=g).double(), torch.randn(6, generator=g).double()
    value, slope = value_and_gradient(lambda v: bumps(v, w), x)
    got = script(f"{json.dumps(x.tolist())}.map((x) => at.energyOn(x, {json.dumps(w.tolist())}))")
    np.testing.assert_allclose([v["value"] for v in got], value, rtol=1e-9)
    np.testing.assert_allclose([v["slope"] for v in got], slope, rtol=1e-8, atol=1e-10)

    class Bumps(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(w)

        def energy(self, x):
            return bumps(x, self.w)

    class Ends:
        def sample(self, model, states, steps):
            return ends

    model = Bumps()
    (expected,) = torch.autograd.grad(ContrastiveDivergence(Ends(), 1)(model, x)["gap"], model.w)
    np.testing.assert_allclose(script(f"at.contrast({json.dumps(x.tolist())}, {json.dumps(ends.tolist())})"), expected, rtol=1e-9, atol=1e-12)


@needs_node
def test_chains_of_the_phantoms_find_their_density():
    "Many Langevin steps from anywhere on an energy of one well: mean and spread by quadrature."
    w = -2 * torch.exp(-0.5 * ((CENTRES - 1) / 0.7).square())
    ends = torch.tensor(script(f"""((w) => {{ const random = at.uniform(4);
        return Array.from({{ length: 1500 }}, () => at.walked(-2 + 4 * random(), w, 400, random)); }})({json.dumps(w.tolist())})"""))
    grid = torch.linspace(-6, 6, 2401).double()
    p = torch.softmax(-bumps(grid, w), 0)
    mean = (p * grid).sum()
    spread = (p * (grid - mean).square()).sum().sqrt()
    assert abs(ends.double().mean() - mean) < 4 * spread / math.sqrt(1500)
    assert ends.double().std() == pytest.approx(spread.item(), rel=0.1)


@needs_node
def test_a_phantom_outlives_chains_from_the_data():
    code = """((share) => { const m = at.newModel();
              for (let k = 0; k < 200; k++) at.learn(m, { steps: 10, share }); return at.judged(m.w); })(%s)"""
    alone, anywhere = script(code % 0), script(code % 0.1)
    assert alone["away"] > 0.8 and anywhere["away"] < 0.2
    assert sum(alone["p"]) / 20 == pytest.approx(1) and anywhere["kl"] < alone["kl"]


@needs_node
def test_latents_end_at_the_digits_themselves():
    ends = script("[[3, 8], [8, 3], [0, 9]].map(([a, b]) => [[0, a], [4, b]].map(([far, d]) => [at.greys(at.indexOf(a, b, far, far)), at.digit(d)]))")
    for pair in np.array(ends):
        for kept, digit in pair:
            np.testing.assert_allclose(kept, digit, atol=1 / 30 + 0.02)
    index = script("Array.from({ length: 10 }, (_, a) => Array.from({ length: 10 }, (_, b) => a < b && at.indexOf(a, b, 0, 0)))")
    assert sorted(v for row in index for v in row if v is not False) == list(range(0, 45 * 25, 25))


@needs_node
@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.0])
def test_threshold_counts_as_the_metrics_of_the_package(threshold):
    from densegen.anomaly.scores import rank_metrics

    for k, photo in enumerate(data("threshold")["photos"]):
        level = np.frombuffer(make.base64.b64decode(photo["score"]), np.uint8).reshape(1, 90, 160)
        mask = np.unpackbits(np.frombuffer(make.base64.b64decode(photo["mask"]), np.uint8)).reshape(1, 90, 160)
        low, step = script("[at.LOW, at.LEVEL]")
        over = low + step * level.astype(float) > threshold
        got = script(f"at.counted(at.PHOTOS[{k}], {threshold})")
        assert got == {"tp": (over & (mask == 1)).sum(), "fp": (over & (mask == 0)).sum(),
                       "fn": (~over & (mask == 1)).sum(), "tn": (~over & (mask == 0)).sum()}
        exact = rank_metrics(torch.from_numpy(level.astype(np.float32)), torch.from_numpy(mask.astype(np.int64)))
        curve = script(f"at.curveOf(at.PHOTOS[{k}])")
        assert curve["fpr95"] == pytest.approx(exact.fpr_at_tpr, abs=1e-9)
        falls, hits = np.array(curve["points"]).T
        assert np.trapezoid(hits, falls) == pytest.approx(exact.auroc, abs=1e-6)
        with Image.open(make.ASSETS / f"road_{photo['name']}_mask.png") as file:
            assert mask.mean() == pytest.approx(np.asarray(file).mean(), rel=0.1)


PICTURES = {"layers": ("layersPicture", "LAYERS"), "stream": ("streamPicture", "STREAM"), "latents": ("latentsPicture", "LATENTS_KNOBS"),
            "threshold": ("thresholdPicture", "THRESHOLD"), "change": ("changePicture", "CHANGE"), "forces": ("forcesPicture", "FORCES"),
            "phantoms": ("phantomsPicture.bind(null, at.newModel())", "PHANTOMS")}


@needs_node
@pytest.mark.parametrize("name", PICTURES)
def test_every_slider_moves_its_picture(name):
    picture, knobs = PICTURES[name]
    code = f"""((draw, knobs) => {{ const values = Object.fromEntries(knobs.map((k) => [k.name, k.value])), still = draw(values);
        return knobs.map(({{ name, min, max }}) => [min, max].filter((v) => draw({{ ...values, [name]: v }}) !== still).length); }})(at.{picture}, at.{knobs})"""
    assert min(script(code)) >= 1
    bad = f"""((draw, knobs) => knobs.flatMap(({{ name, min, max }}) => [min, max].map((v) => draw(Object.fromEntries(knobs.map((k) => [k.name, k.name === name ? v : k.value]))))))(at.{picture}, at.{knobs})"""
    assert not [text for text in script(bad) if "NaN" in text or "undefined" in text]


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_small_and_needs_no_server(name):
    scripts = [path for path in (LIVE / "live.js", LIVE / f"{name}_data.js", LIVE / f"{name}.js") if path.exists()]
    assert sum(path.stat().st_size for path in scripts) < 200_000
    assert not re.search(r"^\s*(import|export)\b|fetch\(|https?://(?!www\.w3\.org)", "".join(p.read_text() for p in scripts), re.M)
    text = next(t for _, _, n, _, t in conf.LIVE if n == name)
    assert "?" in text or name in ("change",)
