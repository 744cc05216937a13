"""Nothing that computes forgets where its inputs live: every model and detector on a device that is not the CPU.

This machine may have no GPU; `gpu/pretend.cpp` is one as far as PyTorch can tell, with the CPU's numbers."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).parent / "gpu"
sys.path.insert(0, str(GPU))

from probes import PROBES  # noqa: E402

FIT = '''
import pretend, torch
from torch import nn
from densegen.workbench import run
from densegen.workbench.training import Diverged, fit

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.seen = nn.Parameter(torch.zeros(2)), []
        self.register_buffer("count", torch.zeros(()))
    def loss(self, batch):
        self.seen.append(self.w.device.type)
        return (self.w - batch.mean()).square().sum() / (len(self.seen) < 9)

assert run.start("smoke").device.type == "pretend"
for home in ("cpu", "pretend"):
    for steps in (5, 20):
        line, looked = Line().to(home), []
        look = lambda m: looked.extend([m.w.device.type, m.count.device.type]) or m.w.square().sum()
        try:
            fit(line, torch.ones(64), steps=steps, ema=0.9, evaluate=look, every=2)
        except (Diverged, ZeroDivisionError):
            assert steps == 20
        assert set(looked) == {home}, "data of an evaluation lie where the model was found"
        assert set(line.seen) == {"pretend"} and {line.w.device.type, line.count.device.type} == {home}, (home, steps)
'''

TRAININGS = '''
import pretend, torch
from densegen.families.repair import repair_weights
from densegen.families.seven import family_weights
from densegen.workbench import run

run.start("smoke")
v, y = torch.randint(0, 256, (40, 1, 28, 28)), torch.arange(40) % 10
for way in ("denoising", "chains"):
    assert {t.device.type for t in repair_weights(way, v, y, 2).values()} == {"cpu"}
assert {t.device.type for t in family_weights("energy", v, 2).values()} == {"cpu"}
'''

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="the pretended device is compiled with g++")


def python(*words) -> str:
    "What another process prints: the pretended device would otherwise be the default of all later tests."
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(GPU), str(GPU.parents[1])]), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module", autouse=True)
def library():
    "Compiled first: a compiler or headers that are too old for PyTorch's are no fault of the course."
    try:
        python("-c", "import pretend; pretend.built()")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the pretended device cannot be compiled here: {error.stderr[-300:]}")


@pytest.fixture(scope="module")
def errors():
    return {row["probe"]: row["error"] for row in map(json.loads, python(str(GPU / "probes.py"), "pretend").splitlines())}


@pytest.mark.parametrize("name", PROBES)
def test_everything_stays_on_the_device_of_its_inputs(errors, name):
    assert errors[name] == ""


def test_the_device_refuses_what_cuda_refuses():
    script = '''
import pretend, torch
x, other = torch.ones(3, device="pretend"), torch.ones(3)
wrong = [lambda: x + other, lambda: torch.cat([x, other]), lambda: other[x.long()], lambda: x.numpy(),
         lambda: torch.randn(3, device="pretend", generator=torch.Generator()), lambda: x.outer(other)]
for k, f in enumerate(wrong):
    try:
        f()
    except (RuntimeError, TypeError) as error:
        print(k)
assert (x + torch.tensor(1.0)).device.type == x[torch.tensor([0])].device.type == "pretend"
'''
    assert python("-c", script).split() == list("012345")


def test_fit_puts_a_model_back_where_it_was():
    "A lecture's next cell asks it about images on the CPU."
    python("-c", FIT)


def test_a_training_takes_to_the_device_whatever_its_loss_needs():
    "Chains of a loss that hides in a function would stay behind."
    python("-c", TRAININGS)
