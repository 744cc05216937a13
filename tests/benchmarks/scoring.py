"""Times the detector of the package on a photograph of 640 x 360: its encoder, the classes alone, with the anomaly
score, the score alone. Medians of processor time of one thread, the calls in turn, and images a second of two threads;
prints a Markdown table and judges nothing: python tests/benchmarks/scoring.py [rounds, 15 by default]
"""
import os
import platform
import sys
import time

import torch

from densegen.dense.road_detector import shipped_detector


@torch.no_grad()
def medians(calls: dict, rounds: int, clock) -> dict[str, float]:
    "Milliseconds of each call, one after the other in each round; the first round warms up."
    times = {name: [] for name in calls}
    for k in range(rounds + 1):
        for name, call in calls.items():
            began = clock()
            call()
            if k:
                times[name].append(1000 * (clock() - began))
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}


def main(rounds: int) -> None:
    detector = shipped_detector()
    image = torch.randint(0, 256, (1, 3, 360, 640), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    calls = {
        "encoder": lambda: detector.maps(image),
        "classes": lambda: detector.predict(image),
        "classes and score": lambda: detector.both(image),
        "score": lambda: detector.anomaly_score(image),
    }
    print(f"640 x 360; torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; median of {rounds}\n")
    torch.set_num_threads(1)
    ms = medians(calls, rounds, time.process_time)
    torch.set_num_threads(2)
    wall = medians({name: calls[name] for name in ("classes and score", "score")}, rounds, time.perf_counter)
    print("| call | ms of one thread | beside classes | images/s, two threads |")
    print("| --- " * 4 + "|")
    for name, value in ms.items():
        more, rate = value / ms["classes"] - 1, f"{1000 / wall[name]:.1f}" if name in wall else ""
        print(f"| {name} | {value:.0f} | {more:+.1%} | {rate} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
