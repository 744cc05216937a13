"""Open-set recognition: the measure against its definition, the hybrid's two losses, the alarm of collapse."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densegen.anomaly.open_set import OpenSetHybrid, feature_spread, oscr
from densegen.anomaly.scores import conv_encoder

SHAPE = (1, 8, 8)


def hybrid(**options):
    return OpenSetHybrid(conv_encoder(SHAPE, 6, 4), 6, 3, layers=2, width=8, **options)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_oscr_is_the_share_of_pairs_and_the_area_of_the_curve(data):
    numbers = st.integers(-3, 3).map(float)
    known = torch.tensor(data.draw(st.lists(numbers, min_size=1, max_size=12)))
    unknown = torch.tensor(data.draw(st.lists(numbers, min_size=1, max_size=12)))
    correct = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(known), max_size=len(known))))
    gap = unknown - known[:, None]
    pairs = ((gap > 0).double() + 0.5 * (gap == 0)) * correct[:, None]
    assert oscr(known, correct, unknown) == pytest.approx(pairs.mean().item(), abs=1e-12)
    edges = torch.cat([torch.tensor([-9.0]), torch.cat([known, unknown]).unique(), torch.tensor([9.0])])
    ccr = torch.stack([((known <= d) & correct).double().mean() for d in edges])
    fpr = torch.stack([(unknown <= d).double().mean() for d in edges])
    assert oscr(known, correct, unknown) == pytest.approx(torch.trapezoid(ccr, fpr).item(), abs=1e-12)


def test_oscr_punishes_both_errors():
    known, unknown = torch.zeros(4), torch.ones(5)
    assert oscr(known, torch.tensor([True] * 4), unknown) == 1.0
    assert oscr(known, torch.tensor([True, True, True, False]), unknown) == 0.75
    assert oscr(known, torch.tensor([False] * 4), unknown) == 0.0


def test_ones_and_zeros_say_the_same_as_booleans():
    known, unknown, correct = torch.tensor([0.1, 0.9, 0.3, 0.2]), torch.tensor([0.5, 0.8]), [1, 1, 0, 1]
    expected = oscr(known, torch.tensor(correct).bool(), unknown)
    for kind in (torch.int64, torch.uint8, torch.float32):
        assert oscr(known, torch.tensor(correct, dtype=kind), unknown) == expected
    with pytest.raises(ValueError, match="correct: expected booleans"):
        oscr(known, torch.tensor([3, 1, 0, 1]), unknown)
    with pytest.raises(ValueError, match=r"correct: expected one for each known score, \[4\]; got \[3\]"):
        oscr(known, torch.ones(3, dtype=torch.bool), unknown)


def test_spread_is_the_mean_distance():
    assert feature_spread(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])) == pytest.approx(10 / 3)
    assert feature_spread(torch.ones(5, 3)) == 0


@pytest.mark.parametrize("term", ["class", "density"])
def test_both_losses_shape_the_encoder(term):
    model, x, y = hybrid(), torch.rand(16, *SHAPE), torch.arange(16) % 3
    for p in model.flow.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.loss((x, y))[term].backward()
    gradients = [p.grad for p in model.encoder.parameters()]
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_the_density_is_weighted_per_feature():
    model, x, y = hybrid(weight=0.5), torch.rand(16, *SHAPE), torch.arange(16) % 3
    phi = model.features(x)
    assert model.loss((x, y))["density"].item() == pytest.approx(-0.5 * model.flow.log_prob(phi).mean().item() / 6, rel=1e-5)
    assert set(hybrid(weight=0.0).loss((x, y))) == {"class"}


def test_features_cannot_shrink():
    model, x = hybrid(), torch.rand(64, *SHAPE)
    before = model.features(x)
    with torch.no_grad():
        model.encoder[-1].weight.mul_(0.01)
        model.encoder[-1].bias.mul_(0.01)
    assert feature_spread(model.features(x)) == pytest.approx(feature_spread(before), rel=0.05)


def test_the_score_is_minus_log_p_and_higher_far_away():
    model = hybrid().eval()
    x = torch.rand(5, *SHAPE)
    with torch.no_grad():
        torch.testing.assert_close(model.anomaly_score(x), -model.flow.log_prob(model.features(x)))
    assert model.anomaly_score(x + 100).min() > model.anomaly_score(x).max()
