"""`fit`: exact resume, named errors, and no result that is silently wrong."""
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from line import Line, line_data, run
from torch import nn
from torch.utils.data import TensorDataset
from zoo import BIJECTIONS, DENSITIES

from densegen.flows.bijections import Bijection
from densegen.flows.coupling import RealNVP
from densegen.flows.dequantization import ImageFlow
from densegen.workbench import run as runs
from densegen.workbench import training
from densegen.workbench.checkpoint import read_checkpoint
from densegen.workbench.training import CheckpointError, Diverged, History, cosine, fit

class Slope(nn.Module):
    "The loss is a number times the one weight: its gradient is whatever the data say."

    def __init__(self, *more):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1 + sum(more)))

    def loss(self, batch):
        return (self.w * batch).mean()


def child(work):
    "A process that does this work; its number. A fork is a hundred times quicker than a new Python."
    number = os.fork()
    if number:
        return number
    try:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    except KeyboardInterrupt:  # as Python ends: by the signal itself
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        print(error, file=sys.__stderr__)
    finally:
        os._exit(1)


def ended(number):
    "How a process ended: its exit code, or minus the signal."
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def wait_for(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


# resuming
DATA = {
    "tensors": line_data(),
    "dataset": TensorDataset(*line_data()),
    "sampler": lambda n, g: (lambda x: (x, 2 * x - 1))(torch.rand(n, generator=g)),
}


class Crash(Line):
    "Interrupts its own training at a step."

    stop = math.inf

    def loss(self, batch):
        if self.seen >= self.stop * 32:
            raise KeyboardInterrupt
        return super().loss(batch)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("ema", [None, 0.9])
def test_resume_is_exact(tmp_path, monkeypatch, data, ema):
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    file = tmp_path / "line.ckpt"
    options = {"data": data, "ema": ema, "evaluate": lambda m: m.w.square().sum(), "every": 10, "schedule": cosine(0.1)}
    whole, history = run(60, model=Crash(), **options)
    # cosine depends on the number of steps, so the crash must happen inside a run of 60
    monkeypatch.setattr(Crash, "stop", 35)
    with pytest.raises(KeyboardInterrupt):
        run(60, model=Crash(), checkpoint=file, **options)
    assert torch.load(file, weights_only=True)["step"] == 35
    monkeypatch.setattr(Crash, "stop", math.inf)
    resumed, again = run(60, model=Crash(), checkpoint=file, **options)
    assert resumed.w.equal(whole.w) and resumed.seen.equal(whole.seen)
    assert again.loss == history.loss and again.terms == history.terms and again.evaluated == history.evaluated


class Drawing(nn.Module):
    "A loss that draws from one of the global generators."

    def __init__(self, draw):
        super().__init__()
        self.w, self.draw = nn.Parameter(torch.ones(1)), draw

    def loss(self, batch):
        return (self.w - self.draw()).square().sum() + 0 * batch.sum()


@pytest.mark.parametrize("draw", [np.random.rand, random.random, lambda: torch.rand(())], ids=["numpy", "python", "torch"])
def test_every_generator_goes_on_where_it_was(tmp_path, draw):
    def train(steps, disturb=False, **options):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        if disturb:
            random.random(), np.random.rand(), torch.rand(3)
        model = Drawing(draw)
        fit(model, torch.zeros(8), steps=steps, batch_size=4, seed=0, **options)
        return model.w

    whole = train(20)
    train(8, checkpoint=tmp_path / "a")
    assert train(20, disturb=True, checkpoint=tmp_path / "a").equal(whole)


def test_finished_training_is_not_repeated(tmp_path, monkeypatch):
    first, _ = run(20, model=Crash(), checkpoint=tmp_path / "a")
    monkeypatch.setattr(Crash, "stop", 0)  # not one loss may be asked for
    second, history = run(20, model=Crash(), checkpoint=tmp_path / "a")
    assert second.w.equal(first.w) and len(history.loss) == 20


def test_steps_may_grow_but_not_shrink(tmp_path):
    run(20, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected at most the steps=10 of this call; got a checkpoint of 20"):
        run(10, checkpoint=tmp_path / "a")
    assert len(run(25, checkpoint=tmp_path / "a")[1].loss) == 25


def momentum(p, lr):
    return torch.optim.SGD(p, lr=lr, momentum=0.9)


OTHER = {
    "lr": {"lr": 0.01},
    "schedule": {"schedule": cosine(0.1)},
    "batch_size": {"batch_size": 16},
    "seed": {"seed": 2},
    "data": {"data": (line_data()[0], -line_data()[1])},
    "optimizer": {"optimizer": torch.optim.SGD},
    "clip": {"clip": 1.0},
    "ema": {"ema": None},
    "ema changed": {"ema": 0.99},
    "every": {"evaluate": lambda m: 0.0},
    "precision": {"fabric": "bf16-mixed"},
    "options of the optimizer": {"optimizer": lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.5, 0.9))},
    "groups of parameters": {"optimizer": lambda p, lr: torch.optim.Adam([{"params": [q]} for q in p] + [{"params": []}], lr=lr)},
}


@pytest.mark.parametrize("name", OTHER)
def test_a_checkpoint_made_with_something_else_is_refused(tmp_path, name):
    run(5, checkpoint=tmp_path / "a")
    old, options = (tmp_path / "a").read_bytes(), dict(OTHER[name])
    if "fabric" in options:
        options["fabric"] = Fabric(accelerator="cpu", devices=1, precision=options["fabric"])
    with warnings.catch_warnings(action="ignore"), pytest.raises(CheckpointError, match=f"made with {name.split(' changed')[0]} "):
        run(10, checkpoint=tmp_path / "a", **options)
    assert (tmp_path / "a").read_bytes() == old


def test_an_average_cannot_be_added_afterwards(tmp_path):
    run(5, ema=None, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="made with ema None; this call has 0.9"):
        run(10, checkpoint=tmp_path / "a")


def test_drawn_data_are_told_apart(tmp_path):
    target = lambda mean: lambda n, g: (torch.zeros(n), mean + torch.randn(n, generator=g))
    run(5, data=target(5.0), checkpoint=tmp_path / "a")
    run(6, data=target(5.0), checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="made with data a function"):
        run(10, data=target(-5.0), checkpoint=tmp_path / "a")


def test_checkpoint_of_another_model_is_refused(tmp_path):
    run(5, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected a checkpoint of RealNVP .* got one of Line"):
        fit(RealNVP(2, layers=2, width=4), torch.randn(50, 2), steps=2, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected a checkpoint of Line"):
        fit(Line(width=2), line_data(), steps=2, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected a checkpoint of Line"):
        fit(Line().double(), line_data(), steps=2, checkpoint=tmp_path / "a")


# kills, signals, full disks
PLAIN = {"batch_size": 32, "seed": 1}


def state_of(file):
    return file.stat().st_mtime_ns if file.exists() else 0


def test_killed_processes_lose_and_double_nothing(tmp_path, monkeypatch):
    "A training that is killed at random moments, twenty times, is the uninterrupted one."
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    file, chance = tmp_path / "a", random.Random(0)
    torch.manual_seed(3)  # the first child starts from here
    for _ in range(20):
        before = state_of(file)
        endless = child(lambda: fit(Line(), line_data(), steps=10**6, checkpoint=file, **PLAIN))
        wait_for(lambda: state_of(file) > before)
        time.sleep(0.02 * chance.random())
        os.kill(endless, signal.SIGKILL)
        assert ended(endless) == -signal.SIGKILL
    steps = read_checkpoint(file)["step"] + 1
    model, whole = Line(), Line()
    history = fit(model, line_data(), steps=steps, checkpoint=file, **PLAIN)
    torch.manual_seed(3)
    assert fit(whole, line_data(), steps=steps, **PLAIN).loss == history.loss and len(history.loss) == steps >= 20
    assert model.w.equal(whole.w) and model.seen == whole.seen
    assert list(tmp_path.iterdir()) == [file], "nothing is left behind"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_stop_is_obeyed_after_the_checkpoint(tmp_path, number):
    file, going = tmp_path / "a", tmp_path / "going"
    settings = {"every": 5, "checkpoint": file, **PLAIN}

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        fit(Line(), line_data(), steps=10**6, evaluate=lambda m: going.touch() or 0.0, **settings)

    process = child(work)
    wait_for(going.exists)
    os.kill(process, number)
    assert ended(process) == -number, "killed by signal n, which a shell shows as 128 + n: 130, 143, 129"
    content = read_checkpoint(file)
    assert content["step"] >= 5 and len(content["history"]["loss"]) == content["step"]
    assert sorted(tmp_path.iterdir()) == [file, going]
    again = fit(Line(), line_data(), steps=content["step"] + 2, evaluate=lambda m: 0.0, **settings)
    assert len(again.loss) == content["step"] + 2


def test_signals_act_as_before_without_a_checkpoint_and_afterwards(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    seen = []
    watch = lambda m: seen.append(signal.getsignal(signal.SIGTERM)) or 0.0
    run(2, evaluate=watch, every=1)
    run(2, evaluate=watch, every=1, checkpoint=tmp_path / "a")
    assert seen[0] is handler and seen[-1] is not handler and signal.getsignal(signal.SIGTERM) is handler


def test_killed_inside_a_write_leaves_nothing_after_the_next_run(tmp_path, monkeypatch):
    file = tmp_path / "a"

    def work():
        runs.os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
        run(5, checkpoint=file)

    assert ended(child(work)) == -signal.SIGKILL
    other = tmp_path / "ab.12345678.tmp"  # of a checkpoint called "ab": not ours
    other.write_bytes(b"1")
    assert len([p for p in tmp_path.iterdir() if p.suffix == ".tmp"]) == 2 and not file.exists()
    run(5, checkpoint=file)
    assert sorted(tmp_path.iterdir()) == [file, other]


def test_the_second_run_on_a_checkpoint_is_refused(tmp_path):
    def second(model):
        with pytest.raises(CheckpointError, match=rf"in use by process {os.getpid()}; wait"):
            run(5, checkpoint=tmp_path / "a")
        return 0.0

    run(5, evaluate=second, every=5, checkpoint=tmp_path / "a")
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    file = tmp_path / "a"
    first, _ = run(5, checkpoint=file)
    old = file.read_bytes()

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(CheckpointError, match="could not be written .* untouched"):
            run(10, checkpoint=file)

    assert ended(child(work)) == 0
    assert file.read_bytes() == old and list(tmp_path.iterdir()) == [file]


# divergence
def explode(at, value=torch.nan):
    "A model whose gradient is `value` from a step on, while its loss stays finite."

    class Scaled(Slope):
        count = 0

        def loss(self, batch):
            self.count += 1
            total = super().loss(batch)
            if self.count >= at:
                total.register_hook(lambda g: g * value)
            return total

    return Scaled()


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_bad_gradient_in_the_last_step_is_no_success(tmp_path, clip):
    model = explode(5)
    with pytest.raises(Diverged, match="weight w is not finite at step 5: .* the model is back at step 0"):
        fit(model, torch.ones(8), steps=5, lr=0.1, clip=clip)
    assert model.w.equal(torch.ones(1))
    file = tmp_path / "a"
    fit(explode(9), torch.ones(8), steps=4, lr=0.1, clip=clip, checkpoint=file)
    old, model = file.read_bytes(), explode(3)
    with pytest.raises(Diverged, match=f"the last good state is in {file}"):
        fit(model, torch.ones(8), steps=7, lr=0.1, clip=clip, checkpoint=file)
    assert file.read_bytes() == old and model.w.isfinite().all()


def test_nan_is_never_saved(tmp_path, monkeypatch):
    "Neither in a weight nor in a buffer, although the loss is finite."
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)

    class Sick(Line):
        def loss(self, batch):
            terms = super().loss(batch)
            if self.seen >= 3 * 32:
                self.seen.fill_(torch.nan)
            return terms

    model = Sick()
    with pytest.raises(Diverged, match="buffer seen is not finite at step 3"):
        run(20, model=model, checkpoint=tmp_path / "a")
    content = torch.load(tmp_path / "a", weights_only=True)
    assert content["step"] == 2 and content["model"]["seen"] == 64 and model.seen.isfinite()


def test_a_bad_loss_stops_before_the_update():
    "The weights of the moment of failure are those before it; then they go back to the last good ones."
    seen = []

    class Watched(Slope):
        def loss(self, batch):
            seen.append(self.w.detach().clone())
            return super().loss(batch) * (math.inf if len(seen) == 4 else 1.0)

    model = Watched()
    stepped = []
    sgd = lambda p, lr: torch.optim.SGD(p, lr=lr)
    with pytest.raises(Diverged, match="loss inf at step 4"):
        fit(model, torch.ones(8), steps=10, lr=0.1, optimizer=lambda p, lr: hooked(sgd(p, lr), stepped))
    assert len(stepped) == 3 and model.w.equal(torch.ones(1))


def hooked(optimizer, stepped):
    optimizer.register_step_post_hook(lambda *_: stepped.append(1))
    return optimizer


def test_a_diverged_training_returns_to_its_last_good_weights():
    trace = []
    model = nn.Sequential(Line(), nn.Dropout())
    model.loss = lambda batch: trace.append(model[0].w.detach().clone()) or model[0].loss(batch)["fit"] * (
        math.inf if len(trace) == 251 else 1.0)
    model.train()
    model[1].eval()
    with pytest.raises(Diverged, match="loss inf at step 251: .* the model is back at step 200") as caught:
        fit(model, line_data(), steps=300, lr=0.01)
    assert model[0].w.equal(trace[200]) and not model[0].w.equal(trace[250])
    assert caught.value.step == 251 and caught.value.checkpoint is None
    assert model.training and not model[1].training, "in the mode it came in"


def test_divergence_has_a_name_and_keeps_the_checkpoint(tmp_path):
    with pytest.raises(Diverged) as caught:
        run(100, ema=None, optimizer=lambda p, lr: torch.optim.SGD(p, lr=1e9), lr=1.0)
    assert 0 < caught.value.step <= 100
    sick = lambda done: 1e30 if done == 5 / 6 else 1.0
    run(5, ema=None, schedule=sick, checkpoint=tmp_path / "a")
    old = (tmp_path / "a").read_bytes()
    with pytest.raises(Diverged, match="last good state is in"):
        run(6, ema=None, schedule=sick, limit=0.1, checkpoint=tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == old
    with pytest.raises(Diverged, match="the model is back at step 0") as caught:
        run(100, ema=None, optimizer=lambda p, lr: torch.optim.SGD(p, lr=1e9), checkpoint=tmp_path / "b")
    assert caught.value.checkpoint is None and not (tmp_path / "b").exists()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_numbers_in_the_batch_are_blamed_on_the_data(bad):
    x, y = line_data()
    y[::50] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        run(10, data=(x, y))


# clipping, averaging, schedule
@pytest.mark.parametrize("clip, expected", [(None, 100.0), (0.5, 0.5), (1000.0, 100.0)])
def test_gradients_are_clipped_to_the_norm(clip, expected):
    model = Slope()
    fit(model, torch.full((4,), 100.0), steps=1, lr=1.0, clip=clip, optimizer=torch.optim.SGD)
    assert model.w.item() == pytest.approx(1 - expected, abs=1e-4)


def test_average_is_the_exponential_one():
    trace, sgd = [], torch.optim.SGD
    raw, _ = run(8, ema=None, optimizer=sgd, evaluate=lambda m: trace.append(m.w.clone()) or 0.0, every=1)
    averaged, _ = run(8, ema=0.9, optimizer=sgd)
    expected = trace[0]
    for w in trace[1:]:
        expected = 0.9 * expected + 0.1 * w
    assert torch.allclose(averaged.w, expected, atol=1e-6) and not torch.allclose(averaged.w, raw.w, atol=1e-3)


class Mapped(nn.Module):
    "A bijection or a density of the zoo as something to be trained, with its context if it has one."

    def __init__(self, model, case):
        super().__init__()
        self.model, self.case = model, case

    def loss(self, batch):
        x, context = batch if self.case.context else (batch, None)
        if isinstance(self.model, Bijection):
            z, ladj = self.model(x, context)
            return (0.5 * z.square().flatten(1).sum(1) - ladj).mean() + 0 * sum(p.sum() for p in self.parameters())
        if isinstance(self.model, ImageFlow):
            x = (255 * x.sigmoid()).round().long()
        return self.model.loss(x if context is None else (x, context))


FLOWS = BIJECTIONS | {f"density {name}": case for name, case in DENSITIES.items()}


@pytest.mark.parametrize("decay", [0.9, 0.9995, 0.9999])
@pytest.mark.parametrize("name", FLOWS)
def test_averaged_flows_are_flows(name, decay):
    "After `fit` with an average: integers as they were, the round trip closes, `ladj` is that of the Jacobian."
    case = FLOWS[name]
    model, (x, context) = case.make(), case.inputs(16)
    if not any(p.requires_grad for p in model.parameters()):
        pytest.skip("nothing to train")
    before = {n: b.clone() for n, b in model.named_buffers() if not b.is_floating_point()}
    fit(Mapped(model, case), x if context is None else (x, context), steps=3, batch_size=8, lr=1e-3, ema=decay, seed=1)
    assert all(b.equal(before[n]) for n, b in model.named_buffers() if n in before)
    bijection = model if isinstance(model, Bijection) else getattr(model, "bijection", None)
    if bijection is None:
        return
    bijection.double()
    x, context = x[:1].double(), None if context is None else context[:1].double()
    z, ladj = bijection(x, context)
    back, back_ladj = bijection.inverse(z, context)
    assert torch.allclose(back, x, atol=1e-5) and torch.allclose(ladj, -back_ladj, atol=1e-5)
    jacobian = torch.autograd.functional.jacobian(lambda row: bijection(row, context)[0].flatten(), x)
    assert torch.allclose(torch.linalg.slogdet(jacobian.view(x.numel(), x.numel())).logabsdet, ladj[0], atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_average_copies_what_has_no_average(dtype):
    "A counter of the last state, not of a mixture of states."
    model = Line()
    model.register_buffer("last", torch.zeros((), dtype=dtype))
    count = iter(range(1, 100))
    fit(model, lambda n, g: (model.last.fill_(next(count) % 2), line_data(n))[1], steps=7, ema=0.9, seed=1)
    assert model.last == 1 and model.last.dtype == dtype


def test_cosine_rises_and_falls_to_zero():
    rate = cosine(0.1)
    assert [round(rate(s), 6) for s in (0.0, 0.05, 0.1, 0.55, 1.0)] == [0.0, 0.5, 1.0, 0.5, 0.0]
    assert cosine()(0.0) == 1.0 and cosine()(0.25) == pytest.approx(0.5 + math.sqrt(0.125))


@pytest.mark.parametrize("warmup", [500, 1.0, -0.1, math.nan])
def test_the_warmup_is_a_fraction(warmup):
    with pytest.raises(ValueError, match="warmup: expected a fraction of the run, .* got"):
        cosine(warmup=warmup)


def test_the_schedule_multiplies_the_rate():
    model = Slope()
    fit(model, torch.ones(4), steps=4, lr=0.5, optimizer=torch.optim.SGD, schedule=lambda done: done)
    assert model.w.item() == pytest.approx(1 - 0.5 * (0 + 0.25 + 0.5 + 0.75))


# evaluation
def test_terms_and_best_weights():
    values = iter([3.0, 1.0, 2.0, 5.0, 4.0])
    model, history = run(50, evaluate=lambda m: next(values), every=10, keep="best", patience=2)
    assert history.best == (20, 1.0) and len(history.loss) == 40
    assert set(history.terms) == {"fit", "decay"}
    assert history.loss[7] == pytest.approx(history.terms["fit"][7] + history.terms["decay"][7])
    until_best, _ = run(20)
    assert model.w.equal(until_best.w)


def test_nan_is_never_best():
    values = iter([math.nan, 3.0, 2.0, math.nan, 1.0])
    model, history = run(50, evaluate=lambda m: next(values), every=10, keep="best", patience=2)
    assert history.best == (50, 1.0) and len(history.loss) == 50
    assert model.w.equal(run(50)[0].w)
    with pytest.raises(ValueError, match="expected a finite evaluation"):
        run(20, evaluate=lambda m: math.nan, every=10, keep="best")
    with pytest.raises(ValueError, match="got 1 that gave NaN"):
        History(evaluated=[(1, math.nan)]).best


@pytest.mark.parametrize("draw", [lambda: torch.rand(()), lambda: float(np.random.rand()), random.random])
def test_evaluation_does_not_change_the_training(draw):
    def train(**options):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        model = Drawing(lambda: np.random.rand() + random.random() + torch.rand(()))
        fit(model, torch.zeros(8), steps=30, seed=0, **options)
        return model.w

    assert train(evaluate=lambda m: draw(), every=3).equal(train())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_evaluation_is_in_evaluation_mode_and_training_in_training_mode(ema):
    modes, model = {"train": [], "eval": []}, Line()
    plain = model.loss
    model.loss = lambda batch: modes["train"].append(model.training) or plain(batch)
    fit(model, line_data(), steps=6, ema=ema, every=2,
        evaluate=lambda m: modes["eval"].append((m.training, torch.is_grad_enabled())) or 0.0)
    assert modes == {"train": [True] * 6, "eval": [(False, False)] * 3}
    assert not model.training, "a model that is handed out is in evaluation mode"


def test_history_without_evaluation_says_so():
    with pytest.raises(ValueError, match="evaluate="):
        History().best


# arguments
@pytest.mark.parametrize("name, value", [
    ("steps", -1), ("steps", 2.5), ("steps", True), ("batch_size", 0), ("batch_size", -1), ("batch_size", 2.5),
    ("lr", 0.0), ("lr", -0.1), ("lr", math.nan), ("lr", math.inf), ("clip", -1.0), ("clip", 0.0), ("clip", math.nan),
    ("ema", 0.0), ("ema", 1.0), ("ema", -0.5), ("ema", 999), ("every", 0), ("every", 2.5), ("patience", 0),
    ("patience", 3), ("keep", "worst"), ("keep", "best"), ("seed", 0.5), ("limit", math.nan), ("limit", -1.0),
    ("evaluate", 3.0), ("schedule", lambda done: -1.0), ("schedule", lambda done: math.nan),
])
def test_arguments_that_cannot_be_meant(name, value):
    options = {"steps": 5, "evaluate": None} | {name: value}
    if name == "patience" and value == 0:
        options["evaluate"] = lambda m: 0.0
    model = Line()
    with pytest.raises(ValueError, match=rf"^{name}: expected .*; got "):
        run(options.pop("steps"), model=model, **options)
    assert not model.w.any()


class WithLoss(nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.w, self.given = nn.Parameter(torch.ones(2)), loss

    def loss(self, batch):
        return self.given(self.w)


@pytest.mark.parametrize("loss, message", {
    "vector": (lambda w: w, "expected a scalar tensor"),
    "one entry": (lambda w: w[:1], "expected a scalar tensor"),
    "number": (lambda w: 1.0, "expected a scalar tensor"),
    "nothing": (lambda w: None, "expected a scalar tensor"),
    "empty": (lambda w: {}, "expected named terms"),
    "hidden total": (lambda w: {"loss": w.sum(), "more": w.sum()}, "none called 'loss'"),
    "vector term": (lambda w: {"a": w.sum(), "b": w}, "expected a scalar tensor"),
    "no gradient": (lambda w: w.sum().detach(), "without a gradient"),
    "constant": (lambda w: torch.ones(()), "without a gradient"),
}.values())
def test_losses_that_teach_nothing(loss, message):
    with pytest.raises(ValueError, match=f"^loss: .*{message}"):
        fit(WithLoss(loss), torch.zeros(4), steps=3)


def test_terms_that_change_are_named():
    count = iter(range(10))
    with pytest.raises(ValueError, match="expected the same terms at every step"):
        fit(WithLoss(lambda w: {f"{next(count)}": w.sum()}), torch.zeros(4), steps=3)


def test_models_that_cannot_be_trained():
    with pytest.raises(ValueError, match=r"model: expected a method loss\(batch\); got 'Linear'"):
        fit(nn.Linear(1, 1), torch.zeros(4, 1), steps=1)
    with pytest.raises(ValueError, match="model: expected a torch.nn.Module; got 'function'"):
        fit(lambda x: x, torch.zeros(4, 1), steps=1)
    for model in (Line(), Line().requires_grad_(False)):
        if model.w.requires_grad:
            del model.w
        with pytest.raises(ValueError, match="model: expected a parameter that is to be trained"):
            fit(model, line_data(), steps=1)


def test_an_evaluation_is_one_number():
    with pytest.raises(ValueError, match="evaluate: expected one number"):
        run(2, evaluate=lambda m: torch.ones(3), every=1)


# hardware
def one(precision):
    return Fabric(accelerator="cpu", devices=1, precision=precision)


class Wide(nn.Module):
    "A layer that remembers the number type it computed in."

    def __init__(self):
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 1), set()

    def loss(self, batch):
        out = self.layer(batch)
        self.seen.add(out.dtype)
        return (out.float() if out.dtype == torch.float16 else out).square().mean()


KINDS = {"32-true": (torch.float32, torch.float32), "bf16-mixed": (torch.float32, torch.bfloat16),
         "64-true": (torch.float64, torch.float64), "bf16-true": (torch.bfloat16, torch.bfloat16),
         "16-true": (torch.float16, torch.float16)}


@pytest.mark.parametrize("precision", KINDS)
def test_number_formats_are_used(precision):
    weights, inside = KINDS[precision]
    model = Wide()
    history = fit(model, torch.randn(64, 4), steps=20, batch_size=16, lr=0.03, seed=0, fabric=one(precision))
    assert model.seen == {inside} and model.layer.weight.dtype == weights
    assert history.loss[-1] < history.loss[0] and model.layer.weight.isfinite().all()


def test_averages_follow_the_number_format():
    model = Wide()
    fit(model, torch.randn(64, 4), steps=20, batch_size=16, ema=0.9, seed=0, fabric=one("64-true"))
    assert model.layer.weight.dtype == torch.float64
    with pytest.raises(ValueError, match="ema: expected weights of 32 bits, .* got torch.bfloat16"):
        fit(Wide(), torch.randn(64, 4), steps=2, ema=0.9, fabric=one("bf16-true"))


def test_resume_in_another_number_format_is_exact(tmp_path):
    def train(steps, **options):
        torch.manual_seed(1)
        model = Wide()
        fit(model, torch.randn(64, 4), steps=steps, batch_size=16, seed=0, fabric=one("bf16-mixed"), **options)
        return model.layer.weight

    whole = train(12)
    train(5, checkpoint=tmp_path / "a")
    assert train(12, checkpoint=tmp_path / "a").equal(whole)


def test_the_variables_of_a_cluster_do_not_stop_one_device(monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    with pytest.raises(RuntimeError, match="ntasks"):
        Fabric(accelerator="cpu", devices=1)
    assert run(3, ema=None)[0].w.any()


def test_progress_file_for_the_runner(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_current", runs.Run(runs.Scale.cpu, 0, torch.device("cpu"), tmp_path))
    slow = lambda n, g: (time.sleep(0.1), line_data(n))[1]
    run(12, data=slow, label="a line")
    news = json.loads((tmp_path / "progress.json").read_text())
    assert news["label"] == "a line" and 0 < news["step"] <= news["steps"] == 12 and news["left"] >= 0


def test_two_processes_train_one_model(tmp_path):
    script = f"""
        import sys, torch
        from lightning_fabric import Fabric
        from densegen.flows.coupling import RealNVP
        from densegen.workbench.training import fit
        if __name__ == "__main__":
            fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
            fabric.launch()
            for steps in (8, 20):
                torch.manual_seed(0)
                flow = RealNVP(2, layers=2, width=8)
                data = 2 + torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
                options = dict(batch_size=16, seed=5, fabric=fabric, lr=0.01, checkpoint=r"{tmp_path}/flow.ckpt")
                history = fit(flow, data, steps=steps, **options)
            torch.save(list(flow.state_dict().values()), r"{tmp_path}/" + str(fabric.global_rank))
    """
    (tmp_path / "two.py").write_text(textwrap.dedent(script))
    subprocess.run([sys.executable, str(tmp_path / "two.py")], check=True, capture_output=True, timeout=180)
    a, b = torch.load(tmp_path / "0"), torch.load(tmp_path / "1")
    assert all(p.equal(q) for p, q in zip(a, b))
    # the same batches in one process: 16 items of each of two processes are 32 items
    torch.manual_seed(0)
    flow = RealNVP(2, layers=2, width=8)
    data = 2 + torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    fit(flow, data, steps=20, batch_size=32, seed=5, lr=0.01)
    assert all(torch.allclose(p, q, atol=1e-4) for p, q in zip(a, flow.state_dict().values()))


# accelerators, where the loss is read only now and then
@pytest.fixture
def rarely(monkeypatch):
    monkeypatch.setattr(training, "_READ_EVERY", {"cpu": 20})


def test_reading_the_loss_rarely_changes_nothing(rarely, monkeypatch, tmp_path):
    options = {"evaluate": lambda m: m.w.sum(), "every": 7, "checkpoint": tmp_path / "a"}
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    model, history = run(75, **options)
    monkeypatch.setattr(training, "_READ_EVERY", {"cpu": 1})
    plain, expected = run(75, **options | {"checkpoint": None})
    assert model.w.equal(plain.w) and history.loss == expected.loss and history.evaluated == expected.evaluated


def test_early_stopping_leaves_no_loss_behind(rarely):
    values = iter([1.0, 2.0, 3.0])
    assert len(run(75, evaluate=lambda m: next(values), every=5, patience=2)[1].loss) == 15


def test_the_step_of_a_divergence_is_found_afterwards(rarely):
    trace = []
    model = WithLoss(lambda w: trace.append(w.detach().clone()) or w.square().sum() * (math.inf if len(trace) == 104 else 1))
    with pytest.raises(Diverged, match="loss inf at step 104: .* back at step 100"):
        fit(model, torch.zeros(4), steps=200, lr=0.1, clip=1.0)
    assert model.w.equal(trace[100])
    data = lambda n, g: torch.full((n,), torch.nan if draws.append(1) or len(draws) in (7, 21) else 1.0)
    draws = []
    with pytest.raises(ValueError, match="batch of step 7: expected finite numbers"):
        fit(Slope(), data, steps=200, lr=0.1)
