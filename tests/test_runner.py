"""The runner: nothing run twice, nothing lost, nothing left running."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from densegen.course import runner

V4 = nbformat.v4


def write(root, name, *sources, parameters='scale = "cpu"\nn = 1'):
    "A notebook of the tiny course: a title, a parameters cell, and these cells."
    cells = [V4.new_markdown_cell(f"# Title of {name}", id="title")]
    cells.append(V4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
    cells += [V4.new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    path = root / "nbs" / f"{name}.ipynb"
    nbformat.write(V4.new_notebook(cells=cells), path)
    return runner.Lecture(path)


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
    assert [e.name for e in runner.lectures(root)] == ["20_energy", "31_coupling", "lab_flow"]
    assert [e.name for e in runner.find(["coupling", "20"], root)] == ["20_energy", "31_coupling"]
    assert runner.find(["lab_flow"], root)[0].title == "Title of lab_flow"
    with pytest.raises(runner.UnknownName, match="did you mean '31_coupling'"):
        runner.find(["coupilng"], root)


def test_unknown_parameter_is_refused_before_anything_runs(root):
    lecture = write(root, "10_a", "open('ran', 'w')")
    with pytest.raises(runner.UnknownName, match="did you mean 'n'"):
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
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(99)', '{root}/child'])"
    lecture = write(root, "10_a", child)
    result = runner.execute(lecture, "smoke", root=root, timeout=5)
    assert result.status == "timeout" and result.seconds < 15
    assert alive(lecture.path) == [] and alive(f"{root}/child") == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_interrupted_run_keeps_its_checkpoints_and_leaves_no_process(root, jobs):
    source = "import os, pathlib, time\nfolder = pathlib.Path(os.environ['DENSEGEN_RUN'])\nold = [p.name for p in folder.glob('*.ckpt')]"
    work = "(folder / 'net.ckpt').write_bytes(b'1')\nif not old: time.sleep(60)\nprint(old)"
    lecture = write(root, "10_a", source, work)
    script = f"from densegen.course import cli; import sys; sys.argv = ['densegen', 'run', '10', '--scale', 'smoke', '--jobs', '{jobs}']; cli.main()"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.PIPE, text=True)
    checkpoint = root / "_runs" / "smoke" / "10_a" / "net.ckpt"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130 and "goes on from here" in process.stderr.read()
    assert alive(lecture.path) == [] and checkpoint.exists()
    result = runner.execute(lecture, "smoke", root=root)
    outputs = nbformat.read(result.notebook, as_version=4).cells[-1].outputs
    assert result.status == "done" and outputs[0].text == "['net.ckpt']\n"
    assert not checkpoint.exists()


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
