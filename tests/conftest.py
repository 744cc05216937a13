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
