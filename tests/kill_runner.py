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

STEPS = 100
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


def kept(folder: Path) -> int:
    "How many steps the checkpoint holds."
    return sum(len(json.loads(p.read_text())) for p in folder.glob("*.ckpt"))


def killed(root: Path, folder: Path, wait: float, after_a_step: bool) -> float:
    "Start a run, kill it after a while; seconds until nothing of it lives."
    process, before = command(root, "run", "10", "--scale", "smoke"), kept(folder)
    while after_a_step and kept(folder) == before and process.poll() is None:
        time.sleep(0.1)
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
            late = number % 2 == 1  # every other kill hits the lecture at work, the others its start
            wait = draw.uniform(0, 2 if late else 10)
            gone = killed(root, folder, wait, late)
            print(f"kill {number + 1}: all gone after {gone:.1f} s; {kept(folder)} steps kept", flush=True)
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
