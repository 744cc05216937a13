"A cache that hands out what is true: keyed by everything that decides, computed by one process, whole or made again."

import multiprocessing
import os
import signal
import time

import pytest
import torch

from densegen.workbench import artifacts
from densegen.workbench.artifacts import artifact
from densegen.workbench.batches import random_states


def counted(folder, *values, wait=0.0, **settings):
    "Leaves one file for each time that it computes."
    (folder_of[0] / f"call{time.monotonic_ns()}").touch()
    time.sleep(wait)
    return {"drawn": torch.rand(3), "values": [v for v in values if not isinstance(v, torch.Tensor)]}


folder_of = [None]
counted.__module__ = "densegen.tests"  # as if it were the package's


@pytest.fixture
def calls(tmp_path):
    folder_of[0] = tmp_path / "calls"
    folder_of[0].mkdir()
    return lambda: len(list(folder_of[0].iterdir()))


def test_computed_once_and_equal(tmp_path, calls):
    first = artifact(counted, "a", 1, 2.5, folder=tmp_path / "cache")
    second = artifact(counted, "a", 1, 2.5, folder=tmp_path / "cache")
    assert calls() == 1 and torch.equal(first["drawn"], second["drawn"]) and first["values"] == second["values"]


def test_every_difference_computes(tmp_path, calls, monkeypatch):
    x = torch.zeros(2, 3)
    given = [
        ((1,), {}), (("1",), {}), ((True,), {}), ((1.0,), {}), (((1,),), {}), ((1, None), {}), ((), {"lr": 1}), ((), {"steps": 1}),
        ((x,), {}), ((x.reshape(3, 2),), {}), ((x.double(),), {}), ((x + 1e-7,), {}), ((1,), {"seed": 1}),
    ]  # fmt: skip
    for arguments, settings in given:
        artifact(counted, "a", *arguments, folder=tmp_path / "cache", **settings)
    assert calls() == len(given)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        artifact(counted, "a", 1, folder=tmp_path / "cache")
    finally:
        torch.set_num_threads(threads)
    assert calls() == len(given) + 1
    monkeypatch.setattr(artifacts, "_sources", lambda: "another package")
    artifact(counted, "a", 1, folder=tmp_path / "cache")
    assert calls() == len(given) + 2


def test_sources_are_all_files_by_content(tmp_path, monkeypatch):
    hashes = []
    monkeypatch.setattr(artifacts.densegen, "__file__", str(tmp_path / "__init__.py"))
    for name, content in [("a.py", "x = 1"), ("a.py", "x = 2"), ("sub/b.py", ""), ("sub/a.py", "x = 2")]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
        hashes.append(artifacts._sources.__wrapped__())
    assert len(set(hashes)) == 4


def test_the_generators_of_the_caller_stay(tmp_path, calls):
    states = random_states()
    for _ in range(2):
        artifact(counted, "a", folder=tmp_path, seed=5)
        now = random_states()
        assert torch.equal(now["torch"], states["torch"]) and now["python"] == states["python"]
        assert torch.equal(now["numpy"][1], states["numpy"][1])


def test_damaged_files_are_made_again(tmp_path, calls, capsys):
    first = artifact(counted, "a", folder=tmp_path / "cache")
    path = next(p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock")
    for data in (b"", path.read_bytes()[:-9], path.read_bytes().replace(b"drawn", b"drawm")):
        path.write_bytes(data)
        assert torch.equal(artifact(counted, "a", folder=tmp_path / "cache")["drawn"], first["drawn"])
    assert calls() == 4 and capsys.readouterr().out.count("computed anew") == 3


def test_what_cannot_be_a_key(tmp_path, calls):
    for value in (torch.nn.Linear(1, 1), print, object(), {1, 2}, {"a": [print]}):
        with pytest.raises(TypeError, match=r"arguments.*expected .*; got .*; name what decides it"):
            artifact(counted, "a", value, folder=tmp_path)
    for make in (lambda: {}, test_what_cannot_be_a_key):
        with pytest.raises(ValueError, match="expected a function of the package"):
            artifact(make, folder=tmp_path)
    assert calls() == 0


def test_a_failure_leaves_nothing(tmp_path, calls):
    def broken():
        raise OSError("no room")

    broken.__module__, broken.__qualname__ = "densegen.tests", "broken"
    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            artifact(broken, folder=tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".lock"]


def _ask(cache, wait, calls):
    folder_of[0] = calls
    artifact(counted, "a", folder=cache, wait=wait)


def test_two_processes_compute_once(tmp_path, calls):
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_ask, args=(tmp_path / "cache", 0.6, folder_of[0])) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [p.exitcode for p in both] == [0, 0] and calls() == 1


def test_killed_while_it_computes(tmp_path, calls):
    fork = multiprocessing.get_context("fork")
    first = fork.Process(target=_ask, args=(tmp_path / "cache", 60.0, folder_of[0]))
    first.start()
    while calls() == 0:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    second = fork.Process(target=_ask, args=(tmp_path / "cache", 60.0, folder_of[0]))
    second.start()
    while calls() == 1 and second.is_alive():
        time.sleep(0.01)
    second.kill()
    second.join()
    assert calls() == 2


def test_old_files_go(tmp_path, calls):
    cache = tmp_path / "cache"
    artifact(counted, "a", folder=cache)
    old = next(p for p in cache.iterdir() if p.suffix != ".lock")
    half = cache / f"{old.name}.0123abcd.tmp"
    half.touch()
    foreign = cache / "notes.txt"
    foreign.touch()
    for path, days in [(old, 15), (half, 1)]:
        os.utime(path, (time.time() - days * 86400,) * 2)
    artifact(counted, "b", folder=cache)
    assert not old.exists() and not half.exists() and foreign.exists()
