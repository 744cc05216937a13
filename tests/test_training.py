"""`fit`: exact resume, named errors, and files that survive a crash or a full disk."""
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import TensorDataset

from densegen.flows.coupling import RealNVP
from densegen.workbench import training
from densegen.workbench.training import Batches, CheckpointError, Diverged, History, cosine, fit


class Line(nn.Module):
    "A straight line with dropout, so that random numbers matter, and a buffer, so that buffers do."

    def __init__(self, width=1):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(width, 2))
        self.register_buffer("seen", torch.zeros(()))

    def loss(self, batch):
        x, y = batch
        self.seen += len(x)
        x = nn.functional.dropout(x, 0.3, self.training)
        return {"fit": (self.w[0, 0] * x + self.w[0, 1] - y).square().mean(), "decay": 1e-3 * self.w.square().sum()}


def line_data(n=200):
    x = torch.linspace(-1, 1, n)
    return x, 2 * x - 1


def run(steps, **options):
    torch.manual_seed(3)
    model = Line()
    options = {"batch_size": 32, "lr": 0.05, "ema": 0.9, "seed": 1} | options
    history = fit(model, options.pop("data", line_data()), steps=steps, **options)
    return model, history


DATA = {
    "tensors": line_data(),
    "dataset": TensorDataset(*line_data()),
    "sampler": lambda n, g: (lambda x: (x, 2 * x - 1))(torch.rand(n, generator=g)),
}


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
@pytest.mark.parametrize("ema", [None, 0.9])
def test_resume_is_exact(tmp_path, monkeypatch, data, ema):
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    file = tmp_path / "line.ckpt"
    options = {"data": data, "ema": ema, "evaluate": lambda m: m.w.square().sum(), "every": 10, "schedule": cosine(0.1)}
    whole, history = run(60, **options)
    # cosine depends on the number of steps, so the crash must happen inside a run of 60
    crash = CrashAt(data, 35)
    with pytest.raises(KeyboardInterrupt):
        run(60, **options | {"data": crash, "checkpoint": file})
    assert crash.step == torch.load(file, weights_only=True)["step"] == 35
    resumed, again = run(60, **options | {"checkpoint": file})
    assert resumed.w.equal(whole.w) and resumed.seen.equal(whole.seen)
    assert again.loss == history.loss and again.terms == history.terms and again.evaluated == history.evaluated


class CrashAt:
    "Data that interrupt the training at a step; wraps any of the three kinds."

    def __init__(self, data, step):
        self.batches, self.stop, self.step = Batches(data, 32, seed=1), step, 0

    def __call__(self, n, generator):
        if self.step == self.stop:
            raise KeyboardInterrupt
        self.step += 1
        return self.batches(self.step - 1)


def test_finished_training_is_not_repeated(tmp_path):
    first, _ = run(20, checkpoint=tmp_path / "a")
    began = time.perf_counter()
    second, history = run(20, checkpoint=tmp_path / "a")
    assert second.w.equal(first.w) and len(history.loss) == 20 and time.perf_counter() - began < 5


def test_killed_process_leaves_a_readable_checkpoint(tmp_path):
    script = f"""
        import densegen.workbench.training as t
        from test_training import Line, line_data
        t.SAVE_EVERY = 0.0
        t.fit(Line(), line_data(), steps=10**6, batch_size=32, seed=1, checkpoint=r"{tmp_path / 'a'}")
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], cwd=os.path.dirname(__file__))
    deadline = time.monotonic() + 60
    while not (tmp_path / "a").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _, history = run(10, ema=None, checkpoint=tmp_path / "a")
    assert len(history.loss) >= 10


def test_full_disk_keeps_the_old_checkpoint(tmp_path):
    file = tmp_path / "a"
    first, _ = run(5, checkpoint=file)
    old = file.read_bytes()

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    script = f"""
        from test_training import run
        from densegen.workbench.training import CheckpointError
        try:
            run(10, checkpoint=r"{file}")
        except CheckpointError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=os.path.dirname(__file__), preexec_fn=limit, capture_output=True, text=True, timeout=120,
    )
    assert "could not be written" in done.stdout and "untouched" in done.stdout, done.stderr
    assert file.read_bytes() == old and list(tmp_path.iterdir()) == [file]


def test_checkpoint_of_another_model_is_refused(tmp_path):
    run(5, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected a checkpoint of RealNVP .* got one of Line"):
        fit(RealNVP(2, layers=2, width=4), torch.randn(50, 2), steps=2, checkpoint=tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected a checkpoint of Line"):
        fit(Line(width=2), line_data(), steps=2, checkpoint=tmp_path / "a")


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None], ids=["empty", "text", "cut"])
def test_damaged_checkpoint_is_named(tmp_path, damage):
    run(5, checkpoint=tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:700] if damage is None else damage)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        run(10, checkpoint=tmp_path / "a")


def test_divergence_has_a_name_and_keeps_the_checkpoint(tmp_path):
    run(5, ema=None, checkpoint=tmp_path / "a")
    old = (tmp_path / "a").read_bytes()
    with pytest.raises(Diverged) as caught:
        run(100, ema=None, optimizer=lambda p, lr: torch.optim.SGD(p, lr=1e9), data=line_data(), lr=1.0)
    assert 0 < caught.value.step <= 100
    with pytest.raises(Diverged, match="last good state"):
        run(100, ema=None, schedule=lambda done: 1e30, checkpoint=tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == old


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_numbers_in_the_batch_are_blamed_on_the_data(bad):
    x, y = line_data()
    y[::50] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        run(10, data=(x, y))


def test_terms_and_best_weights():
    values = iter([3.0, 1.0, 2.0, 5.0, 4.0])
    model, history = run(50, evaluate=lambda m: next(values), every=10, keep="best", patience=2)
    assert history.best == (20, 1.0) and len(history.loss) == 40
    assert set(history.terms) == {"fit", "decay"}
    assert history.loss[7] == pytest.approx(history.terms["fit"][7] + history.terms["decay"][7])
    until_best, _ = run(20)
    assert model.w.equal(until_best.w)


def test_evaluation_does_not_change_the_training():
    plain, _ = run(30)
    watched, _ = run(30, evaluate=lambda m: torch.rand(()), every=3)
    assert watched.w.equal(plain.w)


def test_average_is_the_exponential_one():
    trace, sgd = [], torch.optim.SGD
    raw, _ = run(8, ema=None, optimizer=sgd, evaluate=lambda m: trace.append(m.w.clone()) or 0.0, every=1)
    averaged, _ = run(8, ema=0.5, optimizer=sgd)
    expected = trace[0]
    for w in trace[1:]:
        expected = 0.5 * expected + 0.5 * w
    assert torch.allclose(averaged.w, expected, atol=1e-6)


def test_average_leaves_integer_buffers_alone():
    "The fixed permutations of RealNVP stay permutations."
    flow, x = RealNVP(8, width=8), torch.randn(64, 8)
    orders = {name: b.clone() for name, b in flow.named_buffers() if not b.is_floating_point()}
    fit(flow, x, steps=100, batch_size=16, ema=0.9, seed=1)
    assert orders and all(torch.equal(b, orders[name]) for name, b in flow.named_buffers() if name in orders)
    z, ladj = flow.bijection(x)
    back, back_ladj = flow.bijection.inverse(z)
    assert torch.allclose(back, x, atol=1e-4) and torch.allclose(ladj, -back_ladj, atol=1e-4)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda row: flow.bijection(row[None])[0][0]))(x[:8])
    assert torch.allclose(ladj[:8], torch.linalg.slogdet(jacobian).logabsdet, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_average_copies_what_has_no_average(dtype):
    "A counter of the last state, not of a mixture of states."
    model = Line()
    model.register_buffer("last", torch.zeros((), dtype=dtype))
    count = iter(range(1, 100))
    fit(model, lambda n, g: (model.last.fill_(next(count) % 2), line_data(n))[1], steps=7, ema=0.9, seed=1)
    assert model.last == 1 and model.last.dtype == dtype


@pytest.mark.parametrize("options", [{"keep": "worst"}, {"keep": "best"}])
def test_bad_options(options):
    with pytest.raises(ValueError, match="keep: expected"):
        run(5, **options)


def test_history_without_evaluation_says_so():
    with pytest.raises(ValueError, match="evaluate="):
        History().best


def test_progress_file_for_the_runner(tmp_path, monkeypatch):
    from densegen.workbench import run as runs

    monkeypatch.setattr(runs, "_current", runs.Run(runs.Scale.cpu, 0, torch.device("cpu"), tmp_path))
    slow = lambda n, g: (time.sleep(0.1), line_data(n))[1]
    run(12, data=slow, label="a line")
    news = json.loads((tmp_path / "progress.json").read_text())
    assert news["label"] == "a line" and 0 < news["step"] <= news["steps"] == 12 and news["left"] >= 0


def test_mixed_precision_trains():
    model, history = run(40, fabric=Fabric(accelerator="cpu", devices=1, precision="bf16-mixed"))
    assert model.w.dtype == torch.float32 and history.loss[-1] < history.loss[0]


def test_two_processes_train_one_model(tmp_path):
    script = f"""
        import sys, torch
        from lightning_fabric import Fabric
        from densegen.flows.coupling import RealNVP
        from densegen.workbench.training import fit
        if __name__ == "__main__":
            fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
            fabric.launch()
            torch.manual_seed(0)
            flow = RealNVP(2, layers=2, width=8)
            data = 2 + torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
            history = fit(flow, data, steps=20, batch_size=16, seed=5, fabric=fabric, lr=0.01)
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


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 50), st.integers(1, 3), st.integers(0, 5))
def test_batches_cover_each_epoch_once(n, size, world, seed):
    if n < world:
        return
    parts = [Batches(torch.arange(n), size, seed, rank, world) for rank in range(world)]
    per_epoch = n // (parts[0].size * world)
    for epoch in (0, 3):
        seen = [i for step in range(per_epoch) for part in parts for i in part(epoch * per_epoch + step).tolist()]
        assert len(seen) == len(set(seen)) > n // 2 - 1


def test_batches_need_data():
    with pytest.raises(ValueError, match="at least one item"):
        Batches(torch.zeros(0, 2), 4)
