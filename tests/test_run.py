"""Scales, claims, and files written whole or not at all."""
import json
import os
import re
import stat

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densegen.workbench import run as runs
from densegen.workbench.compare import compare
from densegen.workbench.run import (
    ClaimFailed,
    Scale,
    Table,
    claim,
    load_table,
    pick_device,
    repo_root,
    report,
    save_table,
    saved,
    start,
    write_atomic,
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEGEN_RUN", str(tmp_path))
    return tmp_path


def test_unknown_scale_names_the_known_ones():
    with pytest.raises(ValueError, match="expected one of smoke, cpu, long, gpu; got 'tiny'"):
        start("tiny")


@given(st.sets(st.sampled_from(["smoke", "cpu", "long", "gpu"]), min_size=1), st.sampled_from(list(Scale)))
def test_pick_takes_the_nearest_smaller_scale(named, scale):
    order = [s.value for s in Scale]
    sizes = {name: order.index(name) for name in named}
    below = [i for i in sizes.values() if i <= order.index(scale.value)]
    if below:
        assert scale.pick(**sizes) == max(below)
    else:
        with pytest.raises(ValueError, match="no size for scale"):
            scale.pick(**sizes)


def test_pick_refuses_a_typing_error():
    with pytest.raises(ValueError, match="smok"):
        Scale.cpu.pick(smok=1, cpu=2)


def test_start_seeds_everything():
    import random

    import numpy as np

    draw = lambda: (random.random(), np.random.rand(), torch.rand(()).item())
    start("cpu", seed=5)
    first = draw()
    start("cpu", seed=5)
    assert draw() == first
    start("cpu", seed=6)
    assert all(a != b for a, b in zip(draw(), first))


def test_false_claim_fails_from_scale_cpu_on(folder):
    start("cpu")
    claim("true", True, value=torch.tensor(1.5), reference="1.5")
    claim("false", False)
    with pytest.raises(ClaimFailed, match="1 of 2 claims do not hold: false"):
        report()
    saved = json.loads((folder / "claims.json").read_text())["claims"]
    assert [c["holds"] for c in saved] == [True, False] and saved[0]["measured"] == 1.5


def test_nothing_is_judged_at_smoke(folder, capsys):
    start("smoke")
    claim("false", False)
    claim("true", True)
    shown = report()._repr_markdown_()
    assert shown.count("not judged at smoke") == 2 and "**no**" not in shown and "yes" not in shown
    assert [c["holds"] for c in json.loads((folder / "claims.json").read_text())["claims"]] == [None, None]


@pytest.fixture
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "repo_root", lambda: tmp_path)
    start("long", device="cpu")
    save_table("t", [{"x": 1.0}])
    return load_table("t")


def test_what_stands_on_a_file_is_not_claimed_of_this_run(folder, table, capsys):
    start("cpu")
    claim("measured", True)
    saved("kept", True, table, value=1.0)
    saved("kept, measured again", True, table, here=False)
    shown = report()._repr_markdown_()
    assert shown.count(f"saved {table.provenance['date']}, scale long") == 2 and "**not here**" in shown
    assert "1 of 1 hold in this run; 2 stand on a saved run" in capsys.readouterr().out
    kinds = [(c["kind"], c["over"]) for c in json.loads((folder / "claims.json").read_text())["claims"]]
    assert kinds == [("measured", "one run"), ("saved", "one run"), ("saved", "one run")]


def test_a_sentence_that_its_table_denies_fails(folder, table):
    start("cpu")
    saved("denied", False, table)
    with pytest.raises(ClaimFailed, match="denied"):
        report()


def test_a_comparison_tells_over_how_many_pairs(folder):
    start("cpu")
    gap = compare([1.0, 2.0, 3.0], [0.0, 1.0, 2.01])
    claim("larger", gap.verdict == "more", value=gap)
    report()
    (entry,) = json.loads((folder / "claims.json").read_text())["claims"]
    assert entry["over"] == "3 seeds" and entry["measured"].startswith("+0.997 (")


@given(st.floats(1e-6, 1e6) | st.lists(st.floats(-1e6, 1e6), max_size=3) | st.dictionaries(st.text("ab"), st.floats(-9, 9)))
def test_tables_show_four_digits(value):
    assert not re.search(r"\.0*[1-9]\d{4,}", repr(Table([{"x": value}])))


@pytest.mark.parametrize("find, shown", [(min, ["0.5", "**0.25**", "**0.25**", "nan", "", "0.1"]),
                                         (max, ["**0.5**", "0.25", "0.25", "nan", "", "0.1"])])
def test_the_best_number_of_a_column_is_bold(find, shown):
    values = [torch.tensor(0.5), 0.25, 0.250001, float("nan"), None, "0.1"]
    table = Table([{"x": value, "y": value} for value in values], best={"x": find})
    rows = [line.strip("| ").split(" | ")[0] for line in repr(table).replace("|  |", "| - |").split("\n")[2:]]
    assert [row.replace("-", "") for row in rows] == shown
    assert repr(table).count("**") == 2 * sum("*" in text for text in shown), "only the column that was asked for"
    assert "**" not in repr(Table(table)) and "**" not in repr(Table([{"x": "a"}], best={"x": max}))


def test_a_column_that_is_not_there_cannot_have_a_best_entry():
    with pytest.raises(ValueError, match=r"best: expected columns of \['x'\]; got \['y'\]"):
        Table([{"x": 1}], best={"y": max})


def test_a_claim_made_twice_counts_once(folder):
    start("cpu")
    claim("same", False)
    claim("same", True)
    assert len(report()) == 1


def test_claim_needs_a_run(monkeypatch):
    monkeypatch.setattr(runs, "_current", None)
    with pytest.raises(RuntimeError, match=r"call start\("):
        claim("x", True)


def test_tables_escape_pipes():
    assert "a \\| b" in repr(Table([{"x": "a | b"}]))


def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_atomic(tmp_path / "a" / "b.txt", b"old")
    monkeypatch.setattr(runs.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]


@pytest.fixture
def order(monkeypatch):
    "What is synced to disk and when the file is moved, in order."
    seen, fsync, replace = [], os.fsync, os.replace

    def synced(handle):
        seen.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else os.fstat(handle).st_size)
        fsync(handle)

    monkeypatch.setattr(runs.os, "fsync", synced)
    monkeypatch.setattr(runs.os, "replace", lambda *a: (seen.append("move"), replace(*a)))
    return seen


def test_a_file_is_on_disk_before_its_name_and_the_name_before_the_return(tmp_path, order):
    write_atomic(tmp_path / "a" / "b.txt", b"12345")
    assert order == [5, "move", "folder"] and (tmp_path / "a" / "b.txt").read_bytes() == b"12345"
    write_atomic(tmp_path / "progress", b"1", sync=False)
    assert order == [5, "move", "folder", "move"]


def test_a_written_file_has_the_usual_rights(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    assert write_atomic(tmp_path / "b", b"").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_checkpoint_bears_the_key_of_its_run(folder, monkeypatch):
    assert start("smoke").checkpoint("net") == folder / "net.ckpt"
    names = set()
    for key in ("a" * 64, "b" * 64):
        monkeypatch.setenv("DENSEGEN_KEY", key)
        names.add(start("smoke").checkpoint("net"))
    assert len(names) == 2 and all(p.parent == folder and p.suffix == ".ckpt" for p in names)


def test_saved_table_has_its_provenance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runs, "repo_root", lambda: tmp_path)
    start("long", seed=2, device="cpu")
    save_table("t", [{"x": torch.tensor(2.0), "n": None}])
    assert load_table("t") == [{"x": 2.0, "n": None}]
    assert "scale long · seed 2" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="scale `long`"):
        load_table("missing")


def test_repo_root_from_below(root, monkeypatch, tmp_path):
    monkeypatch.chdir(root / "nbs")
    assert repo_root() == root
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="start from inside the clone"):
        repo_root()


def test_device_by_name():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="expected one of auto, cpu"):
        pick_device("abacus")
