"""How long a slider takes: processor time of one redraw for every `explore(...)` of the course, on one thread.

    python tests/benchmarks/sliders.py [--scale cpu] [--json FILE] [notebook ...]

Each notebook is executed up to its last `explore(...)`; at the default scale `smoke` training is a formality, while what a
slider computes has its usual size, but for the number of particles and layers. Every control is moved to both of its ends and back; the
slowest move counts. The goal is 100 ms, which feels immediate.
"""
import argparse
import contextlib
import io
import json
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("agg")

import IPython.display
import nbformat
import torch

from densegen.workbench import figures

ROOT = Path(__file__).parents[2]
GOAL = 100  # ms


def ends(control):
    "Values to move to: both ends, and where it was."
    if hasattr(control, "options"):
        choices = [o[1] if isinstance(o, tuple) else o for o in control.options]
        return [choices[-1], choices[0], control.value]
    if isinstance(control.value, bytes):  # a pad: white, black, what it was
        return [bytes([255]) * len(control.value), bytes(len(control.value)), control.value]
    low, high = (control.base**v if hasattr(control, "base") else v for v in (control.min, control.max))
    return [high, low, control.value]


def measured(box, pauses):
    "Milliseconds of processor time for each move of each control."
    for control in box.children[:-2]:
        for value in ends(control):
            began = time.process_time()
            control.value = value
            pauses.setdefault(getattr(control, "description", "pad"), []).append(1000 * (time.process_time() - began))
            if "</b>: " in box.children[-1].value:  # as `explore` tells an error
                raise RuntimeError(f"{type(control).__name__} = {value}: {box.children[-1].value}")


def sliders(path, scale):
    "A row for each `explore` of a notebook."
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code" and c.source.strip()]
    last = max(i for i, c in enumerate(cells) if "explore(" in c.source and "def explore" not in c.source)
    rows, space, original = [], {"__name__": "__main__"}, figures.explore

    def explore(draw, **controls):
        box, pauses = original(draw, **controls), {}
        measured(box, pauses)
        worst = max(pauses, key=lambda name: max(pauses[name]))
        times = [t for row in pauses.values() for t in row]
        rows.append({"notebook": path.stem, "draws": draw.__name__, "slowest": worst, "ms": round(max(times)),
                     "median ms": round(statistics.median(times)), "bytes": len(box.children[-2].value)})
        return box

    figures.explore = explore
    try:
        for cell in cells[: last + 1]:
            exec(compile(cell.source, f"{path.stem}/{cell.id}", "exec"), space)
            if "parameters" in cell.metadata.get("tags", []):
                space["scale"] = scale
    finally:
        figures.explore = original
    return rows


def main():
    "Measure, print the table."
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("notebooks", nargs="*")
    parser.add_argument("--scale", default="smoke")
    parser.add_argument("--json", type=Path)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    IPython.display.display = lambda *a, **k: None
    paths = [p for p in sorted((ROOT / "nbs").glob("*.ipynb")) if "explore(" in p.read_text() and p.stem != "04_figures"]
    rows = []
    for path in [p for p in paths if not wanted.notebooks or p.stem in wanted.notebooks]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            rows += sliders(path, wanted.scale)
    print(f"{'notebook':14} {'draws':16} {'slowest control':16} {'ms':>5} {'median':>7} {'kB':>5}")
    for r in rows:
        late = "" if r["ms"] <= GOAL else "   over the goal"
        print(f"{r['notebook']:14} {r['draws']:16} {r['slowest']:16} {r['ms']:5} {r['median ms']:7} {r['bytes'] // 1000:5}{late}")
    if wanted.json:
        wanted.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
