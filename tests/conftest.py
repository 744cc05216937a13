"""Shared by all tests: the checkout, and the real image sets where they exist."""
import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_configure():
    beside = ROOT.parent / "shared" / "data"
    if "DENSEGEN_DATA" not in os.environ and beside.is_dir():
        os.environ["DENSEGEN_DATA"] = str(beside)


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
