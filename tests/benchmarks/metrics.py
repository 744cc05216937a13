"""Times AP, AUROC and FPR95 beside scikit-learn, with the extra memory of each; prints a Markdown table and judges nothing.

Every measurement runs in a process of its own, so that its peak of memory is its own:
python tests/benchmarks/metrics.py [largest power of ten, 7 by default]
"""
import platform
import resource
import subprocess
import sys
import time

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from densegen.anomaly.scores import StreamingMetrics, rank_metrics

ROUNDS = 3


def three_calls(scores, labels):
    s, y = scores.numpy(), labels.numpy()
    return average_precision_score(y, s), roc_auc_score(y, s), one_curve(scores, labels)[2]


def one_curve(scores, labels):
    "A careful user's way: all three from one call of roc_curve."
    s, y = scores.numpy(), labels.numpy()
    fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
    tp, fp = tpr * y.sum(), fpr * (len(y) - y.sum())
    precision = tp[1:] / (tp[1:] + fp[1:])
    return (np.diff(tpr) * precision).sum(), np.trapezoid(tpr, fpr), fpr[np.searchsorted(tpr, 0.95)]


WAYS = {
    "scikit-learn, three calls": three_calls,
    "scikit-learn, one curve": one_curve,
    "rank_metrics": rank_metrics,
    "StreamingMetrics": lambda scores, labels: StreamingMetrics().update(scores, labels).compute(),
}


def measure(way: str, n: int, share: float) -> None:
    "Print seconds, extra MiB and the three metrics."
    torch.set_num_threads(2)
    torch.manual_seed(0)
    labels = torch.rand(n) < share
    scores = torch.randn(n).add_(labels, alpha=1.5)
    WAYS[way](scores[:1000], labels[:1000])
    before, times = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(1 if way.startswith("scikit") else ROUNDS):
        began = time.perf_counter()
        result = WAYS[way](scores, labels)
        times.append(time.perf_counter() - began)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(sorted(times)[len(times) // 2], extra, *map(float, result))


def main(largest: int) -> None:
    print(f"float32 scores; torch {torch.__version__}, numpy {np.__version__}, 2 threads, {platform.machine()}; "
          f"median of {ROUNDS} (scikit-learn: once)\n")
    print("| scores | anomalies | way | s | times scikit-learn (three calls, one curve) | extra MiB | largest error |")
    print("| --- " * 7 + "|")
    for n, share in [(10**7, 0.05), (10**7, 0.5), (10**8, 0.05), (10**8, 0.5)]:
        if n > 10**largest:
            continue
        rows = {}
        for way in WAYS:
            command = [sys.executable, __file__, "measure", way, str(n), str(share)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows[way] = [float(v) for v in out.split()]
            seconds, extra, *values = rows[way]
            first = rows["scikit-learn, three calls"]
            ratios = ", ".join(f"{rows[k][0] / seconds:.1f}" for k in list(WAYS)[:2] if k in rows)
            error = max(abs(a - b) for a, b in zip(values, first[2:]))
            print(f"| {n:.0e} | {share:.0%} | {way} | {seconds:.3f} | {ratios} | {extra:.0f} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
