"Scores of logits against their formulas, trivial detectors, and flows over features: densities, normalization, protocol."
import pytest
import torch
from torch import nn

from densegen.dense.embedding_density import (
    LOGIT_SCORES, ODIN, ColourDistance, EmbeddingDensity, FeatureDensity, LogitDetector, PositionPrior, logit_score,
)
from densegen.dense.segmentation import Dense, Ladder, SegmentationModel


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Ladder(4, (4, 8, 8, 12, 12), (8, 8, 6)).eval()


@pytest.fixture
def images():
    return torch.randint(0, 256, (3, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_scores_against_their_formulas():
    f = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    p = f.softmax(1)
    expected = {
        "max softmax": -torch.special.logit(p.amax(1)), "max logit": -f.amax(1), "entropy": torch.distributions.Categorical(p.movedim(1, -1)).entropy(),
        "energy": -f.exp().sum(1).log(),
    }
    for kind in LOGIT_SCORES:
        assert torch.allclose(logit_score(f, kind).double(), expected[kind], atol=1e-5), kind
        assert logit_score(f.half(), kind).dtype == torch.float32
        assert torch.allclose(logit_score(f, kind, 2.0), logit_score(f / 2, kind))
    with pytest.raises(ValueError, match="kind: expected one of max softmax"):
        logit_score(f, "margin")


def test_sure_pixels_keep_their_order():
    f = torch.stack([torch.linspace(10, 80, 200), torch.zeros(200)], 1)
    scores = logit_score(f, "max softmax")
    assert (scores.diff() < 0).all()  # 1 - softmax would have ended at 17


def detectors(model, images):
    labels = torch.randint(0, 4, (3, 32, 48))
    yield from (LogitDetector(model, kind) for kind in LOGIT_SCORES)
    yield ODIN(model)
    yield PositionPrior(model, labels, 4)
    yield ColourDistance(images, labels, 4)
    yield EmbeddingDensity(model, (1, 2), dim=4).fit(images, steps=3)


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
    assert torch.allclose(still, logit_score(model(images).logits, "max softmax", 10.0))


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


def test_a_detector_of_logits_softens_them_by_its_temperature(model, images):
    for kind in LOGIT_SCORES:
        expected = logit_score(model(images).logits / 3, kind).detach()
        torch.testing.assert_close(LogitDetector(model, kind, 3.0).anomaly_score(images), expected)


@pytest.mark.parametrize("kind", LOGIT_SCORES)
def test_masked_classes_and_broken_pixels_in_a_map(kind):
    free = torch.randn(1, 3, 2, 4)
    f = torch.cat([torch.full((1, 1, 2, 4), -torch.inf), free], 1)
    f[0, 1:, 0, 0] = -torch.inf
    f[0, 3, 0, 0] = 1.0  # one class alone is possible here
    f.requires_grad_()
    score = logit_score(f, kind, 2.0)
    torch.testing.assert_close(score[:, 1], logit_score(free, kind, 2.0)[:, 1])
    assert torch.autograd.grad(score.sum(), f)[0].isfinite().all() and score.isfinite().all()
    broken = logit_score(f.detach().index_fill(3, torch.tensor(2), torch.nan), kind)
    assert broken.isnan().any(1)[0].tolist() == [False, False, True, False]
def test_a_layer_scores_its_average_minus_the_log_density(model, images):
    detector = EmbeddingDensity(model, (2,), dim=4).fit(images, steps=3)
    maps = model(images).features[2]
    log_prob = detector.densities[0].log_prob(maps.permute(0, 2, 3, 1).flatten(0, 2)).unflatten(0, (3, *maps.shape[2:]))
    expected = nn.functional.interpolate((detector.average[0] - log_prob)[:, None], (32, 48), mode="bilinear")
    assert torch.allclose(detector.layer_scores(images), expected, atol=1e-4)
