"""Checkpoints: sealed, of one form, of one making, owned by one process."""
import math
import os
import random
import signal
import threading

import pytest
import torch
from filelock import FileLock
from line import Line, run
from torch import nn

from densegen.workbench.batches import Batches
from densegen.workbench.checkpoint import (
    CheckpointError,
    StopSignals,
    owned,
    read_checkpoint,
    same_form,
    same_making,
    write_checkpoint,
)
from densegen.workbench.state import State, averaged, broken, making


@pytest.fixture
def file(tmp_path):
    "A checkpoint of a short training."
    run(5, evaluate=lambda m: 1.0, every=2, checkpoint=tmp_path / "a")
    return tmp_path / "a"


def go_on(file, steps=10):
    return run(steps, evaluate=lambda m: 1.0, every=2, checkpoint=file)


def test_torch_still_opens_it(file):
    assert torch.load(file, weights_only=True)["step"] == read_checkpoint(file)["step"] == 5


def test_no_flipped_bit_is_taken_for_whole(file):
    data, chance = file.read_bytes(), random.Random(0)
    places = [chance.randrange(8 * len(data)) for _ in range(300)] + [8 * (len(data) - k) - 1 for k in range(1, 100)]
    for place in places:
        changed = bytearray(data)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(file)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", 0.5, 700, -1], ids=["empty", "text", "half", "700", "last"])
def test_damaged_checkpoint_is_named(file, damage):
    data = file.read_bytes()
    cut = int(len(data) * damage) if isinstance(damage, float) else damage
    file.write_bytes(damage if isinstance(damage, bytes) else data[:cut])
    with pytest.raises(CheckpointError, match="not a readable checkpoint .* delete it"):
        go_on(file)


def test_what_is_no_file_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "pipe"):
        with pytest.raises(CheckpointError, match="not a regular file"):
            run(2, checkpoint=tmp_path / name)
    with pytest.raises(CheckpointError):
        read_checkpoint(tmp_path / "absent")


def test_a_newer_format_is_refused(file):
    data = file.read_bytes()
    file.write_bytes(data.replace(b"densegen checkpoint 1 ", b"densegen checkpoint 2 "))
    with pytest.raises(CheckpointError, match="expected format 1; got 2, of a newer densegen; update"):
        go_on(file)


def test_a_pickle_with_a_right_checksum_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    write_checkpoint(tmp_path / "a", {"model": Evil()})
    with pytest.raises(CheckpointError, match="not a readable checkpoint") as caught:
        run(2, checkpoint=tmp_path / "a")
    assert not (tmp_path / "owned").exists() and "\n" not in str(caught.value)


def delete(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


KEYS = "average best fingerprint history made model optimizer precision rng stale step".split()
CHANGES = {f"no {key}": delete(key) for key in KEYS}
CHANGES |= {f"{key} is text": put("x", key) for key in KEYS}
CHANGES |= {f"{key} is nothing": put(None, key) for key in KEYS if key != "best"}
CHANGES |= {
    "foreign key": put(1, "more"),
    "no weight": delete("model", "w"),
    "foreign weight": put(torch.zeros(1), "model", "v"),
    "other size": put(torch.zeros(3, 2), "model", "w"),
    "other type": put(torch.zeros(1, 2, dtype=torch.float64), "model", "w"),
    "weight is a number": put(1.0, "model", "w"),
    "other size of the best": put({"w": torch.zeros(3, 2), "seen": torch.zeros(())}, "best"),
    "no averaged weight": delete("average", "module.w"),
    "step below zero": put(-1, "step"),
    "step is true": put(True, "step"),
    "step is a fraction": put(5.5, "step"),
    "other step": put(4, "step"),
    "no losses": delete("history", "loss"),
    "short losses": put([0.0], "history", "loss"),
    "text among losses": put([0.0, "x", 0.0, 0.0, 0.0], "history", "loss"),
    "short terms": put([0.0], "history", "terms", "fit"),
    "odd evaluation": put([(1, 2.0, 3.0)], "history", "evaluated"),
    "foreign history": put(1, "history", "more"),
    "no state of the optimizer": delete("optimizer", "state"),
    "no averages of the optimizer": delete("optimizer", "state", 0, "exp_avg"),
    "foreign state": put(torch.zeros(()), "optimizer", "state", 0, "more"),
    "other size in the optimizer": put(torch.zeros(3, 2), "optimizer", "state", 0, "exp_avg"),
    "text in the optimizer": put("x", "optimizer", "state", 0, "exp_avg"),
    "state of no parameter": put({}, "optimizer", "state", 7),
    "negative parameter": put({}, "optimizer", "state", -1),
    "no groups": put([], "optimizer", "param_groups"),
    "rate is text": put("x", "optimizer", "param_groups", 0, "lr"),
    "no generator": delete("rng", "numpy"),
    "short generator": put(torch.zeros(3, dtype=torch.uint8), "rng", "torch"),
    "text for a generator": put("x", "rng", "python"),
    "nothing about the making": put({}, "made"),
    "no seed in the making": delete("made", "seed"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_file_of_another_form_is_refused_untouched(file, name):
    "Right checksum, wrong content: one error of one kind, and neither model nor generators have changed."
    content = read_checkpoint(file)
    CHANGES[name](content)
    write_checkpoint(file, content)
    model = Line()
    nn.init.ones_(model.w)
    with pytest.raises(CheckpointError) as caught:
        run(10, model=model, evaluate=lambda m: 1.0, every=2, checkpoint=file)
    assert "\n" not in str(caught.value) and model.w.equal(torch.ones(1, 2)) and model.seen == 0
    assert not file.with_name("a.lock").exists()


def test_forms_are_compared_in_depth():
    like = {"a": [torch.zeros(2), (1, 2.0)], "b": None}
    same_form({"a": [torch.ones(2), (3, 4)], "b": None}, like)
    for found, where in [({"a": [torch.zeros(2), (1, 2.0)]}, "keys"), ({"a": [torch.zeros(2)], "b": None}, "a: expected 2"),
                         ({"a": [torch.zeros(2), (1, "x")], "b": None}, r"a\[1\]\[1\]: expected number; got str"),
                         ({"a": [torch.zeros(2), (True, 2.0)], "b": None}, r"a\[1\]\[0\]: expected number; got bool")]:
        with pytest.raises(ValueError, match=where):
            same_form(found, like)


def test_the_first_difference_is_named():
    same_making("f", {"a": 1, "b": [2.0]}, {"a": 1, "b": [2.0]})
    for made, now in [({"a": 1}, {"a": 2}), ({}, {"a": 2}), ({"a": 1}, {})]:
        with pytest.raises(CheckpointError, match="^f: made with a .*; this call has .*; go on with the same"):
            same_making("f", made, now)
    with pytest.raises(CheckpointError) as caught:
        same_making("f", {"a": list(range(1000))}, {"a": 1})
    assert len(str(caught.value)) < 300


# the owner
def test_a_file_has_one_owner(tmp_path):
    with owned(tmp_path / "a"), owned(tmp_path / "b"):
        with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
            with owned(tmp_path / "a"):
                pass
        assert (tmp_path / "a.lock").read_text() == f"{os.getpid()}\n"
    assert not list(tmp_path.iterdir())


def test_a_stale_lock_is_taken_over(tmp_path):
    (tmp_path / "a.lock").write_text("1\n")  # the number of a process that lives, but does not hold the lock
    with owned(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_without_a_number_is_still_a_lock(tmp_path):
    with FileLock(tmp_path / "a.lock"), pytest.raises(CheckpointError, match="in use by process unknown"):
        with owned(tmp_path / "a"):
            pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    with pytest.raises(CheckpointError, match="could not be written"):
        run(2, checkpoint=tmp_path / "file" / "a")


# signals
def test_a_signal_waits_and_is_delivered(monkeypatch):
    heard = []
    monkeypatch.setattr(signal, "raise_signal", heard.append)
    with pytest.raises(SystemExit) as caught, StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.caught == signal.SIGTERM and not heard
    assert heard == [signal.SIGTERM] and caught.value.code == 143


def test_a_second_signal_does_not_wait():
    with pytest.raises(KeyboardInterrupt), StopSignals():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            signal.sigtimedwait([], 1)


def test_ignored_signals_stay_ignored():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.caught is None
    finally:
        signal.signal(signal.SIGHUP, old)


def test_threads_leave_signals_alone():
    def work():
        with StopSignals() as stop:
            seen.append(stop.handlers)

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [{}]


# the state
OPTIMIZERS = {
    "adam": torch.optim.Adam, "sgd": torch.optim.SGD, "adamw": torch.optim.AdamW, "adagrad": torch.optim.Adagrad,
    "adafactor": torch.optim.Adafactor, "amsgrad": lambda p, lr: torch.optim.Adam(p, lr=lr, amsgrad=True),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "rmsprop": lambda p, lr: torch.optim.RMSprop(p, lr=lr, momentum=0.5, centered=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_every_optimizer_comes_back(tmp_path, optimizer):
    whole, _ = run(8, optimizer=optimizer)
    run(4, optimizer=optimizer, checkpoint=tmp_path / "a")
    assert run(8, optimizer=optimizer, checkpoint=tmp_path / "a")[0].w.equal(whole.w)


def test_what_is_broken_has_a_name():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model.register_buffer("mask", torch.full((2,), -math.inf))
    assert broken(model) == "", "a mask may be infinite"
    model[1].running_mean[0] = torch.nan
    assert broken(model) == "buffer 1.running_mean"
    with torch.no_grad():
        model[0].bias[1] = torch.inf
    assert broken(model) == "weight 0.bias"


def test_states_need_no_fabric(tmp_path):
    def make():
        model = Line()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        return State(model, optimizer, averaged(model, 0.9)), making(optimizer, Batches(torch.zeros(8), 4), None)

    state, made = make()
    nn.init.ones_(state.model.w)
    state.save(tmp_path / "a", made)
    other, _ = make()
    other.load(tmp_path / "a", made, steps=3)
    assert other.model.w.equal(state.model.w) and other.step == 0
