"Scores of logits against their formulas, rivals of one line, densities over features against oracles, normalization, protocol."
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from densegen.anomaly.scores import LOGIT_SCORES
from densegen.dense.embedding_density import (
    DENSITIES, ODIN, EmbeddingDensity, FeatureDensity, FeatureStream, GaussianFeatures, LogitDetector, NeighbourFeatures,
    PositionPrior, fit_density,
)
from densegen.dense.frozen_maps import feature_maps, frozen_network
from densegen.dense.one_liners import ColourDistance, LocalContrast, MiddleOfPicture
from densegen.dense.segmentation import Dense, Ladder, SegmentationModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Ladder(4, (4, 8, 8, 12, 12), (8, 8, 6)).eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Fixed(SegmentationModel):
    "Answers with the same logits, whatever the images."

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return Dense(self.logits, ())


def scored(logits, kind, temperature=1.0):
    return LogitDetector(Fixed(logits), kind, temperature).anomaly_score(torch.zeros(len(logits), 3, 3, 4))


def test_scores_against_their_formulas():
    f = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    p = f.softmax(1)
    expected = {
        "max softmax": -torch.special.logit(p.amax(1)), "max logit": -f.amax(1), "entropy": torch.distributions.Categorical(p.movedim(1, -1)).entropy(),
        "energy": -f.exp().sum(1).log(),
    }
    for kind in LOGIT_SCORES:
        assert torch.allclose(scored(f, kind).double(), expected[kind], atol=1e-5), kind
        assert scored(f.half(), kind).dtype == torch.float32
        assert torch.allclose(scored(f, kind, 2.0), scored(f / 2, kind))
    with pytest.raises(ValueError, match="kind: expected one of max softmax"):
        LogitDetector(Fixed(f), "margin")


def test_sure_pixels_keep_their_order():
    f = torch.stack([torch.linspace(10, 80, 200), torch.zeros(200)])[None, :, None]
    assert (scored(f, "max softmax").diff() < 0).all()  # 1 - softmax would have ended at 17


def detectors(model, images):
    labels = torch.randint(0, 4, (3, 32, 48))
    yield from (LogitDetector(model, kind) for kind in LOGIT_SCORES)
    yield ODIN(model)
    yield PositionPrior(model, labels, 4)
    yield ColourDistance(images, labels, 4)
    yield from (MiddleOfPicture(), LocalContrast(3, 9))
    yield from (EmbeddingDensity(model, (1, 2), dim=4, kind=kind).fit(images, steps=3) for kind in DENSITIES)


def test_the_protocol_of_detectors(model, images):
    for detector in detectors(model, images):
        scores = detector.anomaly_score(images)
        assert scores.shape == (3, 32, 48) and scores.dtype == torch.float32 and not scores.requires_grad
        assert scores.isfinite().all(), detector
        assert torch.allclose(detector.anomaly_score(images[1:]), scores[1:], atol=1e-3), detector
        assert torch.allclose(detector.anomaly_score(images.float()), scores, atol=1e-3)


def test_position_prior_and_colour_by_hand():
    class Always(SegmentationModel):
        def forward(self, images):
            logits = torch.zeros(len(images), 2, *images.shape[2:])
            logits[:, 1] = 1
            return Dense(logits, ())

    labels = torch.zeros(10, 32, 32, dtype=torch.long)
    labels[:, 16:] = 1
    scores = PositionPrior(Always(), labels, 2).anomaly_score(torch.zeros(1, 3, 32, 32))
    assert scores[0, :8].mean() > 3 > 0.1 > scores[0, 24:].mean()  # class 1 is odd above and usual below
    images = torch.full((1, 3, 16, 16), 100)
    images[..., 8:] = 200
    train = torch.cat([torch.full((1, 3, 16, 8), 100), torch.full((1, 3, 16, 8), 50)], 3)
    known = ColourDistance(train, torch.zeros(1, 16, 16).index_fill(2, torch.arange(8, 16), 1), 2)
    distance = known.anomaly_score(images)[0, 4:-4]
    assert distance[:, 4].numpy() == pytest.approx(0, abs=1e-3)
    assert distance[:, 12].numpy() == pytest.approx(100 / 255 * 3**0.5, abs=1e-3)


def test_odin_raises_the_confidence(model, images):
    still, moved = ODIN(model, 10.0, 0.0).anomaly_score(images), ODIN(model, 10.0, 0.5).anomaly_score(images)
    assert moved.mean() < still.mean()
    assert torch.allclose(still, LogitDetector(model, "max softmax", 10.0).anomaly_score(images))


def test_feature_density_is_a_density():
    "Integrates to one in the plane, whatever linear map made the features."
    torch.manual_seed(0)
    vectors = torch.randn(3000, 2) @ torch.tensor([[2.0, 0.3], [0.0, 0.5]]) + torch.tensor([1.0, -2.0])
    density = FeatureDensity(vectors, dim=2, layers=4, width=8)
    with torch.no_grad():
        for p in density.flow.parameters():
            p.normal_(std=0.2)
    x, y = torch.linspace(-24, 26, 1001), torch.linspace(-12, 8, 801)
    grid = torch.cartesian_prod(x, y)
    with torch.no_grad():
        mass = density.log_prob(grid).double().exp().sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert mass.item() == pytest.approx(1, abs=5e-3)


def test_dead_and_copied_features_do_no_harm():
    torch.manual_seed(0)
    alive = torch.randn(500, 3)
    vectors = torch.cat([alive, alive[:, :1], torch.zeros(500, 4)], 1)
    density = FeatureDensity(vectors, dim=8, layers=2, width=8)
    assert density.axes.shape == (8, 3) and density.log_prob(vectors).isfinite().all()
    white = density.whiten(vectors)
    assert torch.allclose(torch.cov(white.T), torch.eye(3), atol=1e-3) and white.mean(0).abs().max() < 1e-4


def test_the_average_comes_from_training(model, images):
    detector = EmbeddingDensity(model, (0, 2), dim=4).fit(images, steps=20)
    layers = detector.layer_scores(images)
    assert layers.shape == (3, 2, 32, 48)
    assert torch.allclose(detector.anomaly_score(images), layers.amax(1))
    features = model(images).features
    for number, layer in enumerate((0, 2)):
        vectors = features[layer].permute(0, 2, 3, 1).flatten(0, 2)
        scores = detector.average[number] - detector.densities[number].log_prob(vectors)
        assert scores.mean().abs() < 0.2  # normalized over the training pixels
    strange = torch.randint(0, 256, (1, 3, 32, 48)).float() * 3
    assert detector.layer_scores(strange).mean() > layers.mean()  # and not over the test image


def test_a_loaded_detector_scores_the_same(model, images):
    detector = EmbeddingDensity(model, (1,), dim=4).fit(images, steps=3)
    other = EmbeddingDensity(model, (1,), dim=4).fit(images.flip(0), steps=1)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.anomaly_score(images), detector.anomaly_score(images))
    assert all(not p.requires_grad for p in detector.densities.parameters())


def test_any_model_under_the_contract(images):
    "The detector reads features only: a foundation model's maps will do."
    class Foreign(SegmentationModel):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, 9, 8, 8)

        def forward(self, images):
            maps = self.embed(self.normalized(images))
            return Dense(torch.zeros(len(images), 2, *images.shape[2:]), (maps,))

    detector = EmbeddingDensity(Foreign(), (0,), dim=5).fit(images, steps=3)
    assert detector.anomaly_score(images).shape == (3, 32, 48)


def test_a_second_fit_replaces_the_first(model, images):
    other = torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    twice = EmbeddingDensity(model, (1, 2), dim=4).fit(other, steps=2)
    fitted = []
    for detector in (twice, EmbeddingDensity(model, (1, 2), dim=4)):
        torch.manual_seed(3)
        fitted.append(detector.fit(images, steps=2))
    assert len(twice.densities) == 2
    assert torch.equal(fitted[0].anomaly_score(images), fitted[1].anomaly_score(images))


@pytest.mark.parametrize("kind", LOGIT_SCORES)
def test_masked_classes_and_broken_pixels_in_a_map(kind):
    free = torch.randn(1, 3, 2, 4)
    f = torch.cat([torch.full((1, 1, 2, 4), -torch.inf), free], 1)
    f[0, 1:, 0, 0] = -torch.inf
    f[0, 3, 0, 0] = 1.0  # one class alone is possible here
    f.requires_grad_()
    score = LOGIT_SCORES[kind](f / 2)
    torch.testing.assert_close(score[:, 1], LOGIT_SCORES[kind](free / 2)[:, 1])
    assert torch.autograd.grad(score.sum(), f)[0].isfinite().all() and score.isfinite().all()
    broken = LOGIT_SCORES[kind](f.detach().index_fill(3, torch.tensor(2), torch.nan))
    assert broken.isnan().any(1)[0].tolist() == [False, False, True, False]


def test_a_layer_scores_its_average_minus_the_log_density(model, images):
    detector = EmbeddingDensity(model, (2,), dim=4).fit(images, steps=3)
    maps = model(images).features[2]
    log_prob = detector.densities[0].log_prob(maps.permute(0, 2, 3, 1).flatten(0, 2)).unflatten(0, (3, *maps.shape[2:]))
    expected = nn.functional.interpolate((detector.average[0] - log_prob)[:, None], (32, 48), mode="bilinear")
    assert torch.allclose(detector.layer_scores(images), expected, atol=1e-4)


def normal(dim=3, n=40_000):
    torch.manual_seed(0)
    root = torch.randn(dim, dim) + 2 * torch.eye(dim)
    vectors = torch.randn(n, dim) @ root + torch.randn(dim)
    return vectors, torch.distributions.MultivariateNormal(vectors.mean(0), torch.cov(vectors.T))


def test_the_gaussian_is_the_gaussian():
    "The determinant of the whitening included: on other units of the features the density changes as it must."
    vectors, oracle = normal()
    density = GaussianFeatures(vectors, 3)
    torch.testing.assert_close(density.log_prob(vectors[:50]), oracle.log_prob(vectors[:50]), atol=1e-3, rtol=1e-3)
    stretched = GaussianFeatures(10 * vectors, 3).log_prob(10 * vectors[:50])
    torch.testing.assert_close(stretched, density.log_prob(vectors[:50]) - 3 * math.log(10), atol=1e-3, rtol=1e-3)


def test_neighbours_estimate_the_density():
    "In nats, without bias beyond what n and k leave: k / n points lie in the ball by definition."
    vectors, oracle = normal()
    density = NeighbourFeatures(vectors, 3, k=50, bank=20_000)
    gap = density.log_prob(vectors[-2000:]) - oracle.log_prob(vectors[-2000:])
    assert gap.mean().abs() < 0.1 and gap.std() < 0.3


def test_neighbours_against_sorted_distances():
    torch.manual_seed(0)
    vectors = torch.randn(600, 5) @ torch.randn(5, 5)
    density = NeighbourFeatures(vectors, 5, k=3, bank=100)
    u, bank = density.whiten(vectors[200:]).double(), density.whiten(vectors[:100]).double()
    radius = (u[:, None] - bank).square().sum(2).sqrt().sort(1).values[:, 2]
    ball = math.pi**2.5 / math.gamma(3.5)
    expected = density.log_scale + (3 / 100 / (ball * radius**5)).log()
    torch.testing.assert_close(density.log_prob(vectors[200:]).double(), expected, atol=1e-3, rtol=1e-3)
    assert density.log_prob(vectors[:100]).isfinite().all()  # a stored vector has itself as its nearest


@pytest.mark.parametrize("kind", DENSITIES)
def test_maps_from_a_cache_give_the_scores_of_the_images(model, images, kind):
    detector = EmbeddingDensity(model, (1, -1), dim=4, kind=kind).fit(images, steps=2)
    features = model(images).features
    assert torch.equal(detector.from_maps([features[1], features[-1]], (32, 48)), detector.layer_scores(images))
    vectors = [f.permute(0, 2, 3, 1).flatten(0, 2).detach() for f in (features[1], features[-1])]
    torch.manual_seed(1)
    a = detector.fit(images, steps=2).anomaly_score(images)
    torch.manual_seed(1)
    b = detector.fit_batches([vectors], steps=2).anomaly_score(images)
    torch.testing.assert_close(a, b)


def test_an_unknown_density_is_refused(model):
    with pytest.raises(ValueError, match="kind: expected one of gaussian, neighbours, flow; got 'vae'"):
        EmbeddingDensity(model, kind="vae")


def test_rivals_of_one_line_by_hand():
    score = MiddleOfPicture().anomaly_score(torch.zeros(2, 3, 21, 41))
    assert score.shape == (2, 21, 41) and divmod(score[1].argmax().item(), 41) == (11, 20)
    torch.testing.assert_close(score[0, 0, 0].item(), -0.55 - 0.5)
    image = torch.full((1, 3, 40, 40), 50.0)
    assert LocalContrast(3, 9).anomaly_score(image).abs().max() < 1e-4  # also at the rim
    image[..., 20, 20] = 140
    score = LocalContrast(3, 9).anomaly_score(image)[0]
    assert score[20, 20].item() == pytest.approx(90 / 9 - 90 / 81, abs=1e-3)
    assert score[20, 24].item() == pytest.approx(90 / 81, abs=1e-3) and score[20, 26].abs() < 1e-4


def test_frozen_features_are_those_of_the_encoder(images):
    lite = frozen_network("lite0")
    assert not lite.training and not any(p.requires_grad for p in lite.parameters())
    found = lite(images)
    assert found.logits.shape == (3, 1, 32, 48)
    for k, m in enumerate(lite.encoder((images.float() - 127) / 128)):
        torch.testing.assert_close(found.features[k], m, atol=1e-3, rtol=1e-3)
    cached = feature_maps(images, "lite0", (0, 2))["maps"]
    assert [m.dtype for m in cached] == [torch.float16] * 2
    torch.testing.assert_close(cached[1].float(), found.features[2], atol=2e-2, rtol=2e-3)
    with pytest.raises(KeyError):
        frozen_network("lite9")


def test_a_stream_has_the_moments_of_the_whole():
    "Far from zero, in uneven batches and half precision, where sums of squares would lose every digit."
    v = (1000 + torch.randn(3000, 3) @ torch.tensor([[2.0, 0.3, 0], [0, 0.5, 1], [0, 0, 0.1]])).half()
    stream = FeatureStream(10)
    for part in v.split([1, 900, 2, 2097]):
        stream.update(part)
    mean, covariance = stream.moments
    torch.testing.assert_close(mean, v.double().mean(0), atol=1e-9, rtol=0)
    torch.testing.assert_close(covariance, torch.cov(v.double().T), atol=1e-9, rtol=1e-9)
    with pytest.raises(ValueError, match="features: expected two vectors or more; got 1 in the whole stream"):
        _ = FeatureStream(10).update(v[:1]).moments


def test_the_sample_of_a_stream_is_uniform():
    "Each vector once at most, early and late ones alike, in random order: the first of the sample are stored."
    drawn = []
    for _ in range(300):
        stream = FeatureStream(40)
        for part in torch.arange(200.0)[:, None].split([30, 5, 100, 65]):
            stream.update(part)
        assert len(stream.vectors.unique()) == 40 and stream.count == 200
        drawn.append(stream.vectors[:, 0])
    often = torch.stack(drawn).long().flatten().bincount(minlength=200).view(4, 50).sum(1)
    assert (often - 3000).abs().max() < 5 * (3000 * 0.75) ** 0.5
    first = torch.stack(drawn)[:, :10].mean()
    assert (first - 99.5).abs() < 5 * 200 / 12**0.5 / 3000**0.5
    assert sorted(FeatureStream(9).update(torch.arange(4.0)[:, None]).vectors[:, 0].tolist()) == [0, 1, 2, 3]


def test_the_gaussian_of_a_stream_is_exact_and_the_others_see_its_sample():
    vectors, _ = normal(n=3000)
    whole = GaussianFeatures(vectors, 3)
    stream = FeatureStream(100)
    for part in vectors.split(700):
        stream.update(part)
    found = fit_density(stream, "gaussian", 3)
    torch.testing.assert_close(found.log_prob(vectors), whole.log_prob(vectors), atol=1e-3, rtol=1e-3)
    assert fit_density(stream, "neighbours", 3).bank.shape == (100, 3)
    alone = GaussianFeatures(stream.vectors, 3)
    assert (alone.log_prob(vectors) - whole.log_prob(vectors)).abs().max() > 0.05  # 100 vectors would not do


@pytest.mark.parametrize("kind", DENSITIES)
def test_images_from_a_loader_fit_as_those_of_a_tensor(model, images, kind):
    "With labels beside them or alone, in batches of any size."
    labels, whole = torch.zeros(3, 32, 48), EmbeddingDensity(model, (1, -1), dim=4, kind=kind).fit(images, steps=3)
    for data in (DataLoader(TensorDataset(images, labels), 2), list(images.split(1)), (x for x in images.split(2))):
        scores = EmbeddingDensity(model, (1, -1), dim=4, kind=kind).fit(data, steps=3).anomaly_score(images)
        close = {"gaussian": 1e-2, "neighbours": 3.0, "flow": 3.0}[kind]  # a sample in another order
        assert (scores - whole.anomaly_score(images)).abs().mean() < close


STREAM = """
import re
from pathlib import Path
import torch
from densegen.dense.embedding_density import EmbeddingDensity
from densegen.dense.segmentation import Dense, SegmentationModel


class Repeats(SegmentationModel):
    def forward(self, images):
        return Dense(torch.zeros(len(images), 2, 1, 1), (images.float().repeat(1, 4, 1, 1),))


for batches in (4, 40):  # 6 MB of maps each
    frames = (torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8) for _ in range(batches))
    EmbeddingDensity(Repeats(), (0,), dim=3, kind="neighbours").fit(frames, sample=500)
    print(int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux' own files")
def test_a_long_stream_takes_no_more_memory_than_a_short_one():
    done = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split()[-2:])
    assert long - short < 108  # half of the maps that went through more
