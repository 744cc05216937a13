"""Shared by all tests: the checkout, and the real image sets where they exist."""
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))


def pytest_configure():
    beside = ROOT.parent / "shared" / "data"
    if "DENSEGEN_DATA" not in os.environ and beside.is_dir():
        os.environ["DENSEGEN_DATA"] = str(beside)


@pytest.fixture(autouse=True, scope="session")
def signals():
    "Signals as a shell hands them on: in the background or under nohup some come ignored."
    old = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, old[0])
    signal.signal(signal.SIGHUP, old[1])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    "The book, built once for all tests, also where several processes share them; DENSEGEN_SITE names one that is there."
    if there := os.environ.get("DENSEGEN_SITE"):
        return Path(there)
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, said = shared / "_site", shared / "book.txt"
    with FileLock(shared / "book.lock"):
        if not said.exists():
            command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "book", ROOT / "nbs", folder]
            done = subprocess.run(command, capture_output=True, text=True, timeout=480)
            said.write_text((done.stderr or "no word") if done.returncode else "")
    assert not said.read_text(), said.read_text()
    return folder


@pytest.fixture
def shell(monkeypatch):
    "`densegen score` with these words; lines are wide enough not to be folded."
    from typer.testing import CliRunner

    from densegen.course import cli, console

    monkeypatch.setattr(console.console, "width", 300)
    monkeypatch.setattr(console.errors, "width", 300)
    return lambda *words: CliRunner().invoke(cli.app, ["score", *map(str, words)])


def lines(result, kind="error"):
    "The lines of the error stream that begin with this word."
    return [line for line in result.stderr.splitlines() if line.startswith(kind)]
