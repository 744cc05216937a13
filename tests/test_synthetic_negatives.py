"Negatives drawn by a flow: the divergence, the patch density at any size, and the gradient that must not get lost."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon

from densegen.dense import synthetic_negatives as module
from densegen.dense.photo_negatives import outline
from densegen.dense.segmentation import Ladder
from densegen.streets.scenes import streets
from densegen.workbench.pictures import OUTLIER, VOID
from densegen.dense.synthetic_negatives import (
    SIZES,
    NFlowJS,
    PatchFlow,
    crop_batches,
    flow_pieces,
    js_to_uniform,
    paste_patches,
    synthetic_batches,
)
from densegen.flows.bijections import reference_ladj


@pytest.fixture(scope="module")
def scenes():
    return streets("train", 4, 64, 96)


def shaken(**options):
    "A patch flow that is not the identity."
    torch.manual_seed(0)
    flow = PatchFlow(**options)
    for p in flow.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return flow


def model(classes=11):
    torch.manual_seed(0)
    return Ladder(classes, (4, 8, 8, 12, 12), (8, 8, 6))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-30, 30), min_size=2, max_size=8), st.floats(0.5, 4))
def test_js_equals_scipy(logits, temperature):
    ours = js_to_uniform(torch.tensor([logits]), temperature).item()
    p = torch.tensor(logits, dtype=torch.float64).div(temperature).softmax(0).numpy()
    assert ours == pytest.approx(jensenshannon(p, np.full(len(p), 1 / len(p))) ** 2, abs=2e-6)
    assert -1e-6 <= ours <= math.log(2) + 1e-6


def test_js_survives_extreme_logits():
    f = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    value = js_to_uniform(f)
    value.sum().backward()
    assert value.isfinite().all() and f.grad.isfinite().all() and value[1].abs() < 1e-7


def test_js_of_masked_classes_is_the_limit_and_nan_stays_nan():
    f = torch.tensor([[0.5, -math.inf, 1.5], [2.0, -math.inf, -math.inf]], requires_grad=True)
    value = js_to_uniform(f)
    slope = torch.autograd.grad(value.sum(), f)[0]
    torch.testing.assert_close(value, js_to_uniform(f.detach().clamp_min(-1e4)))
    far = f.detach().clamp_min(-1e4).requires_grad_()
    torch.testing.assert_close(slope, torch.autograd.grad(js_to_uniform(far).sum(), far)[0])
    assert js_to_uniform(torch.tensor([[math.nan, 0.0, 1.0], [0.0, math.nan, -math.inf]])).isnan().all()


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (4, 12)])
def test_one_flow_is_a_density_at_every_size(size):
    flow = shaken(steps=2, width=8).double()
    x = torch.rand(2, 3, *size, dtype=torch.float64)
    z, ladj = flow.bijection(x)
    torch.testing.assert_close(ladj, reference_ladj(flow.bijection, x), rtol=1e-8, atol=1e-8)
    expected = ladj + torch.distributions.Normal(0, 1).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(flow.log_prob(x), expected)
    back = flow.bijection.inverse(z)[0]
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)


def test_samples_are_the_inverse_of_noise():
    flow = shaken(steps=2, width=8)
    x = flow.sample(3, (8, 12), torch.Generator().manual_seed(5))
    z = torch.randn(3, 3, 8, 12, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(flow.bijection(x)[0], z, rtol=0, atol=1e-3)


def test_crops_are_pieces_of_the_images(scenes):
    draw = crop_batches(scenes.images)
    seen = set()
    for k in range(12):
        crops = draw(3, torch.Generator().manual_seed(k))
        assert crops.dtype == torch.uint8 and crops.shape[2] in SIZES and crops.shape[3] in SIZES
        seen.add(tuple(crops.shape[2:]))
        windows = scenes.images.unfold(2, crops.shape[2], 1).unfold(3, crops.shape[3], 1)
        assert (windows == crops[0][None, :, None, None]).all(-1).all(-1).all(1).any()
    assert len(seen) > 5


def test_a_patch_is_blended_in_by_the_opacity_of_its_outline(monkeypatch):
    opacities = []
    monkeypatch.setattr(module, "outline", lambda *args: opacities.append(outline(*args)) or opacities[-1])
    images = torch.rand(4, 3, 40, 50) * 255
    labels = torch.randint(0, 11, (4, 40, 50)).to(torch.uint8)
    patches = torch.rand(2, 3, 24, 32)
    x, y, crops = paste_patches(images, labels, patches, torch.Generator().manual_seed(0))
    changed = (y == OUTLIER) | (y == VOID)
    assert (y == OUTLIER).flatten(1).any(1).tolist() == [True, True, False, False]
    assert torch.equal(y[~changed], labels[~changed]) and torch.equal(x[2:], images[2:])
    for k, opacity in enumerate(opacities):
        windows = images[k].unfold(1, 24, 1).unfold(2, 32, 1).movedim(0, 2)  # [17, 19, 3, 24, 32]
        (i, j), = (windows == crops[k]).flatten(2).all(2).nonzero().tolist()
        place = (slice(i, i + 24), slice(j, j + 32))
        mixed = images[k][:, *place] * (1 - opacity) + 255 * patches[k] * opacity
        torch.testing.assert_close(x[k][:, *place], mixed)
        assert torch.equal(y[k][place] == OUTLIER, opacity > 0.5)
        assert torch.equal(y[k][place] == VOID, (opacity > 0.1) & (opacity <= 0.5))
        outside = torch.ones(40, 50, dtype=torch.bool)
        outside[place] = False
        assert torch.equal(x[k][:, outside], images[k][:, outside])
        assert torch.equal(labels[k][outside], y[k][outside])


def test_doubt_reaches_the_flow_and_rounding_would_cut_it(scenes, monkeypatch):
    batch = scenes.images.float(), scenes.labels
    detector = NFlowJS(model(), shaken(steps=1, width=8))
    norm = lambda: sum(float(p.grad.abs().sum()) for p in detector.flow.parameters() if p.grad is not None)
    detector.loss(batch)["js"].backward()
    assert norm() > 0
    detector.zero_grad()
    plain = detector.flow.sample
    monkeypatch.setattr(detector.flow, "sample", lambda *args: (plain(*args) * 255).floor() / 255)
    detector.loss(batch)["js"].backward()
    assert norm() == 0


def test_the_classes_of_pasted_pixels_do_not_count(scenes):
    detector = NFlowJS(model(), shaken(steps=1, width=8)).eval()
    seen = {}
    detector.model.register_forward_hook(lambda module, args, out: seen.update(logits=out.logits))
    terms = detector.loss((scenes.images.float(), scenes.labels))
    assert set(terms) == {"classes", "flow", "js"} and all(term.isfinite() for term in terms.values())
    slope = torch.autograd.grad(terms["classes"], seen["logits"])[0].abs().sum(1)
    idle = slope[:2] == 0
    assert idle.flatten(1).any(1).all() and not (slope[2:][scenes.labels[2:] != VOID] == 0).any()


def test_weights_and_temperature_of_the_joint_loss(scenes, monkeypatch):
    net = model()
    net.weights.copy_(torch.linspace(0.1, 3, 11))
    detector = NFlowJS(net, shaken(steps=1, width=8), weight=0.2, temperature=5.0).eval()
    seen = {}
    detector.model.register_forward_hook(lambda module, args, out: seen.update(logits=out.logits))
    monkeypatch.setattr(module, "paste_patches", lambda *args: seen.setdefault("pasted", paste_patches(*args)))
    terms = detector.loss((scenes.images.float(), scenes.labels))
    y = seen["pasted"][1]
    doubt = js_to_uniform(seen["logits"], 5.0)[y == OUTLIER].mean()
    assert terms["js"].item() == pytest.approx(0.2 * doubt.item(), rel=1e-5)
    kept = y < 11
    each = -seen["logits"].movedim(1, -1)[kept].log_softmax(1)[torch.arange(int(kept.sum())), y[kept].long()]
    weights = net.weights[y[kept].long()]
    assert terms["classes"].item() == pytest.approx(((weights * each).sum() / weights.sum()).item(), rel=1e-5)
    score = detector.anomaly_score(scenes.images)
    torch.testing.assert_close(score, -js_to_uniform(net(scenes.images).logits, 5.0).detach())


def test_patch_and_image_get_the_same_light_and_the_flow_learns_the_crop_as_it_was(scenes, monkeypatch):
    detector, seen = NFlowJS(model(), shaken(steps=1, width=8)), {}
    monkeypatch.setattr(module, "recolour", lambda x, draw: seen.update(light=x) or torch.full_like(x, 0.5))
    monkeypatch.setattr(module, "paste_patches", lambda *args: seen.setdefault("pasted", paste_patches(*args)))
    detector.model.register_forward_hook(lambda module, args, out: seen.update(x=args[0]))
    plain = detector.flow.loss
    monkeypatch.setattr(detector.flow, "loss", lambda v: seen.update(crops=v) or plain(v))
    detector.loss((scenes.images.float(), scenes.labels))
    torch.testing.assert_close(seen["light"], seen["pasted"][0] / 255)
    assert torch.equal(seen["x"], torch.full_like(seen["x"], 127.5))
    assert torch.equal(seen["crops"], seen["pasted"][2].long())


def test_the_score_is_bounded_doubt(scenes):
    detector = NFlowJS(model(), shaken(steps=1, width=8)).eval()
    score = detector.anomaly_score(scenes.images)
    assert score.shape == scenes.labels.shape and score.dtype == torch.float32
    assert (score <= 1e-6).all() and (score >= -math.log(2)).all()


@pytest.mark.parametrize("size", [(8, 8), (13, 30), (121, 5)])
def test_pieces_of_the_flow_have_the_size_that_is_asked_for(size):
    flow = shaken(steps=1, width=8)
    piece, classes = flow_pieces(flow)(*size, torch.Generator().manual_seed(1))
    assert piece.shape == (3, *size) and classes is None and not piece.requires_grad
    grown = [-(-n // 4) * 4 for n in size]
    whole = flow.sample(1, grown, torch.Generator().manual_seed(1))[0].detach()
    torch.testing.assert_close(piece, 255 * whole[:, : size[0], : size[1]].clamp(0, 1))


def test_about_half_of_the_synthetic_batch_is_marked(scenes):
    flow = shaken(steps=1, width=8)
    draw = synthetic_batches(flow, scenes.images, scenes.labels, (160, 160))
    (x, y), (_, again) = (draw(60, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(y, again) and not x.requires_grad
    assert 18 <= (y == OUTLIER).flatten(1).any(1).sum() <= 42  # three standard deviations around 30
    assert (y == OUTLIER).any(2).sum(1).max() <= 2 * 40  # rows of two pieces
    assert x.shape == (60, 3, 160, 160) and all(p.grad is None for p in flow.parameters())
