"""Kill the runner at random moments and look at what is left: python tests/kill_runner.py [20] [seed]

Each time nothing may live on, and the next start must work; at the end the lecture has done each of its steps once.
"""
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from test_runner import command, write

from densegen.course.processes import family
from densegen.course.runner import last_result

STEPS = 60
SOURCE = f"""
import json, time
from densegen.workbench.run import start, write_atomic
path = start(scale).checkpoint("net")
done = json.loads(path.read_text()) if path.exists() else []
for step in range(len(done), {STEPS}):
    time.sleep(0.5)
    done.append(step)
    write_atomic(path, json.dumps(done).encode())
print(done)
"""


def killed(root: Path, folder: Path, wait: float) -> float:
    "Start a run, kill it after a while; seconds until nothing of it lives."
    process = command(root, "run", "10", "--scale", "smoke")
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    began = time.monotonic()
    while family(folder):
        assert time.monotonic() - began < 30, f"still alive: {family(folder)}"
        time.sleep(0.1)
    return time.monotonic() - began


def main(kills: int, seed: int) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "nbs").mkdir()
        (root / "settings.ini").write_text("[DEFAULT]\n")
        write(root, "10_a", SOURCE)
        folder = root / "_runs" / "smoke" / "10_a"
        for number in range(kills):
            wait = draw.uniform(0, 20)
            gone = killed(root, folder, wait)
            kept = [len(json.loads(p.read_text())) for p in folder.glob("*.ckpt")]
            print(f"kill {number + 1} after {wait:.1f} s: all gone after {gone:.1f} s; steps kept: {kept}", flush=True)
        assert command(root, "run", "10", "--scale", "smoke").wait(600) == 0
        executed = json.loads((folder / "10_a.ipynb").read_text())
        printed = executed["cells"][-1]["outputs"][0]["text"]
        assert json.loads("".join(printed)) == list(range(STEPS)), printed
        left = sorted(p.name for p in folder.iterdir())
        assert left == ["10_a.ipynb", "key", "lock", "log.txt", "result.json"], left
        assert last_result(folder)[1].ok and not family(folder)
    print(f"{kills} kills: {STEPS} of {STEPS} steps, nothing doubled, nothing left")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
