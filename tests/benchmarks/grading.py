"""Grade N copies of a homework's solution, killed in the middle and started again; prints time (by the clock and of the processor) and memory.

    python tests/benchmarks/grading.py hw3 100 [--no-kernel]
"""
import csv
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from densegen.course.lectures import find


def grade(folder: Path, path: Path, *words: str) -> subprocess.Popen:
    "The command, started."
    code = "from densegen.course.cli import main; main()"
    options = ["--homework", str(path), "--out", str(folder / "grades"), *words]
    return subprocess.Popen([sys.executable, "-c", code, "homework", "grade", str(folder / "submissions"), *options])


def main(name: str, count: int, *words: str) -> None:
    "Measure and print."
    path, folder = find([name])[0].path, Path(tempfile.mkdtemp())
    (folder / "submissions").mkdir()
    for number in range(count):
        shutil.copy(path, folder / "submissions" / f"student{number:03}.ipynb")
    done = lambda: {p: p.stat().st_mtime_ns for p in folder.glob("grades/students/*/result.json")}
    began, process = time.monotonic(), grade(folder, path, *words)
    while len(done()) < count // 2 and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half, at = done(), time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = grade(folder, path, *words).wait()
    now, again = resource.getrusage(resource.RUSAGE_CHILDREN), count - len(half)
    cpu = (now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime) / again
    took, kept = time.monotonic() - began, done()
    with open(folder / "grades" / "grades.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    print(f"{name}: killed after {len(half)} of {count} in {at:.0f} s; all in {took:.0f} s, exit code {code}")
    print(f"rows {len(rows)}, different sums {len({row['points'] for row in rows})}, redone {sum(kept[p] != t for p, t in half.items())}")
    print(f"processor time of the second run: {cpu:.1f} s for each of its {again} submissions")
    for column in ("seconds", "memory_mb"):
        values = [float(row[column]) for row in rows]
        print(f"{column}: median {statistics.median(values):.1f}, at most {max(values):.1f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
