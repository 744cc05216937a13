"""The detectors against formulas in float64 and other libraries; one protocol for all of them."""
import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn

from densegen.anomaly.complexity import ComplexityScore
from densegen.anomaly.open_set import OpenSetHybrid
from densegen.anomaly.scores import (
    LOGIT_SCORES,
    Autoencoder,
    Classifier,
    DensityScore,
    GaussianImages,
    LikelihoodRatio,
    LogitScore,
    Mahalanobis,
    NearestNeighbours,
    Odin,
    Typicality,
    as_mask,
    conv_encoder,
    entropy,
    free_energy,
    max_logit,
    max_softmax,
)

SHAPE = (1, 8, 8)
PIXELS = math.prod(SHAPE)


def setup(n=60):
    "A little classifier, inliers and their labels."
    x, y = torch.rand(n, *SHAPE), torch.arange(n) % 3
    return Classifier(conv_encoder(SHAPE, 6, 4), 6, 3), x, y


class GreyBits(nn.Module):
    "Stands for an image flow: darker is cheaper."

    def bits_per_dim(self, v, generator=None):
        return v.flatten(1).float().mean(1) / 32


def detectors():
    classifier, x, y = setup()
    gaussian = GaussianImages(x)
    yield from ((f.__name__, LogitScore(classifier, f)) for f in (max_softmax, max_logit, free_energy, entropy))
    yield "odin", Odin(classifier)
    yield "mahalanobis", Mahalanobis(classifier.encoder, x, y)
    yield "neighbours", NearestNeighbours(classifier.encoder, x, k=3)
    yield "autoencoder", Autoencoder(nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 2)), nn.Linear(2, PIXELS))
    yield "density", DensityScore(gaussian)
    yield "typicality", Typicality(gaussian, x)
    yield "ratio", LikelihoodRatio(gaussian, GaussianImages(x.flip(3)))
    yield "hybrid", OpenSetHybrid(conv_encoder(SHAPE, 6, 4), 6, 3).eval()
    yield "complexity", ComplexityScore(GreyBits())


def batch(name, n):
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1))
    return (255 * x).to(torch.uint8) if name == "complexity" else x


NAMES = [name for name, _ in detectors()]


@pytest.mark.parametrize("name", NAMES)
def test_one_protocol(name):
    detector, x = dict(detectors())[name], batch(name, 7)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            scores = detector.anomaly_score(x)
            assert scores.shape == (7,) and scores.dtype is torch.float32 and scores.isfinite().all()
    assert all(p.grad is None for p in detector.parameters())
    alone = torch.cat([detector.anomaly_score(row) for row in x.split(1)])
    torch.testing.assert_close(alone, scores, rtol=1e-4, atol=1e-4)
    assert detector.anomaly_score(x[:0]).shape == (0,)


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_it_says_the_same(name):
    detector, other = dict(detectors())[name], dict(detectors())[name]
    with torch.no_grad():
        for t in [*other.parameters(), *other.buffers()]:
            t.zero_()
    other.load_state_dict(detector.state_dict())
    x = batch(name, 5)
    torch.testing.assert_close(other.anomaly_score(x), detector.anomaly_score(x))


logits = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(logits)
def test_scores_of_logits_against_float64(row):
    s = torch.tensor([row])
    p = s.double().softmax(1)
    p_top, place = p.max(1)
    others = p.scatter(1, place[:, None], 0.0).sum(1)
    torch.testing.assert_close(max_softmax(s).double(), (others / p_top).log(), rtol=1e-4, atol=1e-4)
    expected = torch.distributions.Categorical(logits=s.double()).entropy()
    torch.testing.assert_close(entropy(s).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(free_energy(s, 2.0).double(), -2 * (s.double() / 2).logsumexp(1), rtol=1e-5, atol=1e-4)
    assert max_logit(s).item() == -max(row)


def test_confident_images_keep_their_ranks():
    margins = torch.arange(10.0, 60.0)
    s = torch.stack([margins, torch.zeros(50), torch.zeros(50)], 1)
    assert len((1 - s.softmax(1).amax(1)).unique()) < 12  # what the textbook formula does
    assert (max_softmax(s).diff() < 0).all()


def test_half_precision_logits_are_scored_in_float32():
    s = torch.randn(4, 3).half()
    for f in (max_softmax, max_logit, free_energy, entropy):
        assert f(s).dtype is torch.float32


SCORES = (max_softmax, max_logit, free_energy, entropy)


def value_and_slope(score, rows):
    s = torch.tensor(rows, requires_grad=True)
    value = score(s)
    return value.detach(), torch.autograd.grad(value.sum(), s)[0]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_class_masked_by_minus_infinity_is_as_good_as_absent(score, place):
    free = torch.randn(5, 3)
    masked = torch.cat([free[:, :place], torch.full((5, 1), -math.inf), free[:, place:]], 1)
    (value, slope), (expected, downhill) = value_and_slope(score, masked.tolist()), value_and_slope(score, free.tolist())
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.cat([slope[:, :place], slope[:, place + 1 :]], 1), downhill)
    assert (slope[:, place] == 0).all()


@pytest.mark.parametrize("score", SCORES)
def test_where_one_class_alone_is_possible_the_score_is_a_number_with_a_slope(score):
    value, slope = value_and_slope(score, [[1.0, -math.inf, -math.inf], [-5.0, -5.0, -5.0]])
    assert value[0] < value[1] and slope.isfinite().all()


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("row", [[math.nan, 0.0, 0.0], [0.0, math.nan, -math.inf], [math.nan] * 3])
def test_a_broken_network_never_looks_certain(score, row):
    values = score(torch.tensor([row, [1.0, 2.0, 3.0]]))
    assert values[0].isnan() and values[1].isfinite()


def test_logits_of_pixels_are_scored_pixel_by_pixel():
    s = torch.randn(2, 5, 3, 4)
    rows = s.permute(0, 2, 3, 1).reshape(-1, 5)
    for f in (max_softmax, max_logit, free_energy, entropy):
        torch.testing.assert_close(f(s), f(rows).view(2, 3, 4))


def test_odin_steps_towards_confidence():
    classifier, x, _ = setup()
    with torch.no_grad():
        flat = max_softmax(classifier(x) / 10)
    torch.testing.assert_close(Odin(classifier, temperature=10.0, epsilon=0.0).anomaly_score(x), flat)
    assert (Odin(classifier, temperature=10.0, epsilon=1e-3).anomaly_score(x) <= flat + 1e-6).all()


def test_odin_takes_its_step_at_its_temperature():
    classifier, x, _ = setup()
    x.requires_grad_()
    logits = 30 * classifier(x)
    top = logits.argmax(1, keepdim=True)
    doubt = (logits / 20).scatter(1, top, -math.inf).logsumexp(1) - (logits / 20).gather(1, top)[:, 0]
    slope = torch.autograd.grad(doubt.sum(), x)[0]
    with torch.no_grad():
        expected = max_softmax(30 * classifier(x - 0.01 * slope.sign()) / 20)
    sharp = lambda v: 30 * classifier(v)
    holder = Odin(nn.Identity(), temperature=20.0, epsilon=0.01)
    holder.classifier = nn.Module()
    holder.classifier.forward = sharp
    torch.testing.assert_close(holder.anomaly_score(x.detach()), expected, rtol=1e-4, atol=1e-5)


class PixelLogits(nn.Module):
    "Logits of three classes at each pixel, from images of 0..255."

    def forward(self, images):
        x = images.float() / 255
        return torch.cat([3 * x, 1 - x, x.square()], 1)


def test_detectors_of_logits_give_maps():
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    for detector in [LogitScore(PixelLogits(), score) for score in LOGIT_SCORES.values()] + [Odin(PixelLogits(), 10.0, 1.0)]:
        assert detector.anomaly_score(images).shape == (2, 8, 8)


def test_mahalanobis_against_its_formula():
    _, x, y = setup()
    detector, f = Mahalanobis(nn.Flatten(), x, y, ridge=1e-3), x.flatten(1).double()
    means = torch.stack([f[y == k].mean(0) for k in range(3)])
    covariance = (f - means[y]).T @ (f - means[y]) / len(f)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(PIXELS)
    new = torch.rand(9, *SHAPE)
    gap = new.flatten(1).double()[:, None] - means
    expected = torch.einsum("bkf,fg,bkg->bk", gap, covariance.inverse(), gap).amin(1)
    torch.testing.assert_close(detector.anomaly_score(new).double(), expected, rtol=1e-4, atol=1e-4)


def test_mahalanobis_names_the_class_that_is_missing():
    _, x, y = setup()
    with pytest.raises(ValueError, match=r"labels: expected images of every class 0 to 2; got none of \[1\]"):
        Mahalanobis(nn.Flatten(), x, y // 2 * 2)
    narrow = Mahalanobis(nn.Flatten(), x, y.to(torch.uint8)).anomaly_score(x)
    assert torch.equal(narrow, Mahalanobis(nn.Flatten(), x, y).anomaly_score(x))


def test_the_distance_of_a_thing_to_itself_is_zero():
    x, y = 100 + torch.randn(300, 8), torch.arange(300) % 3
    assert NearestNeighbours(nn.Identity(), x, k=1).anomaly_score(x).max() < 1e-6
    apart = NearestNeighbours(nn.Identity(), x, k=2).anomaly_score(x).double()
    unit = nn.functional.normalize(x).double()
    gaps = torch.linalg.vector_norm(unit[:, None] - unit, dim=2).topk(2, largest=False).values[:, 1]
    torch.testing.assert_close(apart, gaps, rtol=1e-2, atol=1e-5)
    detector = Mahalanobis(nn.Identity(), x, y).float()
    assert detector.anomaly_score(detector.means).max() < 1e-6


def test_ones_and_zeros_are_booleans_and_other_numbers_are_refused():
    for kind in (torch.bool, torch.int64, torch.uint8, torch.float32):
        assert torch.equal(as_mask(torch.tensor([1, 0, 1], dtype=kind)), torch.tensor([True, False, True]))
    for other in (torch.tensor([0, 2]), torch.tensor([0, -1]), torch.tensor([0.0, 0.5]), torch.tensor([0.0, math.nan])):
        with pytest.raises(ValueError, match="kept: expected booleans, or 0 and 1; got"):
            as_mask(other, "kept")


def test_mahalanobis_does_not_depend_on_the_coordinates_of_the_features():
    x, y = torch.randn(200, 4), torch.arange(200) % 2
    mix = torch.randn(4, 4) + 3 * torch.eye(4)
    plain, mixed = Mahalanobis(nn.Identity(), x, y, ridge=0), Mahalanobis(nn.Identity(), x @ mix, y, ridge=0)
    new = torch.randn(10, 4)
    torch.testing.assert_close(mixed.anomaly_score(new @ mix), plain.anomaly_score(new), rtol=1e-3, atol=1e-3)


def test_neighbours_against_scikit_learn():
    bank, new = torch.randn(300, 5), torch.randn(20, 5)
    unit = lambda t: (t / t.norm(dim=1, keepdim=True)).numpy()
    expected = NearestNeighbors(n_neighbors=7).fit(unit(bank)).kneighbors(unit(new))[0][:, -1]
    found = NearestNeighbours(nn.Identity(), bank, k=7).anomaly_score(new)
    torch.testing.assert_close(found, torch.from_numpy(expected).float(), rtol=1e-3, atol=1e-3)
    for k in (0, 301):
        with pytest.raises(ValueError, match="k: expected 1 to 300"):
            NearestNeighbours(nn.Identity(), bank, k=k)


def test_gaussian_against_torch_and_quadrature():
    x = torch.randn(500, 2) @ torch.tensor([[1.0, 0.4], [0.0, 0.7]]) + 0.3
    gaussian = GaussianImages(x, ridge=0.0)
    oracle = torch.distributions.MultivariateNormal(x.double().mean(0), x.double().T.cov(correction=0))
    torch.testing.assert_close(gaussian.log_prob(x), oracle.log_prob(x.double()))
    side = torch.linspace(-8, 8, 400, dtype=torch.float64)
    mass = gaussian.log_prob(torch.cartesian_prod(side, side)).exp().sum() * (side[1] - side[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("name", ["density", "typicality", "ratio", "mahalanobis", "neighbours", "autoencoder"])
def test_an_image_of_nan_gets_nan_and_no_rank(name):
    x = batch(name, 4)
    x[1] = math.nan
    scores = dict(detectors())[name].anomaly_score(x)
    assert scores.isnan().tolist() == [False, True, False, False]


def test_typicality_is_two_sided_and_a_ratio_knows_no_coordinates():
    x = torch.randn(400, 16)
    gaussian = GaussianImages(x)
    likely_and_unlikely = torch.stack([x.mean(0), x.mean(0) + 5])
    assert Typicality(gaussian, x).anomaly_score(likely_and_unlikely).min() > 4
    scaled = lambda t: 5 * t
    here = LikelihoodRatio(gaussian, GaussianImages(x.flip(1))).anomaly_score(x)
    wide = [GaussianImages(scaled(v), ridge=25e-3) for v in (x, x.flip(1))]
    torch.testing.assert_close(LikelihoodRatio(*wide).anomaly_score(scaled(x)), here, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("module", ["scores", "reality_check", "complexity", "open_set"])
def test_imports_torch_alone(module):
    banned = "matplotlib sklearn skimage scipy IPython ipywidgets lightning_fabric pooch papermill PIL".split()
    script = f"import sys, densegen.anomaly.{module}; print([m for m in {banned} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"


def test_densities_rank_the_unlikely_as_anomalous():
    inliers, strange = torch.randn(300, 4), 6 + torch.randn(50, 4)
    everything = GaussianImages(torch.cat([inliers, strange]))
    detectors = [DensityScore(GaussianImages(inliers)), LikelihoodRatio(GaussianImages(inliers), everything)]
    for detector in detectors:
        assert detector.anomaly_score(strange).min() > detector.anomaly_score(inliers).max()
