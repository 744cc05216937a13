"Metrics of dense detection: against the benchmark's reference cases, definitions by loops, and masks judged by eye."
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import jaccard_score, precision_recall_curve

from densegen.anomaly.scores import rank_metrics
from densegen.dense.components import SIZES, ComponentMetrics, components, limits, size_groups
from densegen.dense.metrics import (
    best_f1_threshold, breakdown, by_image, compare_maps, compare_miou, confusion, dense_metrics, distance_groups,
    from_counts, iou, judge, judge_maps, mean_iou, open_miou, score_maps,
)
from densegen.workbench.pictures import DenseSet

EIGHT = np.ones((3, 3))


def reference_file():
    own = os.environ.get("DENSEGEN_DATA")
    return Path(own).parent / "oracles" / "component_metrics.npz" if own else None


def same(ours, theirs, tolerance=1e-6):
    ours, theirs = np.sort(np.asarray(ours, float)), np.sort(np.asarray(theirs, float))
    return ours.shape == theirs.shape and np.abs(ours - theirs).max(initial=0) <= tolerance


@pytest.mark.parametrize("track", ["AnomalyTrack", "ObstacleTrack"])
def test_agrees_with_the_reference_cases(track):
    path = reference_file()
    if path is None or not path.exists():
        pytest.skip("the reference cases are not on this machine")
    sizes = SIZES[track.removesuffix("Track").lower()]
    with np.load(path) as data:
        cases = [k for k in range(len(data["names"])) if f"label_{k}" in data]
        assert len(cases) > 10
        assert (int(data[f"{track}_min_pred"]), int(data[f"{track}_min_gt"])) == sizes
        for k in cases:
            score, label = torch.from_numpy(data[f"score_{k}"]), torch.from_numpy(data[f"label_{k}"])
            threshold = float(data["threshold"][k])
            part = components(score > threshold, label, *sizes)
            expected = {name: data[f"{track}_{name}_{k}"] for name in ("sIoU_gt", "size_gt", "sIoU_pred", "prec_pred", "size_pred")}
            ours = (part.siou, part.size, part.siou_predicted, part.ppv, part.size_predicted)
            for mine, (name, theirs) in zip(ours, expected.items()):
                assert same(mine, theirs), (k, name, mine, theirs)
            counts = ComponentMetrics(threshold, *sizes).update(score, label).counts()
            assert np.array_equal(counts.numpy(), data[f"{track}_counts_{k}"]), k


def by_loops(predicted, anomaly, min_predicted, min_object):
    "The definition, component by component."
    found, n = ndimage.label(predicted & (anomaly <= 1), EIGHT)
    objects, m = ndimage.label(anomaly == 1, EIGHT)
    for i in range(1, n + 1):
        if (found == i).sum() < min_predicted:
            found[found == i] = 0
    void = anomaly > 1
    for k in range(m + 1):
        if (objects == k).sum() < min_object:
            void = void | (objects == k)
    found[void], objects[void] = 0, 0
    siou, ppv = [], []
    for k in set(objects[objects > 0].tolist()):
        union = np.isin(found, list(set(found[(objects == k) & (found > 0)].tolist())))
        others = union & (objects > 0) & (objects != k)
        siou.append((union & (objects == k)).sum() / ((union | (objects == k)) & ~others).sum())
    for i in set(found[found > 0].tolist()):
        ppv.append((objects[found == i] > 0).mean())
    return siou, ppv


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 23), st.integers(1, 23), st.floats(0.05, 0.95), st.integers(0, 12))
def test_any_masks_by_the_definition(seed, height, width, density, least):
    rng = np.random.default_rng(seed)
    predicted = rng.random((height, width)) < density
    anomaly = rng.choice([0, 1, 255], (height, width), p=[0.55, 0.35, 0.1]).astype(np.uint8)
    part = components(torch.from_numpy(predicted), torch.from_numpy(anomaly), least, least // 2)
    siou, ppv = by_loops(predicted, anomaly, least, least // 2)
    assert same(part.siou, siou, 1e-12) and same(part.ppv, ppv, 1e-12)


@pytest.mark.parametrize("picture, siou, ppv", [
    (["11..", "11..", "...."], [], []),  # no object
    (["....", "oo..", "oo.."], [0.0], []),  # no prediction
    (["bb..", "bb..", "...."], [1.0], [1.0]),
    (["bb1.", "bb1.", "...."], [4 / 6], [4 / 6]),
    (["bo..", "bo..", "...."], [0.5], [1.0]),
    (["b.1b", "b.1b", "...."], [1.0, 0.5], [1.0, 0.5]),  # one prediction right, one half right
    (["b11b", "b11b", "...."], [2 / 6, 2 / 6], [0.5]),  # one prediction over two objects
    (["b...", ".b..", "...."], [1.0], [1.0]),  # corners connect
    (["b#1.", "b#1.", "...."], [1.0], [1.0, 0.0]),  # void cuts a prediction in two
    (["o##1", "o##1", "...."], [0.0], [0.0]),
    (["bbbb", "bbbb", "bbbb"], [1.0], [1.0]),
])
def test_masks_judged_by_eye(picture, siou, ppv):
    "o object, 1 predicted, b both, # void and predicted, . nothing"
    signs = np.array([list(row) for row in picture])
    predicted = torch.from_numpy(np.isin(signs, list("1b#")))
    anomaly = torch.from_numpy(np.where(signs == "#", 255, np.isin(signs, list("ob"))).astype(np.uint8))
    part = components(predicted, anomaly, 0, 0)
    if not ppv and not siou:
        assert same(part.ppv, [0.0]) and not len(part.siou)
    else:
        assert same(part.siou, siou) and same(part.ppv, ppv)


def test_sizes_decide_at_their_edge():
    anomaly = torch.zeros(40, 40, dtype=torch.uint8)
    anomaly[:10, :10] = 1
    anomaly[20:30, 20:30] = 1
    anomaly[29, 29] = 0  # 99 pixels
    predicted = torch.zeros(40, 40, dtype=torch.bool)
    predicted[:10, :10] = predicted[35:, :10] = True
    part = components(predicted, anomaly, 100, 100)
    assert part.size.tolist() == [100] and part.size_predicted.tolist() == [100]
    part = components(predicted, anomaly, 50, 99)
    assert sorted(part.size.tolist()) == [99, 100] and sorted(part.size_predicted.tolist()) == [50, 100]


def test_turning_the_image_changes_nothing():
    rng = np.random.default_rng(0)
    predicted = torch.from_numpy(rng.random((30, 41)) < 0.4)
    anomaly = torch.from_numpy(rng.choice([0, 1, 255], (30, 41), p=[0.5, 0.4, 0.1]).astype(np.uint8))
    whole = components(predicted, anomaly, 3, 3)
    for turned in (lambda t: t.flip(0), lambda t: t.flip(1), lambda t: t.T.contiguous()):
        part = components(turned(predicted), turned(anomaly), 3, 3)
        assert same(part.siou, whole.siou, 1e-12) and same(part.ppv, whole.ppv, 1e-12)


def test_counts_are_pooled_over_images():
    score = torch.zeros(2, 20, 20)
    anomaly = torch.zeros(2, 20, 20, dtype=torch.uint8)
    anomaly[0, :10, :10] = 1
    score[0, :10, :10] = 1  # found in the first
    score[1, :10, :10] = 1  # invented in the second
    metrics = ComponentMetrics(0.5, 10, 10).update(score, anomaly)
    assert metrics.counts().tolist() == [[1] * 11, [0] * 11, [1] * 11]
    assert metrics.compute() == {"sIoU": 1.0, "PPV": 0.5, "F1*": pytest.approx(2 / 3)}
    again = ComponentMetrics(0.5, 10, 10).update(score[0], anomaly[0]).update(score[1], anomaly[1])
    assert torch.equal(again.counts(), metrics.counts())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300))
def test_best_threshold_against_scikit_learn(seed, n):
    rng = np.random.default_rng(seed)
    scores, truth = rng.integers(0, 20, n) / 4.0, rng.integers(0, 2, n)
    truth[0] = 1
    precision, recall, _ = precision_recall_curve(truth, scores)
    best = (2 * precision * recall / np.maximum(precision + recall, 1e-12)).max()
    threshold = best_f1_threshold(torch.from_numpy(scores), torch.from_numpy(truth))
    chosen = scores > threshold
    assert 2 * (chosen & (truth == 1)).sum() / (chosen.sum() + truth.sum()) == pytest.approx(best)


def test_confusion_and_iou_against_scikit_learn():
    rng = np.random.default_rng(1)
    predicted, labels = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    void = rng.random(500) < 0.2
    matrix = confusion(torch.from_numpy(predicted), torch.from_numpy(np.where(void, 255, labels)), 4)
    expected = jaccard_score(labels[~void], predicted[~void], average=None)
    assert np.allclose(iou(matrix), expected) and mean_iou(matrix) == pytest.approx(expected.mean())
    assert matrix.sum() == (~void).sum()
    absent = iou(confusion(torch.tensor([0]), torch.tensor([0]), 3))
    assert absent[0] == 1 and absent[1:].isnan().all()


def test_open_miou_by_hand():
    labels = torch.tensor([[0, 0, 1, 1, 255, 255]])
    anomaly = torch.tensor([[0, 0, 0, 0, 1, 255]])
    predicted = torch.tensor([[0, 0, 1, 0, 1, 1]])
    never = torch.zeros(1, 6, dtype=torch.bool)
    # class 0: hit 2, false 1; class 1: hit 1, missed 1, and the anomaly named 1
    assert open_miou(predicted, never, labels, anomaly, 2) == pytest.approx((2 / 3 + 1 / 3) / 2)
    refused = torch.tensor([[True, False, False, False, True, True]])
    # class 0: hit 1, missed 1 (refused), false 1; class 1: hit 1, missed 1
    assert open_miou(predicted, refused, labels, anomaly, 2) == pytest.approx((1 / 3 + 1 / 2) / 2)
    closed = mean_iou(confusion(predicted[:, :4], labels[:, :4], 2))
    assert open_miou(predicted[:, :4], never[:, :4], labels[:, :4], anomaly[:, :4], 2) == pytest.approx(closed)


def test_groups_by_size_and_distance():
    anomaly = torch.zeros(1, 20, 20, dtype=torch.uint8)
    anomaly[0, :2, :2] = 1
    anomaly[0, 10:16, 10:16] = 1
    anomaly[0, 19, 19] = 255
    groups = size_groups(anomaly, (5, 36))
    assert groups[0, 0, 0] == 0 and groups[0, 12, 12] == 2 and (groups >= 0).sum() == 40
    depth = torch.arange(20.0).expand(1, 20, 20)
    near = distance_groups(anomaly, depth, (11.0,))
    assert near[0, 12, 10] == 0 and near[0, 12, 11] == 1 and near[0, 0, 19] == -1
    scores = torch.rand(1, 20, 20)
    parts = breakdown(scores, anomaly, groups)
    assert set(parts) == {0, 2}
    kept = (anomaly == 0) | (groups == 2)
    assert parts[2] == rank_metrics(scores[kept], (anomaly[kept] == 1).long())


def test_dense_metrics_pools_and_skips_void():
    torch.manual_seed(0)
    images, anomaly = torch.rand(5, 3, 8, 9), torch.randint(0, 2, (5, 8, 9))
    anomaly[:, 0] = 255
    score = lambda x: x[:, 0]
    kept = anomaly != 255
    expected = rank_metrics(images[:, 0][kept], anomaly[kept])
    assert dense_metrics(score, images, anomaly, batch=2, exact=True) == expected
    assert all(abs(a - b) < 1e-3 for a, b in zip(dense_metrics(score, images, anomaly, batch=3), expected))


@pytest.mark.parametrize("call, message", [
    (lambda: components(torch.zeros(3, 3, dtype=torch.bool), torch.zeros(3, 4)), "anomaly map"),
    (lambda: ComponentMetrics(0.5).update(torch.full((3, 3), torch.nan), torch.zeros(3, 3)), "NaN"),
    (lambda: best_f1_threshold(torch.rand(5), torch.zeros(5)), "at least one anomalous"),
    (lambda: dense_metrics(lambda x: x[:, 0, 0], torch.rand(2, 3, 4, 4), torch.zeros(2, 4, 4)), "a number a pixel"),
])
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ten_megapixels():
    rng = np.random.default_rng(0)
    field = ndimage.uniform_filter(rng.random((2500, 4000), np.float32), 15)
    anomaly = torch.from_numpy((field > np.quantile(field[::7, ::7], 0.97)).astype(np.uint8))
    predicted = torch.from_numpy(field > np.quantile(field[::7, ::7], 0.96))
    part = components(predicted, anomaly, 50, 10)
    assert len(part.size) > 1000 and len(part.ppv) > 1000


def test_counts_of_images_give_the_pooled_metrics():
    scores, anomaly = noisy_scores(40)
    exact = rank_metrics(scores, anomaly, 255)
    assert from_counts(by_image(scores, anomaly)) == pytest.approx(exact, abs=0.02)
    assert from_counts(by_image(scores, anomaly, 4096)) == pytest.approx(exact, abs=0.002)
    counts = by_image(scores, anomaly)
    assert counts.shape == (40, 256, 2) and counts.sum() == (anomaly <= 1).sum()
    assert torch.equal(counts[3].sum(0).long(), torch.stack([(anomaly[3] == k).sum() for k in (0, 1)]))


def test_a_difference_between_detectors_is_decided_over_images():
    scores, anomaly = noisy_scores(40)
    blurred = scores + 2 * torch.randn(scores.shape, generator=torch.Generator().manual_seed(7))
    for metric, verdict in (("AP", "less"), ("AUROC", "less"), ("FPR95", "more")):
        assert compare_maps(blurred, scores, anomaly, metric, draws=100).verdict == verdict
    assert compare_maps(scores, scores, anomaly, draws=20).difference == 0
    labels = torch.randint(0, 3, (30, 8, 8), generator=torch.Generator().manual_seed(1))
    assert compare_miou(labels, labels.flip(2), labels, 3).verdict == "more"


def test_judge_is_judge_maps_of_the_scores():
    scores, anomaly = noisy_scores(21)

    class Detector:
        def anomaly_score(self, images):
            return images[:, 0]

    data = DenseSet(scores[:, None].expand(-1, 3, -1, -1), anomaly, anomaly, ("a",), "made up")
    judged = judge(Detector(), data, (3, 2), batch=4)
    assert judged.pop("images/s") > 0
    assert judged == judge_maps(score_maps(Detector(), data.images), anomaly, (3, 2)) == judge_maps(scores, anomaly, (3, 2))


def noisy_scores(n):
    "Scores with signal, and anomaly maps with void, [n, 24, 32]."
    generator = torch.Generator().manual_seed(0)
    anomaly = (torch.rand(n, 24, 32, generator=generator) < 0.05).to(torch.uint8)
    scores = torch.randn(n, 24, 32, generator=generator) + 1.5 * anomaly
    anomaly[:, :2] = 255
    return scores, anomaly


def square(shape=(60, 60), top=5, left=5, height=15, width=20, value=1):
    "A map of zeros with one rectangle."
    out = torch.zeros(shape, dtype=torch.uint8)
    out[top : top + height, left : left + width] = value
    return out


def test_an_object_of_300_pixels_under_limits_of_500_and_100():
    "The prediction must have 500 pixels to count: the sIoU is .6 at most, 8 of 11 thresholds but for the last bit."
    anomaly, scores = square(height=15, width=20), square(height=25, width=20).float()
    metrics = ComponentMetrics(0.5, *SIZES["anomaly"]).update(scores, anomaly)
    assert metrics.compute()["sIoU"] == metrics.compute()["PPV"] == 0.6
    assert metrics.counts().tolist() == [[1] * 7 + [0] * 4, [0] * 7 + [1] * 4, [0] * 7 + [1] * 4]
    anomaly[20, 5] = 1  # 301 pixels
    metrics = ComponentMetrics(0.5, *SIZES["anomaly"]).update(scores, anomaly)
    assert metrics.counts().tolist() == [[1] * 8 + [0] * 3, [0] * 8 + [1] * 3, [0] * 8 + [1] * 3]
    scores[29] = 0  # 480 pixels: too small to be a prediction
    assert ComponentMetrics(0.5, *SIZES["anomaly"]).update(scores, anomaly).counts()[0].sum() == 0


@pytest.mark.parametrize("hit", range(25, 80, 5))
def test_a_threshold_is_reached_when_it_is_met(hit):
    "The prediction covers `hit` of 100 pixels and nothing else; the benchmark's floats have 0.6000000000000001."
    anomaly, scores = square((10, 30), 0, 0, 10, 10), torch.zeros(10, 30)
    scores[:, :10] = (torch.arange(100) < hit).reshape(10, 10).float()
    found = ComponentMetrics(0.5, 0, 0).update(scores, anomaly).counts()[0]
    assert found.tolist() == (hit / 100 >= np.linspace(0.25, 0.75, 11)).astype(int).tolist()
    assert found.sum() == (hit - 20) // 5 - (hit == 60)
    block, part = (anomaly == 1).float(), scores.to(torch.uint8)  # the roles exchanged: `hit` of 100 predicted ones
    alarms = ComponentMetrics(0.5, 0, 0).update(block, part).counts()[2]
    assert alarms.tolist() == (hit / 100 < np.linspace(0.25, 0.75, 11)).astype(int).tolist()


def test_a_score_at_the_threshold_is_no_prediction():
    anomaly, scores = square(), square().float() * 2
    assert ComponentMetrics(2.0, 0, 0).update(scores, anomaly).counts()[0].sum() == 0
    assert ComponentMetrics(1.999, 0, 0).update(scores, anomaly).counts()[0].tolist() == [1] * 11


def test_as_many_score_maps_as_label_maps():
    scores, anomaly = torch.rand(3, 20, 20), torch.zeros(2, 20, 20)
    for wrong in (anomaly, anomaly[0], torch.zeros(3, 20, 21)):
        with pytest.raises(ValueError, match=r"anomaly: expected the shape of the scores, \[3, 20, 20\]; got"):
            ComponentMetrics(0.5).update(scores, wrong)


@pytest.mark.parametrize("void", [-1, -100, 2, 254, 255])
def test_void_has_many_names(void):
    rng = np.random.default_rng(3)
    truth = torch.from_numpy(rng.choice([0, 1, 255], (30, 41), p=[0.5, 0.4, 0.1])).long()
    scores, named = torch.from_numpy(rng.random((30, 41))), torch.where(truth == 255, void, truth)
    expected, part = components(scores > 0.6, truth, 3, 3), components(scores > 0.6, named, 3, 3)
    assert same(part.siou, expected.siou, 1e-12) and same(part.ppv, expected.ppv, 1e-12)
    assert best_f1_threshold(scores, named) == best_f1_threshold(scores, truth)
    assert torch.equal(by_image(scores[None], named[None]), by_image(scores[None], truth[None]))
    assert torch.equal(size_groups(named[None]), size_groups(truth[None]))
    groups = size_groups(truth[None])
    assert breakdown(scores[None], named[None], groups) == breakdown(scores[None], truth[None], groups)
    if void not in (255, 2):
        with pytest.raises(ValueError, match="name the label to skip"):
            judge_maps(scores[None], named[None])


def test_predictions_are_booleans_or_ones_and_zeros():
    anomaly, predicted = square(), square(height=17) == 1
    for kind in (torch.uint8, torch.int64, torch.float32):
        assert torch.equal(components(predicted.to(kind), anomaly, 0, 0).siou, components(predicted, anomaly, 0, 0).siou)
    with pytest.raises(ValueError, match="predicted: expected booleans"):
        components(2 * predicted.long(), anomaly, 0, 0)
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    ones = torch.ones(1, 2, 2, dtype=torch.int32)
    assert open_miou(labels, ones, labels, labels, 2) == open_miou(labels, ones.bool(), labels, labels, 2) == 0
    with pytest.raises(ValueError, match="refused: expected booleans"):
        open_miou(labels, 2 * ones, labels, labels, 2)


@pytest.mark.parametrize("name", [4, 9, -1])
def test_a_prediction_that_is_no_class_is_refused(name):
    labels = torch.tensor([[0, 1, 2, 3], [3, 2, 255, 0]])
    predicted = torch.where(labels == 2, name, labels.clamp(max=3))
    with pytest.raises(ValueError, match=rf"predicted: expected classes 0 to 3; got {name}"):
        confusion(predicted, labels, 4)
    hidden = torch.where(labels == 255, name, labels)  # where nothing is judged, anything may stand
    assert torch.equal(confusion(hidden, labels, 4), torch.diag(torch.tensor([2, 1, 2, 2])))
    with pytest.raises(ValueError, match="predicted: expected the shape of the labels"):
        confusion(labels[:1], labels, 4)


def test_the_number_after_the_last_class_is_void_and_no_anomaly():
    labels = torch.tensor([[0, 0, 1, 1, 2, -1]])
    nothing, predicted = torch.zeros(1, 6, dtype=torch.bool), torch.tensor([[0, 0, 1, 1, 0, 1]])
    assert open_miou(predicted, nothing, labels, torch.zeros(1, 6), 2) == 1.0
    assert open_miou(predicted, nothing, labels, torch.tensor([[0, 0, 0, 0, 1, 0]]), 2) == pytest.approx((2 / 3 + 1) / 2)


KINDS = [torch.bool, torch.uint8, torch.int8, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def best_f1(scores, truth):
    "The best F1 of all cuts, and the predictions that reach it, by trying each."
    numbers = scores.tolist()
    cuts = [torch.tensor([n >= cut for n in numbers]) for cut in set(numbers) if cut != -float("inf")]
    f1 = lambda chosen: 2 * (chosen & truth).sum().item() / (chosen.sum() + truth.sum()).item()
    return max((f1(c) for c in cuts), default=0.0), f1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 40), st.sampled_from(KINDS))
def test_the_best_threshold_is_right_in_every_number_type(seed, n, kind):
    g = torch.Generator().manual_seed(seed)
    if kind.is_floating_point:
        near = torch.tensor([1.0, 300.0, 2e4], dtype=kind)[torch.randint(3, (n,), generator=g)]
        scores = torch.nextafter(near, near * torch.randint(-1, 2, (n,), generator=g).to(kind)) if kind is not torch.float16 else near
        scores[torch.rand(n, generator=g) < 0.2] = torch.finfo(kind).max
        scores[torch.rand(n, generator=g) < 0.1] = float("inf")
        scores[torch.rand(n, generator=g) < 0.1] = -float("inf")
    elif kind is torch.bool:
        scores = torch.randint(2, (n,), generator=g).bool()
    else:
        info = torch.iinfo(kind)
        steps = torch.randint(0, 3, (n,), generator=g)
        scores = torch.where(torch.rand(n, generator=g) < 0.5, info.max - steps, info.min + steps).to(kind)
    truth = torch.rand(n, generator=g) < 0.5
    truth[0] = True
    best, f1 = best_f1(scores, truth)
    assert f1(scores > best_f1_threshold(scores, truth.long())) == pytest.approx(best)


@pytest.mark.parametrize("scores, kind", [
    ([200, 200, 100, 90], torch.uint8), ([120, 110, 20, 10], torch.int8), ([2049, 2048, 1], torch.float16),
    ([2e38, 2e38, 1.9e38], torch.float32), ([2e38, 2e38], torch.float32), ([float("inf"), 1, 0], torch.float32),
    ([1 + 2**-23, 1, 1], torch.float32), ([1e308, 1e308, 9e307], torch.float64), ([3, -float("inf")], torch.float32),
    ([16777217, 16777216], torch.int32), ([2**60 + 1, 2**60], torch.int64), ([0, 0], torch.uint8),
])
def test_the_best_threshold_parts_neighbours_and_giants(scores, kind):
    scores = torch.tensor(scores, dtype=kind)
    for cut in range(1, len(scores) + 1):
        if cut < len(scores) and scores[cut] == scores[cut - 1] or scores[cut - 1] == -float("inf"):
            continue
        truth = torch.arange(len(scores)) < cut
        assert torch.equal(scores > best_f1_threshold(scores, truth.long()), truth), cut


def test_scores_without_a_rank_are_refused_where_they_count():
    scores, anomaly = noisy_scores(3)
    threshold, counts = best_f1_threshold(scores, anomaly), by_image(scores, anomaly)
    scores[anomaly == 255] = float("nan")
    assert best_f1_threshold(scores, anomaly) == threshold and torch.equal(by_image(scores, anomaly), counts)
    scores[0, 5, 5] = float("nan")
    for call in (best_f1_threshold, by_image):
        with pytest.raises(ValueError, match="scores: expected numbers; got NaN"):
            call(scores, anomaly)
    with pytest.raises(ValueError, match="anomaly: expected the shape of the scores"):
        best_f1_threshold(scores, anomaly[:2])


def test_counts_by_image_know_infinity_and_giants():
    scores, anomaly = noisy_scores(10)
    for huge in (float("inf"), 3e38):
        wide = torch.where(scores > 2, huge, torch.where(scores < -2, -huge, scores))
        assert from_counts(by_image(wide, anomaly)) == pytest.approx(tuple(rank_metrics(wide, anomaly, 255)), abs=0.03)


def test_pooled_counts_are_exact_when_every_score_has_its_bin():
    "20 anomalies, of which 19 lie above all inliers: 95 % are reached there, and not one score later."
    scores = torch.tensor([*range(40, 21, -1), 0.0, *[2.0] * 10])[None, None]
    anomaly = torch.tensor([1] * 20 + [0] * 10)[None, None]
    counts = by_image(scores, anomaly, bins=400)
    assert from_counts(counts) == rank_metrics(scores, anomaly)
    assert from_counts(counts).fpr_at_tpr == 0.0
    scores[0, 0, 18] = 0.5  # now 18 alone lie above
    assert from_counts(by_image(scores, anomaly, bins=400)).fpr_at_tpr == 1.0


def test_a_score_on_the_edge_of_a_bin_belongs_to_the_upper_one():
    counts = by_image(torch.tensor([[[3.0, 2.0, 1.0, 2.0]]]), torch.tensor([[[1, 1, 1, 0]]]), bins=2)
    assert counts.tolist() == [[[1, 2], [0, 1]]]


def test_the_number_after_the_last_class_is_not_judged():
    assert confusion(torch.tensor([0, 0, 3]), torch.tensor([0, 4, 3]), 4).sum() == 2
def test_counts_reach_the_rate_exactly():
    "19 of 20 anomalies are 95 %: the twentieth, below all ordinary pixels, is not needed."
    counts = torch.tensor([[[0, 19], [7, 0], [0, 1]]])  # one image, three bins: ordinary and anomalous pixels
    assert from_counts(counts).fpr_at_tpr == 0.0


def test_rows_of_the_confusion_are_labels_and_columns_predictions():
    assert confusion(torch.tensor([2, 2, 1]), torch.tensor([0, 0, 1]), 3).tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]


def test_limits_shrink_with_the_area():
    assert limits("obstacle", (1080, 1920)) == SIZES["obstacle"] and limits("anomaly", (720, 1280), (720, 1280)) == (500, 100)
    assert limits("obstacle", (360, 640)) == (6, 1) and limits("anomaly", (180, 320), (720, 1280)) == (31, 6)
    assert limits("obstacle", (9, 16)) == (1, 1)  # never nothing
    with pytest.raises(ValueError, match="track: expected one of anomaly, obstacle; got 'fog'"):
        limits("fog", (9, 16))
