"Measures of samples against closed forms, known balls, two other packages, and what must not change them."

import contextlib
import io
import math
import sys
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch

from densegen.families.evaluation import (
    FeatureNet, expected_hits, feature_weights, frechet_distance, frechet_extrapolated, judged, memory,
    modes, nearest_two, neighbour_measures, share_of_good,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gaussian(mean, covariance, n=200, seed=0):
    "Points whose mean and covariance are exactly these."
    x = normal(n, len(mean), seed=seed).double()
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_is_the_closed_form():
    a, b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    s, t = torch.diag(torch.tensor([1.0, 4.0, 0.3]).double()), torch.diag(torch.tensor([9.0, 0.2, 2.0]).double())
    turn = torch.linalg.qr(normal(3, 3).double()).Q
    expected = (a - b).square().sum() + (s.diagonal().sqrt() - t.diagonal().sqrt()).square().sum()
    found = frechet_distance(gaussian(turn @ a, turn @ s @ turn.T), gaussian(turn @ b, turn @ t @ turn.T, 300, 1))
    assert abs(found - expected.item()) < 1e-9


def test_frechet_distance_of_covariances_that_do_not_commute():
    scipy = pytest.importorskip("scipy.linalg")
    s, t = (r @ r.T + 0.1 * torch.eye(4) for r in (normal(4, 4, seed=1).double(), normal(4, 4, seed=2).double()))
    zero = torch.zeros(4).double()
    expected = np.trace(s + t) - 2 * np.trace(scipy.sqrtm((s @ t).numpy())).real
    assert abs(frechet_distance(gaussian(zero, s), gaussian(zero, t, 150, 3)) - expected) < 1e-9


def test_frechet_distance_with_fewer_points_than_features():
    x = normal(10, 30)
    assert abs(frechet_distance(x, x)) < 1e-9 and frechet_distance(x, 2 * x) > 1
    constant = torch.zeros(5, 30)
    assert abs(frechet_distance(x, constant) - (x.mean(0).square().sum() + x.var(0).sum())) < 1e-5


@pytest.mark.parametrize("n", [200, 400])
def test_bias_of_the_frechet_distance_is_the_predicted_one(n):
    d, repeats = 8, 60
    found = torch.tensor([frechet_distance(normal(n, d, seed=s), normal(n, d, seed=s + 1000)) for s in range(repeats)])
    predicted = 2 * d / n + (d * d + d) / (2 * n)
    assert abs(found.mean() - predicted) < 4 * found.std() / repeats**0.5 + 0.02 * predicted


def test_extrapolation_removes_the_bias():
    g = torch.Generator().manual_seed(0)
    pairs = [(normal(200, 8, seed=s), normal(200, 8, seed=s + 1000)) for s in range(40)]
    found = torch.tensor([frechet_extrapolated(a, b, 2, g) for a, b in pairs])
    assert abs(found.mean()) < 4 * found.std() / 40**0.5 + 0.005
    stretched = torch.tensor([frechet_extrapolated(a, 1.5 * b + 0.3, 2, g) for a, b in pairs])
    assert abs(stretched.mean() - (8 * 0.25 + 8 * 0.09)) < 4 * stretched.std() / 40**0.5 + 0.005


def test_points_inside_and_outside_of_known_balls():
    real = torch.tensor([[0.0], [1.0], [10.0]])  # with k = 1 the radii are 1, 1 and 9
    fake = torch.tensor([[-1.0], [-1.01], [0.5], [1.5], [19.5]])
    found = neighbour_measures(real, fake, 1)
    assert found["precision"] == 3 / 5 and found["density"] == 1.0
    assert found["coverage"] == 1.0  # 1.5 lies in the last ball, since 8.5 < 9
    assert found["recall"] == 1.0 and neighbour_measures(real, fake[:2], 1)["recall"] == 0.0


def test_recall_is_precision_the_other_way():
    a, b = normal(80, 3), normal(60, 3, seed=1) + 0.5
    assert neighbour_measures(a, b, 4)["recall"] == neighbour_measures(b, a, 4)["precision"]


@pytest.mark.parametrize("n, m, k, d", [(60, 60, 3, 2), (100, 50, 5, 8), (50, 120, 2, 1)])
def test_expected_coverage_of_one_law(n, m, k, d):
    found = [neighbour_measures(normal(n, d, seed=s), normal(m, d, seed=s + 500), k)["coverage"] for s in range(60)]
    found = torch.tensor(found)
    expected = 1 - math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert abs(found.mean() - expected) < 4 * found.std() / 60**0.5


def test_expected_hits_is_the_mean_over_all_orders():
    n, m, k = 6, 5, 3
    g = torch.Generator().manual_seed(0)
    for good in range(m + 1):
        order = torch.stack([torch.randperm(n - 1 + good, generator=g) for _ in range(4000)])  # below n - 1: real
        kth = (order < n - 1).int().cumsum(1).eq(k).int().argmax(1)
        hits = (kth - (k - 1)).clamp_max(k).double() / k
        assert abs(expected_hits(n, m, k)[good] - hits.mean()) < 4 * hits.std() / 4000**0.5 + 1e-9
    one = 1 - math.prod((n - i) / (n + m - i) for i in range(1, 2))
    assert abs(expected_hits(n, m, 1)[m] - one) < 1e-12 and expected_hits(n, m, k)[0] == 0


def test_share_of_good_inverts_the_curve():
    curve = expected_hits(30, 40, 3)
    assert [share_of_good(curve[m].item(), curve) for m in (0, 1, 17, 40)] == pytest.approx([0, 1 / 40, 17 / 40, 1])
    between = (0.3 * curve[7] + 0.7 * curve[8]).item()
    assert share_of_good(between, curve) == pytest.approx(7.7 / 40) and share_of_good(1.0, curve) == 1


def test_clipped_scores_are_the_share_of_good_samples():
    shares = [0.2, 0.5, 0.8]
    for share in shares:
        scores = []
        for s in range(25):
            fake = normal(200, 4, seed=s + 700)
            fake[int(share * 200) :] += 1000
            found = neighbour_measures(normal(200, 4, seed=s), fake)
            scores.append([found["clipped density"], found["clipped coverage"]])
        assert (torch.tensor(scores).mean(0) - share).abs().max() < 0.02, share


def test_clipped_density_counts_no_sample_twice():
    "Point by point from the definition; half of the samples sit where most balls overlap."
    k, real = 5, normal(101, 2)
    distance = lambda a, b: math.dist(a.tolist(), b.tolist())
    radii = [sorted(distance(a, b) for b in real)[k] for a in real]
    small = [min(r, sorted(radii)[50]) for r in radii]
    count = lambda x, skip: sum(distance(x, b) <= r for i, (b, r) in enumerate(zip(real, small)) if i != skip)
    crowded = max(real, key=lambda x: count(x, None))
    fake = torch.cat([crowded + 1e-4 * normal(40, 2, seed=1), normal(40, 2, seed=2) + 50])
    own = sum(min(count(x, i) / k, 1) for i, x in enumerate(real)) / 101
    theirs = sum(min(count(x, None) / k, 1) for x in fake) / 80
    assert count(fake[0], None) >= k + 3
    assert neighbour_measures(real, fake, k)["clipped density"] == pytest.approx(theirs / own, abs=0.003)


def test_an_outlier_among_the_real_lifts_density_but_not_the_clipped_one():
    real, fake = normal(200, 4), normal(100, 4, seed=1) + 12
    outliers = torch.cat([real, torch.full((1, 4), 40.0)])
    before, after = neighbour_measures(real, fake), neighbour_measures(outliers, fake)
    assert before["precision"] == before["clipped density"] == after["clipped density"] == 0 and after["precision"] == 1


def test_measures_do_not_depend_on_order_scale_or_place():
    real, fake = normal(90, 5), 1.2 * normal(70, 5, seed=1)
    expected = neighbour_measures(real, fake)
    order = torch.randperm(90)
    for a, b in [(real[order], fake.flip(0)), (64 * real, 64 * fake), (real.flip(1), fake.flip(1))]:
        assert neighbour_measures(a, b) == pytest.approx(expected, abs=1e-6)
    moved = neighbour_measures(real.double() + 3, fake.double() + 3)
    assert moved == pytest.approx(neighbour_measures(real.double(), fake.double()), abs=1e-6)
    assert frechet_distance(3 * real + 1, 3 * fake + 1) == pytest.approx(9 * frechet_distance(real, fake), rel=1e-5)


def test_copies_of_repeated_points_are_inside():
    "Balls of radius 0: with an open ball the perfect copies would all be outside."
    real = normal(20, 3).repeat_interleave(4, 0)
    found = neighbour_measures(real, real.clone(), 3)
    assert found["precision"] == found["coverage"] == found["recall"] == 1


def by_prdc(real, fake, k):
    peer = pytest.importorskip("prdc", reason="prdc is not installed")
    with contextlib.redirect_stdout(io.StringIO()):
        return peer.compute_prdc(real.numpy(), fake.numpy(), k)


@pytest.mark.parametrize("n, m, k", [(60, 60, 5), (80, 40, 3), (40, 90, 1)])
def test_as_prdc_without_ties(n, m, k):
    real, fake = normal(n, 6), 0.8 * normal(m, 6, seed=1) + 0.2
    ours = neighbour_measures(real, fake, k)
    theirs = by_prdc(real, fake, k)
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, abs=1e-9)


def fidelity(monkeypatch):
    "torch-fidelity's arithmetic: it imports torchvision for data and networks alone, and a stand-in serves."
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    return pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity is not installed")


@pytest.mark.parametrize("ties", [False, True])
def test_as_torch_fidelity_with_and_without_ties(monkeypatch, ties):
    theirs = fidelity(monkeypatch)
    real, fake = normal(70, 4), 1.1 * normal(50, 4, seed=1)
    if ties:
        real, fake = real.round(), fake.round()
    options = dict(prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False, verbose=False)
    found, ours = theirs.prc_features_to_metric(fake, real, **options), neighbour_measures(real, fake, 3)
    assert (ours["precision"], ours["recall"]) == pytest.approx((found["precision"], found["recall"]), abs=1e-6)
    if ties:
        peer = by_prdc(real, fake, 3)
        assert ours["precision"] > peer["precision"] and ours["coverage"] > peer["coverage"]


def test_frechet_as_torch_fidelity(monkeypatch):
    fidelity(monkeypatch)
    from torch_fidelity import metric_fid as theirs

    a, b = normal(200, 6).double(), (normal(300, 6, seed=1) @ normal(6, 6, seed=2)).double()
    stats = map(theirs.fid_features_to_statistics, (a, b))
    assert theirs.fid_statistics_to_metric(*stats, False)["frechet_inception_distance"] == pytest.approx(
        frechet_distance(a, b), rel=1e-9
    )


def test_modes_and_their_kl():
    uniform = torch.full((4,), 0.25).double()
    assert modes(torch.tensor([0, 1, 2, 3]), uniform) == {"modes": 4, "KL": 0}
    assert modes(torch.tensor([1, 1, 1]), uniform) == {"modes": 1, "KL": pytest.approx(math.log(4))}
    skewed = torch.tensor([0.5, 0.3, 0.2]).double()
    found = modes(torch.tensor([0, 0, 0, 1]), skewed)
    assert found == {"modes": 2, "KL": pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.25 / 0.3))}


def test_kl_of_honest_draws_is_its_floor():
    uniform, n = torch.full((100,), 0.01).double(), 5000
    found = torch.tensor([modes(torch.randint(100, (n,)), uniform)["KL"] for _ in range(100)])
    assert abs(found.mean() - 99 / (2 * n)) < 4 * found.std() / 10 + 1e-3 * 99 / n


def test_nearest_training_images():
    train = torch.rand(300, 1, 4, 4)
    x = torch.cat([train[7:8], train[[3]] + 0.01])
    found = nearest_two(x, train)
    assert found[0, 0] == 0 and found[1, 0] == pytest.approx(0.04, abs=1e-5)
    rest = (x.flatten(1)[:, None] - train.flatten(1)).norm(dim=2).sort(1).values[:, :2]
    assert torch.allclose(found, rest, atol=1e-6)


def test_memory_tells_copies_from_honest_and_from_close():
    g = torch.Generator().manual_seed(0)
    train, held, fresh = (torch.rand(k, 1, 5, 5, generator=g) for k in (400, 200, 200))
    distances = {name: nearest_two(x, train) for name, x in (("held", held), ("fresh", fresh), ("copies", train[:200]))}
    honest, copied = memory(distances["fresh"], distances["held"]), memory(distances["copies"], distances["held"])
    assert abs(honest["closer"] - 0.5) < 0.1 and honest["copies"] == 0
    assert copied == {"closer": 1.0, "closer, error": 0.0, "copies": 1.0}
    grey = memory(nearest_two(torch.full_like(fresh, 0.5), train), distances["held"])
    assert grey["closer"] > 0.9 and grey["copies"] == 0
    assert memory(distances["held"], distances["held"])["closer"] == 0.5


def test_error_of_closer_is_its_scatter():
    found = []
    for s in range(200):
        samples, held = normal(60, 2, seed=s).abs(), normal(40, 2, seed=s + 1000).abs() + 0.3
        found.append([memory(samples, held)[name] for name in ("closer", "closer, error")])
    found = torch.tensor(found)
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std().item(), rel=0.2)


def bars(n, seed):
    "Images of a bright row (class 0) or column (class 1) in noise."
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(2, (n,), generator=g)
    v = torch.randint(0, 120, (n, 1, 8, 8), generator=g)
    for i, place in enumerate(torch.randint(8, (n,), generator=g)):
        v[i, 0].select(int(y[i]), int(place)).fill_(255)
    return v, y


@pytest.fixture(scope="module")
def judge():
    torch.manual_seed(0)
    v, y = bars(1500, 0)
    net = FeatureNet((1, 8, 8), 2)
    net.load_state_dict(feature_weights(v, y, steps=60))
    return net.eval(), v


def test_features_classify_and_have_unit_variance(judge):
    net, v = judge
    fresh, y = bars(400, 1)
    assert (net.labels(fresh / 255) == y).float().mean() > 0.95
    seen = net.features(v / 255)
    assert seen.mean(0).abs().max() < 1e-4 and abs(seen.var(0).sum() - 1) < 1e-3
    assert torch.allclose(net.features(fresh[:1] / 255), net.features(fresh / 255)[:1], atol=1e-5)  # no batch in it


def test_judged_sees_what_was_broken(judge):
    net, v = judge
    held, (honest, kind) = bars(300, 2)[0] / 255, bars(600, 3)
    honest, one = honest[:300] / 255, honest[kind == 0][:200] / 255
    train = v / 255
    good, single = judged(honest, train, held, net), judged(one, train, held, net)
    copied, rubbish = judged(train[:300], train, held, net), judged(torch.rand(300, 1, 8, 8), train, held, net)
    assert all(math.isfinite(value) for value in good.values()) and good.keys() == copied.keys()
    assert single["coverage"] < 0.7 < good["coverage"] and single["KL of classes"] > 0.5 > good["KL of classes"]
    assert copied["copies"] == 1 and copied["closer"] == 1 and good["copies"] == 0 and abs(good["closer"] - 0.5) < 0.1
    assert rubbish["precision"] < good["precision"] and rubbish["Frechet"] > 3 * good["Frechet"]
    assert abs(good["Frechet, extrapolated"]) < good["Frechet"]


def test_too_few_say_so(judge):
    with pytest.raises(ValueError, match="more than k = 5 of each; got 5 and 9"):
        neighbour_measures(torch.rand(5, 2), torch.rand(9, 2))
    with pytest.raises(ValueError, match="9 held-out images or more; got 3"):
        judged(torch.rand(9, 1, 8, 8), torch.rand(3, 1, 8, 8), torch.rand(3, 1, 8, 8), judge[0])
