"""Times the detectors of the package on a photograph of 640 x 360: classes alone, with the anomaly score, the score alone.

Interleaved medians of processor time of one thread, and images a second of two threads; prints a Markdown table and
judges nothing: python tests/benchmarks/scoring.py [rounds, 15 by default]
"""
import os
import platform
import sys
import time

import torch
from torch import Tensor

from densegen.dense.city_detector import city_detector
from densegen.dense.road_detector import RoadDetector, shipped_detector
from densegen.workbench.data import DataNotFound


def calls_of(detector: RoadDetector, image: Tensor) -> dict:
    "What is timed."
    return {
        "encoder": lambda: detector.maps(image),
        "classes": lambda: detector.predict(image),
        "classes and score": lambda: detector.both(image),
        "score": lambda: detector.anomaly_score(image),
    }


@torch.no_grad()
def medians(calls: dict, rounds: int, clock) -> dict[str, float]:
    "Milliseconds of each call, one after the other in each round."
    times = {name: [] for name in calls}
    for k in range(rounds + 1):
        for name, call in calls.items():
            began = clock()
            call()
            if k:  # the first round warms up
                times[name].append(1000 * (clock() - began))
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}


def main(rounds: int) -> None:
    detectors = {"Lite0": shipped_detector()}
    try:
        detectors["Cityscapes"] = city_detector()
    except DataNotFound as error:
        print(error, file=sys.stderr)
    image = torch.randint(0, 256, (1, 3, 360, 640), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; median of {rounds}, in turn\n")
    print("| detector | encoder, ms | classes, ms | classes and score, ms | score, ms | score beside classes | images/s, 2 threads |")
    print("| --- " * 7 + "|")
    for name, detector in detectors.items():
        calls = calls_of(detector, image)
        torch.set_num_threads(1)
        ms = medians(calls, rounds, time.process_time)
        torch.set_num_threads(2)
        wall = medians({"score": calls["classes and score"]}, rounds, time.perf_counter)["score"]
        more = ms["classes and score"] / ms["classes"] - 1
        print(f"| {name} | " + " | ".join(f"{v:.0f}" for v in ms.values()) + f" | {more:+.1%} | {1000 / wall:.1f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
