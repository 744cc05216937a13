"""The runner: nothing run twice, nothing lost, nothing left running."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pytest

from densegen.course import key, lectures, runner
from densegen.course.processes import family, owned

V4 = nbformat.v4


def write(root, name, *sources, parameters='scale = "cpu"\nn = 1'):
    "A notebook of the tiny course: a title, a parameters cell, and these cells."
    cells = [V4.new_markdown_cell(f"# Title of {name}", id="title")]
    cells.append(V4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
    cells += [V4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    path = root / "nbs" / f"{name}.ipynb"
    nbformat.write(V4.new_notebook(cells=cells), path)
    return lectures.Lecture(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "nbs").mkdir()
    (tmp_path / "densegen").mkdir()
    (tmp_path / "settings.ini").write_text("[DEFAULT]\n")
    return tmp_path


def alive(path):
    "Processes that work on this file."
    found = []
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(path) in line.read_bytes().decode(errors="replace"):
                found.append(line.parent.name)
        except OSError:
            continue
    return found


def test_lectures_come_in_order_and_by_any_name(root):
    for name in ("31_coupling", "20_energy", "index", "lab_flow"):
        write(root, name)
    assert [e.name for e in lectures.lectures(root)] == ["20_energy", "31_coupling", "lab_flow"]
    assert [e.name for e in lectures.find(["coupling", "20"], root)] == ["20_energy", "31_coupling"]
    assert lectures.find(["lab_flow"], root)[0].title == "Title of lab_flow"
    with pytest.raises(lectures.UnknownName, match="did you mean '31_coupling'"):
        lectures.find(["coupilng"], root)


def test_unknown_parameter_is_refused_before_anything_runs(root):
    lecture = write(root, "10_a", "open('ran', 'w')")
    with pytest.raises(lectures.UnknownName, match="did you mean 'n'"):
        runner.execute(lecture, root=root, settings={"nn": 2})
    assert not (root / "ran").exists() and not (root / "_runs").exists()


def count(root):
    return (root / "count").read_text().count("x")


def test_runs_again_only_when_something_changed(root):
    lecture = write(root, "10_a", "print('x', n, file=open('count', 'a'))")
    assert runner.execute(lecture, "smoke", root=root).status == "done"
    assert runner.execute(lecture, "smoke", root=root).status == "unchanged"
    notebook = lecture.read()
    notebook.cells[0].source = "# Another comma"
    nbformat.write(notebook, lecture.path)
    assert runner.execute(lecture, "smoke", root=root).status == "unchanged"
    assert count(root) == 1
    (root / "densegen" / "new.py").write_text("")
    assert runner.execute(lecture, "smoke", root=root).status == "done"
    assert runner.execute(lecture, "smoke", root=root, settings={"n": 5}).status == "done"
    assert runner.execute(lecture, "smoke", root=root).status == "unchanged"
    assert runner.execute(lecture, "smoke", root=root, fresh=True).status == "done"
    assert count(root) == 4 and "x 5" in (root / "count").read_text()


def test_failure_names_cell_error_and_source(root):
    result = runner.execute(write(root, "10_a", "1", "raise KeyError('lost')"), "smoke", root=root)
    assert not result.ok and result.status == "failed"
    assert result.error == {"cell": 3, "source": "raise KeyError('lost')", "error": "KeyError", "message": "'lost'"}
    assert Path(result.notebook).exists()
    assert runner.execute(write(root, "10_a", "1", "2"), "smoke", root=root).status == "done"


def test_a_failed_run_is_tried_again(root):
    lecture = write(root, "10_a", "open('count', 'a').write('x')", "1 / 0")
    for _ in range(2):
        assert runner.execute(lecture, "smoke", root=root).status == "failed"
    assert count(root) == 2


def test_a_kernel_that_dies_is_a_failure(root):
    result = runner.execute(write(root, "10_a", "import os; os._exit(3)"), "smoke", root=root, timeout=60)
    assert result.status == "failed" and result.error["message"]


def test_timeout_stops_the_whole_group(root):
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(999)', '{root}/child'])"
    lecture = write(root, "10_a", child)
    result = runner.execute(lecture, "smoke", root=root, timeout=5)
    assert result.status == "timeout" and result.seconds < 25
    assert alive(lecture.path) == [] and alive(f"{root}/child") == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_run_keeps_its_checkpoints_and_leaves_no_process(root, jobs):
    source = "import os, pathlib, time\nfolder = pathlib.Path(os.environ['DENSEGEN_RUN'])\nold = [p.name for p in folder.glob('*.ckpt')]"
    work = "(folder / 'net.ckpt').write_bytes(b'1')\nif not old: time.sleep(60)\nprint(old)"
    lecture = write(root, "10_a", source, work)
    script = f"from densegen.course import cli; import sys; sys.argv = ['densegen', 'run', '10', '--scale', 'smoke', '--jobs', '{jobs}']; cli.main()"
    process = subprocess.Popen([sys.executable, "-P", "-c", script], cwd=root, stderr=subprocess.PIPE, text=True)
    checkpoint = root / "_runs" / "smoke" / "10_a" / "net.ckpt"
    deadline = time.monotonic() + 200
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130 and "goes on from here" in process.stderr.read()
    assert alive(lecture.path) == [] and checkpoint.exists()
    assert command(root, "run", "10", "--scale", "smoke", "--jobs", str(jobs)).wait(300) == 0
    outputs = nbformat.read(checkpoint.parent / "10_a.ipynb", as_version=4).cells[-1].outputs
    assert outputs[0].text == "['net.ckpt']\n" and not checkpoint.exists()


def test_checkpoints_of_other_sources_are_not_used(root):
    lecture = write(root, "10_a", "1 / 0")
    runner.execute(lecture, "smoke", root=root)
    foreign = root / "_runs" / "smoke" / "10_a" / "net.ckpt"
    foreign.write_bytes(b"old")
    runner.execute(write(root, "10_a", "1 / 0  # changed"), "smoke", root=root)
    assert not foreign.exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"key": 1}'])
def test_a_damaged_result_means_run_again(root, damage):
    lecture = write(root, "10_a", "1")
    runner.execute(lecture, "smoke", root=root)
    (root / "_runs" / "smoke" / "10_a" / "result.json").write_bytes(damage)
    assert runner.execute(lecture, "smoke", root=root).status == "done"


def test_claims_of_the_run_are_in_the_result(root):
    cells = ["from densegen.workbench.run import *", "start(scale)", "claim('one', True, value=0.5, reference='a paper')", "report()"]
    result = runner.execute(write(root, "10_a", *cells), "cpu", root=root)
    expected = {"claim": "one", "kind": "measured", "holds": True, "measured": 0.5, "published": "a paper", "over": "one run"}
    assert result.claims == [expected]
    cells[2] = "claim('one', False)"
    assert runner.execute(write(root, "10_a", *cells), "cpu", root=root).error["error"] == "ClaimFailed"


def test_keep_stamps_and_refuses_a_run_of_other_code(root):
    lecture = write(root, "10_a", "print('a')", "import sys; print('c', file=sys.stderr)")
    result = runner.execute(lecture, "smoke", root=root)
    runner.keep(result, lecture)
    kept = lecture.read()
    texts = [[o.get("text") for o in c.outputs] for c in kept.cells if c.cell_type == "code"]
    assert texts == [[], ["a\n"], []]
    assert all(c.execution_count is None for c in kept.cells if c.cell_type == "code")
    stamp = kept.metadata["densegen"]
    assert stamp["code"] == runner.source_hash(kept) and stamp["scale"] == "smoke" and stamp["date"]
    kept.cells[2].source = "print('changed')"
    nbformat.write(kept, lecture.path)
    with pytest.raises(ValueError, match="got one of other code"):
        runner.keep(result, lecture)
    assert "'changed'" in lecture.path.read_text() and '"a\\n"' in lecture.path.read_text()


def test_prose_may_change_after_a_run(root):
    lecture = write(root, "10_a", "print('a')")
    result = runner.execute(lecture, "smoke", root=root)
    notebook = lecture.read()
    notebook.cells[0].source = "# Another title"
    nbformat.write(notebook, lecture.path)
    assert runner.keep(result, lecture) == 1


def test_keep_leaves_the_words_of_a_picture(root):
    source = "from IPython.display import display, Image; display(Image(b'x', format='png'), metadata={'image/png': {'alt': 'a dot', 'width': 3}})"
    lecture = write(root, "10_a", source)
    runner.keep(runner.execute(lecture, "smoke", root=root), lecture)
    assert lecture.read().cells[-1].outputs[0].metadata == {"image/png": {"alt": "a dot"}}


def test_kept_outputs_name_no_place_of_the_machine(root, tmp_path_factory, monkeypatch):
    data = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("DENSEGEN_DATA", str(data))
    show = "import os, pathlib, tempfile\nfrom IPython.display import HTML\nplaces = [os.environ['DENSEGEN_DATA'], tempfile.gettempdir(), "
    show += "str(pathlib.Path.home())]\nprint(*places)"
    lecture = write(root, "10_a", show, "places", "HTML('<b>' + places[1] + '/x</b>')")
    runner.keep(runner.execute(lecture, "smoke", root=root), lecture)
    text = json.dumps([c.outputs for c in lecture.read().cells if c.cell_type == "code"])
    assert not any(place in text for place in (str(data), tempfile.gettempdir(), str(Path.home())))
    assert "$DENSEGEN_DATA $TMPDIR $HOME" in text and "<b>$TMPDIR/x</b>" in text


def test_progress_reaches_the_watcher(root):
    source = (
        "import json, os, pathlib, time\n"
        "pathlib.Path(os.environ['DENSEGEN_RUN'], 'progress.json').write_text(json.dumps({'step': 3}))\ntime.sleep(1)"
    )
    seen = []
    runner.execute(write(root, "10_a", source), "smoke", root=root, watch=seen.append)
    assert {} in seen and {"step": 3} in seen
    assert json.loads((root / "_runs/smoke/10_a/result.json").read_text())["status"] == "done"
    assert os.environ.get("DENSEGEN_RUN") != str(root / "_runs/smoke/10_a")


def command(root, *words):
    "The command line in a process of its own, as a shell starts it."
    script = f"import sys; sys.argv = {['densegen', *words]}; from densegen.course import cli; cli.main()"
    return subprocess.Popen([sys.executable, "-P", "-c", script], cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


BESIDE = "import os, subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGHUP])
def test_nothing_outlives_the_runner_and_the_next_start_works(root, sign):
    source = BESIDE + "again = os.path.exists('begun')\nopen('begun', 'w').close()\nif not again: time.sleep(600)"
    write(root, "10_a", source)
    folder = root / "_runs" / "smoke" / "10_a"
    process = command(root, "run", "10", "--scale", "smoke")
    assert wait_for((root / "begun").exists) and len(family(folder)) >= 3
    process.send_signal(sign)
    assert process.wait(30) == (-9 if sign == signal.SIGKILL else 130)
    assert runner.execute(lectures.find(["10"], root)[0], "smoke", root=root).status == "done"
    assert not family(folder) and not list(folder.glob("*.tmp"))


def test_a_folder_has_one_run_at_a_time(root):
    lecture = write(root, "10_a", "1")
    folder = root / "_runs" / "smoke" / "10_a"
    with owned(folder):
        (folder / "net.ckpt").write_bytes(b"of the other run")
        result = runner.execute(lecture, "smoke", root=root)
    assert result.status == "busy" and f"process {os.getpid()} works there" in result.error["message"]
    assert sorted(p.name for p in folder.iterdir()) == ["lock", "net.ckpt"]


def test_what_an_orphan_writes_is_not_used(root, monkeypatch):
    lecture = write(root, "10_a", "1")
    folder = root / "_runs" / "smoke" / "10_a"
    folder.mkdir(parents=True)
    script = f"import time\nwhile True:\n    open({str(folder / 'net.ckpt')!r}, 'w').close()\n    time.sleep(.01)"
    environment = {**os.environ, "DENSEGEN_RUN": str(folder), "DENSEGEN_WORKER": str(folder)}
    orphan = subprocess.Popen([sys.executable, "-c", script], env=environment)
    assert wait_for((folder / "net.ckpt").exists)
    monkeypatch.setattr(runner, "_run", lambda *_: (time.sleep(0.2), sorted(p.name for p in folder.iterdir()))[1])
    assert runner.execute(lecture, "smoke", root=root) == ["key", "lock"]
    assert not family(folder) and orphan.wait(5) is not None


def test_a_run_of_another_key_has_another_checkpoint(root, monkeypatch):
    seen = []
    monkeypatch.setattr(runner, "_launch", lambda *a: seen.append(a[5]) or 1 / 0)
    for source in ("target = 5", "target = -5"):
        with pytest.raises(ZeroDivisionError):
            runner.execute(write(root, "10_a", source), "smoke", root=root)
    assert len(set(seen)) == 2


def test_nothing_of_a_finished_run_lives_on(root):
    assert runner.execute(write(root, "10_a", BESIDE), "smoke", root=root).ok
    assert not family(root / "_runs" / "smoke" / "10_a")


def test_a_killed_worker_is_named_and_leaves_nothing(root):
    source = BESIDE + "import signal; os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)"
    result = runner.execute(write(root, "10_a", source), "smoke", root=root, timeout=120)
    assert result.status == "failed" and result.error["error"] == "killed by SIGKILL"
    assert not family(root / "_runs" / "smoke" / "10_a")


def test_a_cell_that_prints_too_much_is_stopped_and_named(root):
    result = runner.execute(write(root, "10_a", "while True: print('x' * 1_000_000)"), "smoke", root=root, timeout=200)
    assert result.error["error"] == "TooMuchOutput" and result.error["cell"] == 2
    assert "print less" in result.error["message"] and Path(result.notebook).stat().st_size < 12e6


@pytest.fixture
def named(root, monkeypatch):
    "A lecture that uses mnist, in a course with a package, a picture and a table."
    (root / "data").mkdir()
    monkeypatch.setenv("DENSEGEN_DATA", str(root / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    for name in ("densegen/flows/glow.py", "densegen/assets/cow.jpg", "results/t.json", "data/fashion_mnist_28x28.npz", "data/kmnist_28x28_test.npz"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    lecture = write(root, "10_a", "images('mnist'), images('fashion_mnist')")
    return lambda settings={}, threads=None: key.fingerprint(lecture, settings, root, threads)


CHANGES = {
    "module moved": lambda root, m: ((root / "densegen/energy").mkdir(), (root / "densegen/flows/glow.py").rename(root / "densegen/energy/glow.py")),
    "module changed": lambda root, m: (root / "densegen/flows/glow.py").write_text("2"),
    "picture changed": lambda root, m: (root / "densegen/assets/cow.jpg").write_text("2"),
    "table changed": lambda root, m: (root / "results/t.json").write_text("2"),
    "data changed": lambda root, m: (root / "data/fashion_mnist_28x28.npz").write_text("2"),
    "data of the same size": lambda root, m: os.utime(root / "data/fashion_mnist_28x28.npz", ns=(1, 1)),
    "data fetched": lambda root, m: (root / "data/mnist_28x28.npz").write_text("2"),
    "numpy": lambda root, m: m.setattr(key, "distribution", other(key.distribution, "numpy")),
    "torch": lambda root, m: m.setattr(key, "distribution", other(key.distribution, "torch")),
    "python": lambda root, m: m.setattr(key.platform, "python_version", lambda: "4.0"),
    "a requirement": lambda root, m: (root / "settings.ini").write_text("[DEFAULT]\nrequirements = typer>=0.1"),
    "threads": lambda root, m: m.setenv("OMP_NUM_THREADS", "77"),
}


def other(distribution, name):
    "As after an update of one package."

    def changed(wanted):
        found = distribution(wanted)
        return type("Distribution", (), {"version": "0.0", "requires": found.requires}) if wanted == name else found

    return changed


@pytest.mark.parametrize("change", CHANGES)
def test_the_key_changes_with_all_that_decides(root, named, monkeypatch, change):
    before = named()
    CHANGES[change](root, monkeypatch)
    key.versions_of.cache_clear()
    assert named() != before
    monkeypatch.undo()
    key.versions_of.cache_clear()


def test_the_key_changes_with_parameters_and_threads(named):
    assert len({named(), named({"n": 1}), named({"n": "1"}), named({"n": 1.0}), named(threads=7), named(threads=8)}) == 6


def test_the_key_does_not_change_with_what_does_not_decide(root, named, monkeypatch):
    before = named()
    monkeypatch.setenv("DENSEGEN_DATA", str(root / "data") + "/")
    (root / "data/kmnist_28x28_test.npz").write_text("a set that the lecture does not use")
    (root / "densegen/__pycache__").mkdir()
    (root / "densegen/__pycache__/glow.pyc").write_text("1")
    assert named() == before
    (root / "data").rename(root / "elsewhere")
    monkeypatch.setenv("DENSEGEN_DATA", str(root / "elsewhere"))
    assert named() == before


def test_one_scale_for_one_run(root):
    with pytest.raises(ValueError, match="expected one scale"):
        runner.execute(write(root, "10_a", "1"), "cpu", {"scale": "smoke"}, root=root)
    assert not (root / "_runs").exists()


def test_folders_of_odd_values_are_short_and_differ(root):
    lecture = write(root, "10_a", "1", parameters='scale = "cpu"\nn = ""')
    values = ["[1]", "(1)", "_1_", "a/b", "..", "x" * 5000, "x" * 4999 + "y"]
    folders = [runner.folder_of(lecture, "smoke", {"n": v}, root) for v in values]
    assert len(set(folders)) == len(values)
    assert all(f.parent == root / "_runs" / "smoke" and len(f.name) < 120 for f in folders)


PARAMETERS = {
    "syntax": ("scale = ", "invalid syntax"),
    "expression": ('scale = "cpu"\nn = 2 * 3', "line 2 computes '2 * 3'; write the value"),
    "call": ("print(1)", "line 1 is something else"),
    "none": ("", "expected a cell tagged `parameters` that sets scale"),
    "deep": ('scale = "cpu"\nn = ' + "[" * 500, "expected lines `name = value`"),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_that_cannot_be_read_fail_the_lecture_in_one_line(root, kind):
    source, message = PARAMETERS[kind]
    result = runner.execute(write(root, "10_a", "1", parameters=source), "smoke", root=root)
    assert result.status == "failed" and message in result.error["message"] and "\n" not in result.error["message"]


def test_parameters_may_be_annotated(root):
    lecture = write(root, "10_a", "1", parameters='scale: str = "cpu"\nsizes: list[int] = [1, 2]  # of layers')
    assert lectures.parameters(lecture) == {"scale": "cpu", "sizes": [1, 2]}


BROKEN = {
    "old": b'{"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"cells": []}]}',
    "no cells": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}',
    "odd cells": b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1, {"cell_type": "code"}]}',
    "half": b'{"cells": [',
    "empty": b"",
    "list": b"[]",
    "picture": b"\x89PNG\r\n\x1a\n\xff\xfe",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_no_notebook_costs_one_line(root, kind):
    path = root / "nbs" / "10_a.ipynb"
    path.write_bytes(BROKEN[kind])
    (lecture,) = lectures.lectures(root)
    with pytest.raises(lectures.BrokenNotebook, match="^10_a.ipynb: expected a notebook of format 4; .{3,200}$"):
        lecture.title
    assert runner.execute(lecture, "smoke", root=root).error["error"] == "BrokenNotebook"


DAMAGED = [b"", b"{", b"[1]", b'{"claims": 1}', b'{"claims": [{"claim": "x", "kind": "saved"}]}', b"[" * 100_000]


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_files_of_a_run_do_not_stop_the_runner(tmp_path, content):
    (tmp_path / "claims.json").write_bytes(content)
    result = runner._conclude(runner.Result("10_a", "done", 1.0, "x.ipynb"), tmp_path, "key")
    assert result.status == "failed" and result.error["error"] == "damaged claims"
    (tmp_path / "result.json").write_bytes(content)
    assert runner.last_result(tmp_path) is None


def test_half_an_executed_notebook_is_no_second_failure(tmp_path):
    (tmp_path / "a.ipynb").write_bytes(b'{"cells": [{"cell_')
    (tmp_path / "log.txt").write_text("DeadKernelError: Kernel died")
    assert runner.failure(tmp_path / "a.ipynb", tmp_path / "log.txt")["message"] == "DeadKernelError: Kernel died"
