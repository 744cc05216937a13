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
from densegen.dense.metrics import (
    SIZES, ComponentMetrics, best_f1_threshold, breakdown, by_image, compare_maps, compare_miou, components,
    confusion, dense_metrics, distance_groups, from_counts, iou, judge, judge_maps, mean_iou, open_miou, score_maps,
    size_groups,
)
from densegen.dense.streets import DenseSet

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


def test_ten_megapixels_are_quick():
    "Generous: a tenth of a second on a quiet core, a whole one on a busy machine."
    import time

    rng = np.random.default_rng(0)
    field = ndimage.uniform_filter(rng.random((2500, 4000), np.float32), 15)
    anomaly = torch.from_numpy((field > np.quantile(field[::7, ::7], 0.97)).astype(np.uint8))
    predicted = torch.from_numpy(field > np.quantile(field[::7, ::7], 0.96))
    began = time.process_time()
    part = components(predicted, anomaly, 50, 10)
    seconds = time.process_time() - began
    assert len(part.size) > 1000 and len(part.ppv) > 1000 and seconds < 1.0


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


def test_counts_reach_the_rate_exactly():
    "19 of 20 anomalies are 95 %: the twentieth, below all ordinary pixels, is not needed."
    counts = torch.tensor([[[0, 19], [7, 0], [0, 1]]])  # one image, three bins: ordinary and anomalous pixels
    assert from_counts(counts).fpr_at_tpr == 0.0


def test_rows_of_the_confusion_are_labels_and_columns_predictions():
    assert confusion(torch.tensor([2, 2, 1]), torch.tensor([0, 0, 1]), 3).tolist() == [[0, 0, 2], [0, 1, 0], [0, 0, 0]]
