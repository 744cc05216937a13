"""The metrics kernel against scikit-learn, against its definition, and against bad input; the stream against its own bounds."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densegen.anomaly.scores import (
    StreamingMetrics,
    _bins,
    against,
    auroc,
    average_precision,
    fpr_at_tpr,
    judge,
    rank_metrics,
)
from densegen.workbench.compare import compare_by


def oracle(scores, labels, tpr=0.95):
    s, y = np.asarray(scores), np.asarray(labels)
    fpr, hit, _ = roc_curve(y, s, drop_intermediate=False)
    return average_precision_score(y, s), roc_auc_score(y, s), fpr[np.searchsorted(hit, tpr)]


def exact(scores, labels, **options):
    found = rank_metrics(scores, labels, **options)
    np.testing.assert_allclose(found, oracle(scores, labels), rtol=0, atol=1e-9)
    return found


def labelled(n, share=0.2):
    labels = torch.rand(n) < share
    labels[:2] = torch.tensor([True, False])
    return labels


KINDS = {
    "random": lambda n: torch.randn(n),
    "float64 that float32 would tie": lambda n: 1 + 1e-12 * torch.randn(n, dtype=torch.float64),
    "tied": lambda n: torch.randint(5, (n,)).float(),
    "constant": lambda n: torch.full((n,), 3.0),
    "huge": lambda n: 1e30 * torch.randn(n),
    "largest floats": lambda n: torch.tensor([-1.6e38, 1.6e38])[torch.randint(2, (n,))],
    "denormal": lambda n: 1e-45 * torch.randint(-9, 9, (n,)).double(),
    "denormal float32": lambda n: (torch.randint(0, 9, (n,), dtype=torch.int32)).view(torch.float32),
    "float16 collapsed": lambda n: (torch.rand(n) * 0.1 - 30).half().float(),
    "signed zeros": lambda n: torch.tensor([-1.0, -0.0, 0.0, 1.0])[torch.randint(4, (n,))],
    "mixed scales": lambda n: torch.randn(n) * 10.0 ** torch.randint(-37, 38, (n,)),
}


@pytest.mark.parametrize("share", [0.01, 0.5, 0.98])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_scikit_learn(kind, share):
    exact(KINDS[kind](20_001), labelled(20_001, share))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.uint8])
def test_every_number_type(dtype):
    scores, labels = (10 * torch.rand(500)).to(dtype), labelled(500)
    np.testing.assert_allclose(rank_metrics(scores, labels), oracle(scores.double(), labels), atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_equals_scikit_learn_on_anything(data):
    numbers = st.floats(-(2.0**126), 2.0**126, width=32) | st.sampled_from([0.0, -0.0, 1.0, 2.0])
    scores = data.draw(hnp.arrays(np.float32, st.integers(2, 40), elements=numbers))
    labels = data.draw(hnp.arrays(bool, len(scores)))
    labels[:2] = True, False
    exact(torch.from_numpy(scores), torch.from_numpy(labels))


@pytest.mark.parametrize("tpr", [0.01, 0.5, 0.95, 1.0])
def test_fpr_at_other_rates(tpr):
    scores, labels = torch.randn(999).round(decimals=1), labelled(999)
    assert fpr_at_tpr(scores, labels, tpr=tpr) == pytest.approx(oracle(scores, labels, tpr)[2], abs=1e-12)


def test_the_rate_is_reached_exactly():
    # 19 of 20 anomalies are 95 %: a comparison off by one rounding would take the twentieth
    scores = torch.tensor([2.0] * 19 + [0.0] + [1.0] * 10)
    labels = torch.arange(30) < 20
    assert fpr_at_tpr(scores, labels) == 0.0
    assert StreamingMetrics().update(scores, labels).compute().fpr_at_tpr == 0.0


def test_infinity_is_a_rank():
    inf = math.inf
    scores, finite = torch.tensor([-inf, -1, 0, inf, inf, -inf]), torch.tensor([-9.0, -1, 0, 9, 9, -9])
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    assert rank_metrics(scores, labels) == rank_metrics(finite, labels)
    assert StreamingMetrics().update(scores, labels).compute() == rank_metrics(finite, labels)


def test_a_monotone_map_changes_nothing_and_the_opposite_turns_it_round():
    scores, labels = torch.randn(1000, dtype=torch.float64), labelled(1000)
    assert rank_metrics(scores, labels) == rank_metrics(scores.exp() * 7 - 3, labels)
    assert auroc(-scores, labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-12)


def test_images_are_pooled_and_void_is_left_out():
    scores, labels = (8 * torch.randn(4, 8, 8)).round() / 8, torch.randint(2, (4, 8, 8))  # a score, a bin
    labels[0] = 255
    scores[0] = math.nan  # what does not count may hold anything
    kept = labels != 255
    expected = oracle(scores[kept], labels[kept])
    for found in (rank_metrics(scores, labels, ignore=255), rank_metrics(scores, labels, ignore=labels == 255)):
        np.testing.assert_allclose(found, expected, atol=1e-9)
    stream = StreamingMetrics(bits=16).update(scores[0], labels[0], ignore=255).update(scores, labels, ignore=~kept)
    np.testing.assert_allclose(stream.compute(), expected, atol=1e-9)


def test_the_input_is_left_alone():
    scores, labels = torch.randn(100), labelled(100)
    copies = scores.clone(), labels.clone()
    rank_metrics(scores, labels)
    StreamingMetrics().update(scores, labels)
    assert torch.equal(scores, copies[0]) and torch.equal(labels, copies[1])


def test_scores_with_a_gradient_are_accepted():
    scores, labels = torch.randn(50, requires_grad=True), labelled(50)
    assert average_precision(scores, labels) == average_precision(scores.detach(), labels)
    assert StreamingMetrics().update(scores, labels).compute().auroc == pytest.approx(auroc(scores, labels), abs=1e-3)


@pytest.mark.parametrize("measure", [rank_metrics, lambda s, y: StreamingMetrics().update(s, y).compute()])
@pytest.mark.parametrize("value, lack", [(0, "anomalies"), (1, "inliers")])
def test_one_class_alone_is_refused(measure, value, lack):
    with pytest.raises(ValueError, match=f"expected both classes; got no {lack}"):
        measure(torch.randn(10), torch.full((10,), value))


@pytest.mark.parametrize("measure", [rank_metrics, StreamingMetrics().update])
def test_bad_input_is_refused(measure):
    scores, labels = torch.randn(6), torch.tensor([0, 1, 0, 1, 0, 1])
    with pytest.raises(ValueError, match="NaN"):
        measure(torch.where(torch.arange(6) == 3, math.nan, scores), labels)
    with pytest.raises(ValueError, match="2 others; name the label to skip"):
        measure(scores, torch.tensor([0, 1, 255, 1, 0, 255]))
    with pytest.raises(ValueError, match="expected the shape"):
        measure(scores, labels[:5])
    with pytest.raises(ValueError, match="bool mask"):
        measure(scores, labels, ignore=torch.zeros(6))
    with pytest.raises(ValueError, match="expected another label than 0 and 1"):
        measure(scores, labels, ignore=1)


@pytest.mark.parametrize("tpr", [0.0, -1, 1.5])
def test_a_rate_outside_the_unit_interval_is_refused(tpr):
    scores, labels = torch.randn(6), torch.tensor([0, 1, 0, 1, 0, 1])
    for measure in (rank_metrics, lambda s, y, tpr: StreamingMetrics().update(s, y).bounds(tpr)):
        with pytest.raises(ValueError, match="tpr"):
            measure(scores, labels, tpr=tpr)


def test_bins_keep_the_order():
    x = torch.cat([torch.randn(5000) * 10.0 ** torch.randint(-40, 38, (5000,)), torch.tensor([-math.inf, math.inf])])
    x = x.float().sort().values
    for bits in (9, 16, 22, 30):
        bins = _bins(x, bits)
        assert (bins.diff() >= 0).all() and 0 <= bins[0] and bins[-1] < 2**bits
    assert _bins(torch.tensor([-0.0]), 22) == _bins(torch.tensor([0.0]), 22)


@pytest.mark.parametrize("bits", [9, 16, 22])
@pytest.mark.parametrize("kind", ["random", "float64 that float32 would tie", "tied", "constant", "huge", "mixed scales"])
def test_the_stream_is_exact_on_bins_and_its_bounds_hold(kind, bits):
    scores, labels = KINDS[kind](5000), labelled(5000)
    stream = StreamingMetrics(bits).update(scores, labels)
    np.testing.assert_allclose(stream.compute(), oracle(_bins(scores, bits), labels), atol=1e-9)
    for low, truth, high in zip(stream.bounds()[0], exact(scores, labels), stream.bounds()[1]):
        assert low - 1e-12 <= truth <= high + 1e-12


def test_the_bounds_are_reached():
    # one bin holds everything: the best and the worst order are possible, and so must be the bounds
    scores, labels = torch.arange(8).float() * 1e-6 + 1, torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    low, high = StreamingMetrics().update(scores, labels).bounds()
    best, worst = rank_metrics(scores, labels), rank_metrics(-scores, labels)
    assert tuple(high) == (best.average_precision, best.auroc, worst.fpr_at_tpr)
    assert low.auroc == worst.auroc and low.fpr_at_tpr == best.fpr_at_tpr
    assert worst.average_precision - 0.01 < low.average_precision <= worst.average_precision


def test_the_stream_is_within_its_promise():
    labels = labelled(200_000, 0.05)
    scores = torch.randn(200_000) + 1.5 * labels
    found, truth = StreamingMetrics().update(scores, labels).compute(), rank_metrics(scores, labels)
    np.testing.assert_allclose(found, truth, atol=1e-4)


def test_a_refused_batch_leaves_the_counts_alone():
    stream, n = StreamingMetrics(bits=16), 2**19 + 3  # more than one piece, the fault in the last
    scores, labels = torch.randn(n), labelled(n)
    scores[-1] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        stream.update(scores, labels)
    with pytest.raises(ValueError, match="expected the shape"):
        stream.update(scores[:-1], labels[: 2**19])
    assert stream.counts.sum() == 0
    stream.update(scores[:-1], labels[:-1])
    assert stream.counts.sum() == n - 1 and stream.counts[:, 1].sum() == labels[:-1].sum()


class Allocations(TorchDispatchMode):
    "The bytes of every new tensor."

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        old = {t.untyped_storage().data_ptr() for t in args if isinstance(t, torch.Tensor)}
        new = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.sizes += [storage.nbytes() for storage in new if storage.data_ptr() not in old]
        return out


@pytest.mark.parametrize("ignore", [2, "mask"])
def test_the_memory_of_a_stream_does_not_grow_with_the_batch(ignore):
    n = 5_000_000
    scores, labels = torch.randn(n), torch.randint(3, (n,), dtype=torch.uint8)
    stream, void = StreamingMetrics(bits=12), labels == 2
    with Allocations() as made:
        stream.update(scores, labels, void if ignore == "mask" else ignore)
    assert max(made.sizes) < n  # bytes: not even one for each score


def test_merged_streams_are_the_stream_of_all():
    scores, labels = torch.randn(3000), labelled(3000)
    whole = StreamingMetrics().update(scores, labels)
    parts = [StreamingMetrics().update(s, y) for s, y in zip(scores.split(1000), labels.split(1000))]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    assert torch.equal(merged.counts, whole.counts) and merged.compute() == whole.compute()
    with pytest.raises(ValueError, match="22 bits"):
        whole.merge(StreamingMetrics(bits=16))
    with pytest.raises(ValueError, match="bits"):
        StreamingMetrics(bits=8)


def test_against_labels_the_second_batch():
    scores, labels = against(torch.zeros(3), torch.ones(2))
    assert labels.tolist() == [False] * 3 + [True] * 2 and rank_metrics(scores, labels) == (1.0, 1.0, 0.0)
    assert auroc(*against(torch.ones(3), torch.zeros(2))) == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_the_gpu_says_the_same(kind):
    scores, labels = KINDS[kind](20_001), labelled(20_001)
    np.testing.assert_allclose(rank_metrics(scores.cuda(), labels.cuda()), rank_metrics(scores, labels), atol=1e-12)
    stream = StreamingMetrics(device="cuda").update(scores.cuda(), labels.cuda())
    assert torch.equal(stream.counts.cpu(), StreamingMetrics().update(scores, labels).counts)


def test_arrays_are_taken_as_tensors():
    scores, labels = torch.randn(300), labelled(300)
    assert rank_metrics(scores.numpy(), labels.numpy()) == rank_metrics(scores, labels)
    assert compare_by(auroc, scores, scores, labels, draws=20).difference == 0


def drawn(scores, labels, ignore, draws):
    "The bootstrap without bins: every draw of images sorted anew."
    generator = torch.Generator().manual_seed(0)
    picks = [torch.randint(len(scores), (len(scores),), generator=generator) for _ in range(draws)]
    return torch.tensor([rank_metrics(scores[pick], labels[pick], ignore) for pick in picks])


@pytest.mark.parametrize("shape", [(3000,), (40, 30, 30)])
def test_a_judge_gives_exact_metrics_and_the_interval_of_the_plain_bootstrap(shape):
    labels = (torch.rand(shape) < 0.1).long()
    scores = torch.randn(shape) + 1.5 * labels
    labels[-1] = 255
    row, ends = judge(scores, labels, 255, draws=100), drawn(scores, labels, 255, 100)
    ends = ends.quantile(torch.tensor([0.025, 0.975]), 0)
    assert [row[k] for k in ("AP", "AUROC", "FPR95")] == list(rank_metrics(scores, labels, 255))
    for column, name in enumerate(("AP", "AUROC", "FPR95")):
        assert row[f"{name} 95 %"] == pytest.approx(ends[:, column].tolist(), abs=5e-3)
    assert set(judge(scores, labels, 255, draws=0)) == {"AP", "AUROC", "FPR95"}


def test_a_judge_knows_that_pixels_of_an_image_are_no_independent_draws():
    # two kinds of images: in half of them all anomalies rank above, in half below; pixels alone would look certain
    labels = torch.tensor([0, 1]).repeat(40, 50)
    scores = labels * torch.tensor([1.0, -1.0]).repeat_interleave(20)[:, None] + 0.1 * torch.randn(40, 100)
    low, high = judge(scores, labels)["AUROC 95 %"]
    assert high - low > 0.2


def test_a_stream_reaches_the_rate_exactly():
    "19 of 20 anomalies are 95 %: the twentieth, below all inliers, is not needed."
    scores, labels = torch.tensor([2.0] * 19 + [0.0] + [1.0] * 10), torch.arange(30) < 20
    stream = StreamingMetrics().update(scores, labels)
    assert stream.compute().fpr_at_tpr == 0.0 and stream.compute(tpr=0.96).fpr_at_tpr == 1.0
