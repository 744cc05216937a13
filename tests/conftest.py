"""Shared by all tests: the checkout, and the real image sets where they exist."""
import os
import signal
from pathlib import Path

import pytest
import torch

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
