"The comparison of detectors: losses, scores, intervals, and the workshop that trains each once (about 8 s)."
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from densegen.dense import comparison
from densegen.dense.comparison import (
    DETECTORS, RECIPES, ClosedHeads, GaussianDensity, MarginHeads, Workshop, flow_pieces, odin, pooled,
)
from densegen.dense.metrics import by_image, from_counts
from densegen.dense.road_detector import RoadHeads
from densegen.workbench.pictures import OUTLIER, VOID, DenseSet


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def slopes(heads, labels, logits):
    "The gradient of every term for the logits."
    logits = logits.clone().requires_grad_()
    terms = heads.terms(logits, torch.zeros(labels.shape), labels)
    return {name: torch.autograd.grad(t, logits, retain_graph=True)[0] for name, t in terms.items()}


def test_closed_heads_learn_nothing_from_foreign_pixels():
    labels = torch.zeros(1, 8, 8, dtype=torch.uint8)
    labels[:, :, 4:] = OUTLIER
    found = slopes(ClosedHeads(classes=3), labels, torch.randn(1, 3, 8, 8, generator=dice()))
    assert set(found) == {"classes", "overlap"}
    assert all((g[..., 4:] == 0).all() and (g[..., :4] != 0).any() for g in found.values())


def test_the_margin_is_a_squared_hinge_on_the_log_density():
    labels = torch.tensor([[[0, 0, OUTLIER, OUTLIER, VOID]]], dtype=torch.uint8)
    s = torch.tensor([13.0, 10.0, 5.0, 9.0, 99.0])  # one free and one at fault on each side
    logits = (s - math.log(3)).expand(1, 3, 1, 5)
    assert torch.allclose(logits.logsumexp(1)[0, 0], s, atol=1e-5)
    terms = MarginHeads(classes=3).terms(logits, torch.zeros(1, 1, 5), labels)
    assert terms["margin"].item() == pytest.approx(0.02 * (2**2 / 2 + 3**2 / 2), rel=1e-4)
    assert "outlier" not in terms and "density" not in terms


def test_every_detector_reads_a_recipe_and_knows_which_way_is_up():
    assert {recipe for recipe, _ in DETECTORS.values()} == set(RECIPES)
    sure = torch.tensor([9.0, -3.0, -3.0])[None, :, None, None]  # ordinary: one class, far from foreign
    lost = torch.tensor([0.1, 0.0, 0.1])[None, :, None, None]
    for name, (_, read) in DETECTORS.items():
        ordinary, foreign = read(sure, torch.full((1, 1, 1), -4.0)), read(lost, torch.full((1, 1, 1), 4.0))
        assert ordinary.shape == (1, 1, 1) and foreign > ordinary, name
    entropy = DETECTORS["entropy"][1](torch.zeros(1, 11, 1, 1), None)
    assert entropy.item() == pytest.approx(math.log(11), rel=1e-5)


def test_odin_without_a_step_is_the_softmax_and_its_step_raises_confidence():
    torch.manual_seed(0)
    heads = RoadHeads().eval()
    maps = [torch.randn(1, c, n, n, generator=dice(c)) for c, n in zip((24, 40, 112, 320), (16, 8, 4, 2))]
    with torch.no_grad():
        plain = -(heads(maps)[0] / 10).softmax(1).amax(1)
    assert torch.allclose(odin(heads, maps, step=0.0), plain, atol=1e-6)
    assert odin(heads, maps, step=0.02).sum() < plain.sum()
    assert all(p.grad is None for p in heads.parameters())


def test_embedding_density_is_the_mahalanobis_distance_of_what_is_ordinary():
    maps = [torch.zeros(4, 1, 16, 16), *(torch.randn(4, 3, n, n, generator=dice(n)) for n in (8, 4)), torch.zeros(4, 1, 2, 2)]
    labels = torch.zeros(4, 64, 64, dtype=torch.uint8)
    labels[0] = OUTLIER
    maps[2][0] += 50  # foreign, must not widen the Gaussian
    density = GaussianDensity(maps, labels)
    x = torch.cat([F.avg_pool2d(maps[1], 2), maps[2]], 1)[1:].movedim(1, -1).reshape(-1, 6).double().numpy()
    mean, spread = x.mean(0), np.cov(x.T)
    spread += 1e-3 * np.diag(spread).mean() * np.eye(6)
    want = np.einsum("ni,ij,nj->n", x - mean, np.linalg.inv(spread), x - mean)
    got = density.score(maps)
    assert np.allclose(got[1:].flatten(), want, rtol=1e-3) and got[0].min() > got[1:].max()


@pytest.fixture(scope="module")
def counts():
    "Three seeds of a good and of a poor detector on 24 images."
    truth = (torch.rand(24, 16, 16, generator=dice(1)) < 0.2).to(torch.uint8)
    noise = torch.randn(3, 24, 16, 16, generator=dice(2))
    make = lambda strength: torch.stack([by_image(strength * truth + n, truth) for n in noise])
    return make(2.0), make(1.0)


def test_a_pooled_difference_has_an_interval_over_images_and_seeds(counts):
    good, poor = counts
    gap, back = pooled(good, poor), pooled(poor, good)
    value = lambda c: np.mean([from_counts(s)[0] for s in c])
    assert gap.difference == pytest.approx(value(good) - value(poor)) and gap.verdict == "more"
    assert back.verdict == "less" and back.low == pytest.approx(-gap.high)
    assert pooled(good, good).verdict == "undecided" and pooled(good, good).high == 0
    assert pooled(good).difference == pytest.approx(value(good)) and pooled(good, poor, "FPR95").verdict == "less"
    few = pooled(good[:, :6], poor[:, :6])
    assert few.high - few.low > 1.5 * (gap.high - gap.low)  # a quarter of the images


def test_one_seed_that_differs_widens_the_interval(counts):
    good, poor = counts
    mixed = torch.stack([good[0], good[1], poor[2]])
    assert pooled(mixed, poor).high - pooled(mixed, poor).low > 3 * (pooled(good, poor).high - pooled(good, poor).low)
    for first, second in ((good[:1], poor[:1]), (good[:, :1], 0.0), (good, poor[:2])):
        with pytest.raises(ValueError, match="two or more seeds"):
            pooled(first, second)


def test_pieces_of_the_flow_have_any_size_and_are_no_copies():
    torch.manual_seed(0)
    images = torch.randint(90, 160, (4, 3, 60, 60), dtype=torch.uint8, generator=dice())
    piece = flow_pieces(images, steps=2)
    for size in ((14, 30), (200, 120)):
        pixels, classes = piece(*size, dice(3))
        assert pixels.shape == (3, *size) and classes is None and 0 <= pixels.min() and pixels.max() <= 255
    assert not torch.equal(piece(20, 20, dice(1))[0], piece(20, 20, dice(2))[0])


def test_the_workshop_computes_once_and_feeds_all_recipes_the_same_crops(monkeypatch):
    asked = []

    def remembered(make, *arguments, **settings):
        asked.append((make.__name__, arguments[1:] if make is comparison.trained_heads else settings))
        return {"maps": [], "labels": 0} if make is comparison.road_crops else RoadHeads().state_dict()

    monkeypatch.setattr(comparison, "artifact", remembered)
    empty = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    shop = Workshop(DenseSet(empty, empty[:, 0], empty[:, 0], (), ""), steps=3, count=8)
    for recipe in ("closed", "two heads", "DenseHybrid"):
        assert not shop.heads(recipe, 1).training
    assert asked[0] == ("road_crops", {"count": 8}) and [a for a, _ in asked].count("road_crops") == 1
    assert [rest for name, rest in asked[1:]] == [(r, 3, 1) for r in ("closed", "two heads", "DenseHybrid")]
    with pytest.raises(KeyError):
        shop.heads("seven heads", 0)
