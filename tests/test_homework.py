"""The grader against everybody: right, broken and hostile submissions; what is handed out; teacher's commands."""
import contextlib
import copy
import csv
import html
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import nbformat
import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from homework_helpers import CANARY, check_of, half_solved, hand_in, solve, stub, tiny
from hostile import CODE, MARK
from typer.testing import CliRunner

from densegen.course import assignment, cli, gradebook, grading, handed_in, homework, judging, plain, release, sandbox
from densegen.course.release import is_solution, mark
from densegen.course.template import template

TASKS = {"tiny-double-check": 2.0, "tiny-spread-check": 3.0, "tiny-named-check": 1.0}
NOTHING = dict.fromkeys(TASKS, 0.0)
SECRET = "the class of this test"


def wall():
    try:
        return sandbox.find_sandbox(), ""
    except sandbox.NoSandbox as reason:
        return None, str(reason)


WALL, WHY_NOT = wall()
needs_wall = pytest.mark.skipif(WALL is None, reason=f"no sandbox: {WHY_NOT}")


def write(path, notebook):
    path.write_text(json.dumps(notebook))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    "The teacher's notebook and what is read from it."
    path = write(tmp_path_factory.mktemp("teacher") / "tiny.ipynb", tiny())
    return path, assignment.read_homework(path)


def graded(teacher, folder, out, limits, kernel=False, **options):
    path, known = teacher
    submissions, _ = grading.find_submissions(folder, known.name)
    settings = grading.Settings(WALL, SECRET, limits, kernel)
    return {m.student: m for m in grading.grade_class(known, path, submissions, out, settings, **options)}


def patient(base):
    "Limits for a machine that may be busy: base seconds here, if starting Python takes a tenth of one."
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    return base * max(1.0, (time.monotonic() - began) / 0.2)


@contextlib.contextmanager
def listening(folder):
    "Servers outside: a port, a socket in a folder, and an abstract one; yields what a submission may try."
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        paths = [str(folder / "socket"), "\0densegen-abstract"]
        for path in paths:
            server = stack.enter_context(socket.socket(socket.AF_UNIX))
            server.bind(path)
            server.listen()
        yield {"PORT": port.getsockname()[1], "SOCKET": paths[0]}


@pytest.fixture(scope="module")
def batch(teacher, tmp_path_factory):
    "All hostile submissions and honest ones between them, graded in one go: folder of grades, marks by student."
    if WALL is None:
        pytest.skip(f"no sandbox: {WHY_NOT}")
    base = tmp_path_factory.mktemp("batch")
    handed = base / "submissions"
    (base / "secret.txt").write_text(CANARY)
    with listening(base) as servers, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DENSEGEN_SECRET", CANARY)
        known = servers | {"GRADER": os.getpid(), "GRADER_PARENT": os.getppid()}
        known["FILES"] = [str(p) for p in (teacher[0], base / "secret.txt", handed / "a honest.ipynb")]
        values = "".join(f"{name} = {value!r}\n" for name, value in known.items())
        for name, code in CODE.items():
            hand_in(handed, f"code {name}", solve(tiny(), {"tiny-double": values + code}))
        for name in ("a honest", "m honest", "z honest"):
            hand_in(handed, name, tiny())
        files(handed)
        cell = patient(1.5)
        limits = sandbox.Limits(cell=cell, wall=4 * cell, memory=700 * 2**20, processes=24, disk=2**26, output=2**22)
        began = time.monotonic()
        marks = graded(teacher, handed, base / "grades", limits)
        print(f"{len(marks)} submissions in {time.monotonic() - began:.0f} s")
    return base, marks


def changed(**sources):
    "A solved notebook in which cells are changed: last part of the name -> source, None deletes."
    notebook = tiny()
    for name, source in sources.items():
        place = [mark(c)["grade_id"].removeprefix("tiny-") for c in notebook.cells].index(name.replace("_", "-"))
        if source is None:
            del notebook.cells[place]
        else:
            notebook.cells[place].source = source
    return notebook


WRONG = "def double(x):\n    return 3 * x"
PASS = "print('all tests passed')"


def unlocked():
    notebook = changed(double=WRONG, double_check=PASS)
    for cell in notebook.cells:
        cell.metadata.nbgrader |= {"locked": False, "solution": True, "points": 1000}
    return notebook


def renamed():
    notebook = changed(double=WRONG)
    notebook.cells[4].metadata.nbgrader["grade_id"] = "tiny-double"
    notebook.cells[4].source = notebook.cells[4].source.replace(CANARY, "")  # what one hands in oneself is no leak
    return notebook


def doubled_ids():
    notebook = changed(double=WRONG)
    notebook.cells += [copy.deepcopy(notebook.cells[4]), copy.deepcopy(notebook.cells[4])]
    notebook.cells[-1].source = PASS
    return notebook


def foreign():
    notebook = tiny()
    notebook.metadata.kernelspec = {"name": "../../evil", "display_name": "x", "language": "R"}
    return notebook


def strange_cells():
    notebook = json.loads(json.dumps(tiny()))
    notebook["cells"] = [{"cell_type": "code", "source": ["pri", "nt(1)"], "metadata": {"nbgrader": [1]}, "outputs": "x"},
                         {"cell_type": "raw", "source": "\ud800"}, *notebook["cells"]]
    return notebook


BUT_DOUBLE = TASKS | {"tiny-double-check": 0.0}
NOTEBOOKS = {  # what is handed in -> points, or what the status begins with
    "check edited": (changed(double=WRONG, double_check=PASS), BUT_DOUBLE),
    "check deleted": (changed(double=WRONG, double_check=None), BUT_DOUBLE),
    "imports deleted": (changed(imports=None), TASKS),
    "task deleted": (changed(double=None), BUT_DOUBLE),
    "unlocked": (unlocked(), BUT_DOUBLE),
    "check made a solution": (renamed(), BUT_DOUBLE),
    "ids twice": (doubled_ids(), BUT_DOUBLE),
    "unsolved": (stub(tiny()), NOTHING),
    "half": (half_solved(tiny(), ["tiny-double", "tiny-named"]), BUT_DOUBLE | {"tiny-spread-check": 0.0, "tiny-double-check": 2.0}),
    "foreign kernel": (foreign(), TASKS),
    "strange cells": (strange_cells(), TASKS),
    "syntax error": (changed(double="def double(x:\n    return"), BUT_DOUBLE),
    "another homework": (tiny("other"), "expected cells of tiny"),
    "no homework": (nbformat.v4.new_notebook(), "expected cells of tiny"),
    "garbage": (bytes(range(256)) * 100, "expected text in UTF-8"),
    "half a file": (json.dumps(tiny()).encode()[:-100], "expected a notebook"),
    "empty": (b"", "expected a notebook"),
    "latin": ("ä".encode("latin-1"), "expected text in UTF-8"),
    "old format": (b'{"nbformat": 3, "worksheets": []}', "expected a notebook of format 4"),
    "no cells": (b'{"nbformat": 4, "cells": [[[]]]}', "expected cells"),
    "deep": (b'{"nbformat": 4, "cells": ' + b"[" * 10**5 + b"]" * 10**5 + b"}", "expected a notebook"),
    "many cells": (json.dumps({"nbformat": 4, "cells": [{"cell_type": "code", "source": ""}] * 2001}).encode(), "expected at most 2000"),
    "ünïcode – 名前": (tiny(), TASKS),
    "new\nline": (tiny(), TASKS),
    "..": (tiny(), TASKS),
    "=cmd()": (tiny(), TASKS),
    "<script>alert(1)</script>": (tiny(), TASKS),
    "%2e%2e%2f{title}": (tiny(), TASKS),
}
NOTEBOOKS = {("file .." if name == ".." else name.replace("/", "\u2215")): value for name, value in NOTEBOOKS.items()}
PLACES = {  # what is no plain file
    "a link": "expected a file; got a link",
    "a linked folder": "expected a file; got a link",
    "a pipe": "expected a file; got something else",
    "a socket": "expected a file",
    "200 MB": "expected at most 20,000,000 bytes",
    "second name": "expected a file of its own",
    "two in a folder": "expected one notebook; got 2",
    "none in a folder": "expected one notebook; got 0",
    "twice": "expected one submission of a student; got two",
    "twice.ipynb": "expected one submission of a student; got two",
}


def files(handed):
    "Write the submissions of NOTEBOOKS and PLACES."
    for name, (notebook, _) in NOTEBOOKS.items():
        hand_in(handed, name, notebook)
    (handed / "a link.ipynb").symlink_to(handed / "a honest.ipynb")
    (handed / "a linked folder").symlink_to(handed.parent)
    os.mkfifo(handed / "a pipe.ipynb")
    with socket.socket(socket.AF_UNIX) as server:
        os.chdir(handed)
        server.bind("a socket.ipynb")
        os.chdir(ROOT)
    with open(handed / "200 MB.ipynb", "wb") as file:
        file.truncate(200_000_000)
    os.link(handed / "a honest.ipynb", handed / "second name.ipynb")
    for place in ("two in a folder/hw/one", "two in a folder/two", "twice", "twice/tiny", "nested/tiny/tiny", "nested/tiny/draft"):
        hand_in(handed, place, tiny())
    (handed / "none in a folder").mkdir()
    (handed / "nested" / "densegen").mkdir()
    for name in ("sitecustomize.py", "densegen/__init__.py", "numpy.py", "conftest.py"):
        (handed / "nested" / name).write_text("import os; os._exit(0)")
    (handed / "notes.txt").write_text("no submission")


@pytest.mark.parametrize("name", CODE)
def test_no_trick_gains_a_point(batch, name):
    marks = batch[1][f"code {name}"]
    assert marks.status == "graded" and marks.points == NOTHING and marks.wrong["tiny-double-check"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_each_notebook_gets_what_it_deserves(batch, name):
    marks, deserved = batch[1][name], NOTEBOOKS[name][1]
    if isinstance(deserved, dict):
        assert (marks.status, marks.points) == ("graded", deserved), marks.wrong
    else:
        assert marks.status.startswith(deserved) and marks.points == NOTHING


@pytest.mark.parametrize("name", PLACES)
def test_what_is_no_file_is_told(batch, name):
    marks = batch[1][name]
    assert marks.status.startswith(PLACES[name]) and not marks.total


def test_the_batch_is_unharmed(batch, teacher):
    base, marks = batch
    assert [marks[name].points for name in ("m honest", "z honest", "nested")] == [TASKS] * 3
    assert marks["a honest"].status == PLACES["second name"] + "; this one has a second name on the disk; hand in a copy"
    assert len(marks) == len(CODE) + len(NOTEBOOKS) + len(PLACES) + 4
    assert CANARY in teacher[0].read_text() and (base / "secret.txt").read_text() == CANARY
    with open(base / "grades" / "grades.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(marks) and all(row["status"] for row in rows)
    assert {row["student"] for row in rows} >= {"'=cmd()", "new\nline"}


def test_nothing_secret_was_read(batch):
    written = [p for p in (batch[0] / "grades" / "students").rglob("*") if p.is_file()]
    assert len(written) > 2 * len(CODE)
    for path in written:
        text = html.unescape(path.read_text(errors="replace"))
        assert CANARY not in text.replace(repr(CANARY), "") and "connected-to-a-host" not in text.replace("print('connected-to-a-host')", "")


def test_pages_and_names_run_nothing(batch):
    grades = batch[0] / "grades"
    pages = [*grades.rglob("*.html")]
    assert len(pages) > len(CODE) and all(b"<script" not in page.read_bytes() for page in pages)
    assert {p.parent.parent for p in grades.rglob("result.json")} <= {grades, grades / "students"}
    assert not list((batch[0]).glob("*.json"))


def test_no_process_is_left(batch):
    def of_ours(process):
        with contextlib.suppress(psutil.Error):
            return any(MARK in word for word in process.cmdline()) or "densegen.course.student" in " ".join(process.cmdline())
        return False

    assert not [p for p in psutil.process_iter() if of_ours(p)]


def test_limits_are_named(batch):
    marks = batch[1]
    assert marks["code stops itself"].stopped == "time"
    assert marks["code fork bomb"].stopped in ("processes", "memory", "time")  # whichever the machine reaches first
    assert marks["code memory bomb of many"].stopped in ("memory", "processes")
    assert marks["code floods every pipe"].stopped == "output"


def test_points_before_a_failure_stay(batch, teacher, tmp_path):
    late = half_solved(tiny(), ["tiny-double"])
    late.cells[5].source = "import os\nos._exit(0)"
    hand_in(tmp_path / "s", "late", late)
    marks = graded(teacher, tmp_path / "s", tmp_path / "g", sandbox.Limits(cell=30, wall=60))["late"]
    assert marks.points == NOTHING | {"tiny-double-check": 2.0}
    assert marks.wrong["tiny-named-check"] == "the notebook did not come this far"


@needs_wall
@pytest.mark.skipif(WALL is not None and not WALL.kernels, reason="no kernel can start in this sandbox")
def test_in_a_kernel(teacher, tmp_path):
    "papermill inside the wall: the same points, outputs and pictures; tricks at the kernel's own places."
    forged = "from IPython.display import display\nimport json\nright = json.dumps([[{'value': 1}] * 3])\n" \
             "display({'application/vnd.densegen.answers': right, 'text/html': '<script>'}, raw=True)\n"
    loop = "def double(x):\n    while True: pass"
    extra = nbformat.v4.new_code_cell("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(1)")
    parent = half_solved(tiny(), ["tiny-double"])
    parent.cells.insert(5, extra)
    for name, notebook in {
        "honest": tiny(), "forges": solve(tiny(), {"tiny-double": forged + WRONG}), "kills papermill": parent,
        "loops": changed(double=loop), "floods": changed(double="while True: print('x' * 10000)"),
    }.items():
        hand_in(tmp_path / "s", name, notebook)
    limits = sandbox.Limits(cell=patient(3), wall=patient(60))
    marks = graded(teacher, tmp_path / "s", tmp_path / "g", limits, kernel=True)
    assert marks["honest"].points == TASKS
    assert marks["forges"].points == NOTHING
    assert marks["kills papermill"].points == NOTHING | {"tiny-double-check": 2.0}
    assert marks["loops"].points == BUT_DOUBLE and marks["floods"].points == BUT_DOUBLE
    done = nbformat.read(tmp_path / "g" / "students" / "honest" / "executed.ipynb", as_version=4)
    assert "public check passed" in json.dumps(done) and "script" not in json.dumps(done)


@pytest.mark.skipif(sandbox._works("sandlock") is not None, reason="sandlock is not installed or does not work here")
def test_in_sandlock(teacher, tmp_path):
    path, known = teacher
    (tmp_path / "secret.txt").write_text(CANARY)
    values = f"FILES = [{str(tmp_path / 'secret.txt')!r}, {str(path)!r}]\nGRADER = {os.getpid()}\nGRADER_PARENT = {os.getppid()}\n"
    names = ["reads by name", "kills the grader", "a daemon", "fork bomb", "os._exit"]
    for name in names:
        hand_in(tmp_path / "s", name, solve(tiny(), {"tiny-double": values + CODE[name]}))
    hand_in(tmp_path / "s", "honest", tiny())
    limits = sandbox.Limits(cell=patient(3), wall=patient(12), processes=24)
    settings = grading.Settings(sandbox.Sandbox("sandlock", False), SECRET, limits)
    submissions, _ = grading.find_submissions(tmp_path / "s", "tiny")
    marks = {m.student: m for m in grading.grade_class(known, path, submissions, tmp_path / "g", settings)}
    assert marks["honest"].points == TASKS and not any(marks[name].total for name in names)
    read = (tmp_path / "g" / "students" / gradebook.folder_of("reads by name") / "executed.ipynb").read_text()
    assert "Permission denied" in read or "No such file" in read
    time.sleep(0.5)
    assert not [p for p in psutil.process_iter() if "sleep" in p.name() and MARK in " ".join(p.cmdline())]


def test_without_a_sandbox_it_refuses(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "_works", lambda name: "it is broken today")
    hand_in(tmp_path / "s", "anna", tiny())
    words = ["homework", "grade", tmp_path / "s", "--homework", teacher[0], "--out", tmp_path / "g"]
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 2 and "broken today" in done.stderr and "--unsafe" in done.stderr
    assert not (tmp_path / "g").exists()


def test_unsafe_is_possible_and_says_so(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox, "_works", lambda name: "it is broken today")
    hand_in(tmp_path / "s", "anna", tiny())
    words = ["homework", "grade", tmp_path / "s", "--homework", teacher[0], "--out", tmp_path / "g", "--unsafe", "--no-kernel"]
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0 and "all your rights" in done.stderr
    assert "none" in (tmp_path / "g" / "grades.csv").read_text()


@needs_wall
def test_killed_and_started_again(teacher, tmp_path):
    "SIGKILL in the middle: what is done stays, nothing is doubled, and no sandbox outlives the grader."
    names = [f"student {n}" for n in range(5)]
    for name in names:
        hand_in(tmp_path / "s", name, tiny())
    command = [sys.executable, "-c", "from densegen.course.cli import main; main()", "homework", "grade", str(tmp_path / "s"),
               "--homework", str(teacher[0]), "--out", str(tmp_path / "g"), "--no-kernel", "--jobs", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    results = lambda: sorted((tmp_path / "g" / "students").glob("*/result.json"))
    deadline = time.monotonic() + 240
    while len(results()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = {p: p.read_bytes() for p in results()}
    assert 2 <= len(before) < 5
    kept = {}
    limits = sandbox.Limits()
    path, known = teacher
    settings = grading.Settings(WALL, grading.secret_of(tmp_path / "g"), limits, False)
    submissions, _ = grading.find_submissions(tmp_path / "s", "tiny")
    marks = grading.grade_class(known, path, submissions, tmp_path / "g", settings, watch=lambda m, old: kept.update({m.student: old}))
    assert [m.student for m in marks] == names and all(m.points == TASKS for m in marks)
    assert sum(kept.values()) == len(before) and all(p.read_bytes() == data for p, data in before.items())


def test_a_broken_homework_is_not_graded(tmp_path, monkeypatch):
    "The teacher's own solution comes first; students do not pay for a fault in it."
    notebook = tiny()
    notebook.cells[3].source = notebook.cells[3].source.replace("2 * x", "3 * x")
    path = write(tmp_path / "tiny.ipynb", notebook)
    hand_in(tmp_path / "s", "anna", tiny())
    submissions, _ = grading.find_submissions(tmp_path / "s", "tiny")
    settings = grading.Settings(sandbox.Sandbox("none", True), SECRET, kernel=False)
    with pytest.raises(release.BrokenHomework, match="tiny-double-check: double: .* values differ"):
        grading.grade_class(assignment.read_homework(path), path, submissions, tmp_path / "g", settings)
    assert not (tmp_path / "g" / "students").exists()


def test_a_wall_that_does_not_start_costs_no_points(teacher, tmp_path, monkeypatch):
    path, known = teacher
    hand_in(tmp_path / "s", "anna", tiny())
    submissions, _ = grading.find_submissions(tmp_path / "s", "tiny")
    settings = grading.Settings(sandbox.Sandbox("none", True), SECRET, kernel=False)
    monkeypatch.setattr(grading, "_teacher", lambda *_: None)
    monkeypatch.setattr(sandbox, "_words", lambda *_: ["/bin/false"])
    marks, = grading.grade_class(known, path, submissions, tmp_path / "g", settings)
    assert "did not start" in marks.status and not marks.points
    assert "did not start" in (tmp_path / "g" / "grades.csv").read_text()
    monkeypatch.undo()
    monkeypatch.setattr(grading, "_teacher", lambda *_: None)
    marks, = grading.grade_class(known, path, submissions, tmp_path / "g", settings)
    assert marks.points == TASKS


# what is handed out


def test_release_takes_everything_out(tmp_path):
    notebook = tiny()
    notebook.cells[3].outputs = [nbformat.v4.new_output("stream", text="return 2 * x")]
    notebook.cells[3].metadata |= {"collapsed": True, "note": "2 * x"}
    notebook.cells[4].metadata.nbgrader["checksum"] = "0" * 32
    notebook.metadata["densegen"] = {"code": "1"}
    write(tmp_path / "tiny.ipynb", notebook)
    done = CliRunner().invoke(cli.app, ["homework", "release", str(tmp_path / "tiny.ipynb"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    for told in ("solution, 1 lines", "1 outputs", "metadata 'note'", "hidden check", "rubric, 1 lines", "metadata 'densegen'"):
        assert told in done.stdout, told
    student = nbformat.read(tmp_path / "out" / "tiny.ipynb", as_version=4)
    text = json.dumps(student)
    assert not [word for word in (CANARY, "x + x", "2 * x", "secret reason", "HIDDEN", "SOLUTION", "note") if word in text]
    assert "Why is it so?" in text and "YOUR ANSWER HERE" in text and text.count("NotImplementedError") == 3
    assert all(cell.metadata.get("deletable") is False for cell in student.cells if mark(cell))


def leaky(place):
    "A student's notebook in which something of the template's solution is left."
    teacher = template("hw7_circles")
    student = stub(teacher)
    for cell in student.cells:
        cell.source = release.parted(cell.source, "hidden check")[0]
        cell.source = release.parted(cell.source, "rubric")[0]
    line = "distance = torch.linalg.vector_norm(points, dim=-1)"
    cell = student.cells[3]
    if place == "source":
        cell.source = f"#   {line}"
    if place == "outputs":
        cell.outputs = [nbformat.v4.new_output("display_data", data={"text/html": f"<b>{line}</b>"})]
    if place == "metadata":
        cell.metadata["x"] = {"y": [line]}
    if place == "notebook":
        student.metadata["x"] = line
    if place == "attachments":
        student.cells[0]["attachments"] = {"a.png": {"image/png": "AAAA"}}
    if place == "checksum":
        solved = next(c for c in teacher.cells if is_solution(c))
        student.cells[5].metadata.nbgrader["checksum"] = release.checksum(solved)
    if place == "hidden":
        cell.source = release.parted(teacher.cells[6].source, "hidden check")[1][0]
    if place == "rubric":
        cell.source = teacher.cells[8].source
    return teacher, student


@pytest.mark.parametrize("place", ["source", "outputs", "metadata", "notebook", "attachments", "checksum", "hidden", "rubric"])
def test_a_leak_is_found(place):
    assert release.leaks(*leaky(place))


def test_no_leak_is_found_where_there_is_none():
    assert release.leaks(*leaky("nowhere")) == []


def test_checksums_are_those_of_nbgrader():
    from nbgrader.utils import compute_checksum

    cells = [cell for cell in tiny().cells if mark(cell)]
    assert [release.checksum(cell) for cell in cells] == [compute_checksum(cell) for cell in cells]


def test_the_released_cells_are_what_is_restored(teacher):
    "The grader cuts hidden checks out by itself; nbgrader must have cut the same."
    student = release.release(tiny()).notebook
    given = lambda notebook: {mark(c)["grade_id"]: c.source.strip() for c in notebook.cells if not is_solution(c)}
    assert given(student) == given(teacher[1].released)


@pytest.mark.parametrize("fault, told", [
    (lambda n: n.cells[3].metadata.nbgrader.update(grade_id="tiny-imports"), "each grade_id once"),
    (lambda n: n.cells[0].metadata.pop("nbgrader"), "nbgrader's metadata in every cell"),
    (lambda n: n.cells[3].update(source="def double(x):\n    return 2 * x"), "expected BEGIN SOLUTION"),
    (lambda n: n.cells[4].metadata.nbgrader.update(points=0), "a check with points"),
    (lambda n: n.cells[4].update(source="assert True"), "a check with points and a hidden part"),
    (lambda n: n.cells[1].update(source="### BEGIN SOLUTION\n### END SOLUTION"), "in solution cells only"),
    (lambda n: n.cells[0].update(source="![x](attachment:a.png)"), "no attachment"),
    (lambda n: n.update(cells=n.cells[:3]), "at least one check"),
])
def test_a_faulty_homework_is_told(fault, told):
    notebook = tiny()
    fault(notebook)
    with pytest.raises(release.BrokenHomework, match=told):
        release.release(notebook)


# checks and values


@pytest.mark.parametrize("got, wanted, told", [
    (np.ones(3), np.ones((3, 1)), "shape"), (np.ones(3, int), np.ones(3), "integers"), (np.ones(3), np.ones(3, bool), "true or false"),
    (1, 1.0, None), (1.0, 1, "numbers"), (True, 1, "true or false"), (np.nan, 1.0, "differ"), (np.nan, np.nan, "differ"),
    (np.inf, np.inf, None), (None, 1.0, "NoneType"), ("1", 1.0, "str"), ((1.0,), (1.0, 2.0), "2 results"), ({"a": 1}, {"b": 1}, "keys"),
    ([1.0, 2.0], (1.0, 2.0), None), ("a", "b", "another str"), (1.0, "a", "another str"), (torch.ones(2), np.ones(2), None),
    (1 + 1e-5, 1.0, None), (1.001, 1.0, "differ"), (np.float32(0.1), 0.1, None), ({"a": (1.0, np.nan)}, {"a": (1.0, 2.0)}, "at 'a': result 2"),
])
def test_difference(got, wanted, told):
    found = homework.difference(got, wanted)
    assert found is None if told is None else told in found


def test_visible_never_raises(capsys):
    for error in (NotImplementedError(), AssertionError("why"), ValueError("what"), None):
        with homework.visible("t", points=1):
            if error:
                raise error
    lines = capsys.readouterr().out.splitlines()
    assert [("not solved yet" in lines[0]), ("why" in lines[1]), ("ValueError: what" in lines[2]), ("public check passed" in lines[3])] == [True] * 4
    with pytest.raises(KeyboardInterrupt), homework.visible("t", points=1):
        raise KeyboardInterrupt


def test_a_judge_never_sees_what_is_not_finite():
    seen = []
    check = homework.Check("f", lambda rng: (), lambda result: seen.append(result), True)
    assert check.wrong(float("nan"), ()) and check.wrong((1.0, torch.tensor([torch.inf])), ()) and not seen
    assert check.wrong(1.0, ()) is None


def test_a_hidden_check_gives_copies_to_the_function():
    def zero(x):
        return x.zero_()

    with pytest.raises(AssertionError, match="differ"):
        homework.agrees(zero, draw=lambda rng: (torch.ones(3),), reference=lambda x: x)


@pytest.mark.parametrize("value", [
    1, 2.5, True, None, "é", (1, [2, {"a": "b"}]), np.arange(6).reshape(2, 3), np.float32(2), np.ones(2, bool), 1j * np.ones(2),
    torch.ones(2, 3, requires_grad=True), torch.tensor(3), torch.ones(2, dtype=torch.bfloat16), np.zeros((0, 3)), np.ones((2, 3)).T,
])
def test_values_come_back(value):
    back = plain.decode(json.loads(json.dumps(plain.encode(value))))
    assert homework.difference(back, value.detach().float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value) is None


@pytest.mark.parametrize("found", [
    {"array": {"dtype": "float64", "shape": [2**39, 2**39], "data": ""}}, {"array": {"dtype": "object", "shape": [], "data": ""}},
    {"array": {"dtype": "float64", "shape": [-1], "data": ""}}, {"array": {"dtype": "float64", "shape": [True], "data": "AAAAAAAAAAA="}},
    {"array": {"dtype": "float64", "shape": [1], "data": "!!"}}, {"array": {"dtype": ["float64"], "shape": [], "data": ""}},
    {"tensor": []}, {"dict": [[1, 2]]}, {"a": 1, "b": 2}, [1], {"list": {"list": []}}, {"tuple": [{"tuple": [{"pickle": "x"}]}]},
    {"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [{"tuple": [1]}]}]}]}]}]}]}]}]}]},
])
def test_damaged_values_are_refused(found):
    with pytest.raises(ValueError):
        plain.decode(found)


def test_the_same_secret_asks_the_same(teacher):
    drawn = lambda secret: judging.Questions(teacher[1], secret).calls({t.place: t.place for t in teacher[1].tasks})
    assert drawn("a") == drawn("a") != drawn("b")


def test_forged_lines_are_forgotten():
    lines = [{"cell": True, "answers": "x"}, {"cell": 1, "answers": "first"}, {"cell": 1, "answers": "second"}, {"cell": 2, "outputs": [
        {"output_type": "display_data", "data": {"text/html": "<script>", "text/plain": "a\x1b[2J"}}, {"output_type": []}, 1]}, [], 3]
    outputs, answers = judging.read_lines("\n".join(map(json.dumps, lines)).encode() + b"\n\xff\n" + b"[" * 10**5)
    assert answers == {1: "first"} and outputs == {2: [{"output_type": "display_data", "metadata": {}, "data": {"text/plain": "a[2J"}}]}


# the gradebook


def test_points_by_hand_are_kept_and_counted(teacher, tmp_path):
    known = teacher[1]
    marks = [gradebook.Marks("anna", points=dict(TASKS)), gradebook.Marks("bert", points=dict(NOTHING))]
    gradebook.write_tables(tmp_path, known, marks)
    table = tmp_path / "by_hand.csv"
    table.write_text(table.read_text().replace("anna,tiny-words,,1", "anna,tiny-words,0.5,1").replace("bert,tiny-words,,1", "bert,tiny-words,x,1"))
    gradebook.write_tables(tmp_path, known, marks)
    with open(tmp_path / "grades.csv", newline="") as file:
        rows = {row["student"]: row for row in csv.DictReader(file)}
    assert [float(rows[name][key]) for name, key in (("anna", "points"), ("anna", "of"), ("bert", "points"))] == [6.5, 7, 0]


def test_changes_are_told(teacher):
    old = [gradebook.Marks("a", points={"t": 1}), gradebook.Marks("b", points={"t": 1})]
    new = [gradebook.Marks("a", points={"t": 0}), gradebook.Marks("b", points={"t": 1}), gradebook.Marks("c", points={"t": 2})]
    assert gradebook.changes(old, new) == [("a", "t", "1", "0"), ("c", "t", "absent", "2")]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"student": 1}', '{"nonsense": 1}', '{"student": "a", "points": 3}', "[" * 10**5])
def test_damaged_marks_are_none(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    assert gradebook.read_marks(tmp_path / "result.json") is None


def test_folders_of_students_are_apart():
    names = ["", ".", "..", "a", "a ", "a/b", "teacher", "\udcff", "x" * 300, "x" * 301, "new\nline", "a\u0301", "á"]
    folders = [gradebook.folder_of(name) for name in names]
    assert len(set(folders)) == len(names)
    assert not [f for f in folders if "/" in f or f.startswith(".") or not f.isprintable() or len(f) > 80 or f == "teacher"]


# the student's command, and a homework of one's own


def test_new_release_check(tmp_path):
    shell = lambda *words: CliRunner().invoke(cli.app, ["homework", *map(str, words)])
    assert shell("new", "circles", "--out", tmp_path).exit_code == 2
    assert shell("new", "hw9_circles", "--out", tmp_path).exit_code == 0
    path = tmp_path / "hw9_circles.ipynb"
    assert shell("new", "hw9_circles", "--out", tmp_path).exit_code == 2  # it is there
    assert shell("release", path, "--out", tmp_path).exit_code == 2 and "BEGIN SOLUTION" in path.read_text()
    solved = shell("check", path)
    assert solved.exit_code == 0 and "1 of 1 public checks passed" in solved.stdout and "all tests" not in solved.output
    assert shell("release", path, "--out", tmp_path / "out").exit_code == 0
    open_ = shell("check", tmp_path / "out" / path.name)
    assert open_.exit_code == 1 and "not solved yet" in open_.stdout and "0 of 1" in open_.stdout
    assert "hw9-words   not answered yet" in open_.stdout and "not answered" not in solved.stdout
    wrong = json.loads(path.read_text())
    wrong["cells"][5]["source"] = "def circle_energy(points, radius):\n    return points.sum(1"
    wrong = shell("check", write(tmp_path / "wrong.ipynb", wrong))
    assert wrong.exit_code == 1 and "hw9-energy: SyntaxError" in wrong.stderr and "NameError" in wrong.stdout
    assert shell("check", tmp_path / "nowhere.ipynb").exit_code == 1


# the six homeworks of the course

HOMEWORKS = sorted((ROOT / "nbs").glob("hw*.ipynb"))


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in HOMEWORKS])
def test_homework_is_complete(path):
    notebook = nbformat.read(path, as_version=4)
    student = release.release(notebook).notebook
    tasks = [c for c in notebook.cells if is_solution(c) and c.cell_type == "code"]
    assert 5 <= len(tasks) <= 9
    assert len([c for c in notebook.cells if is_solution(c) and c.cell_type == "markdown"]) == 1
    assert "public check passed" in json.dumps([c.get("outputs") for c in notebook.cells])
    assert "YOUR ANSWER HERE" in json.dumps(student)


@needs_wall
@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in HOMEWORKS])
def test_homework_is_graded_as_it_should(path, tmp_path):
    "The teacher's solution gets all, the stub nothing, every second task exactly its points."
    notebook, known = nbformat.read(path, as_version=4), assignment.read_homework(path)
    names = [mark(c)["grade_id"] for c in notebook.cells if is_solution(c) and c.cell_type == "code"]
    halves = {"even": names[::2], "odd": names[1::2]}
    for student, keep in halves.items():
        hand_in(tmp_path / "s", student, half_solved(notebook, keep))
    hand_in(tmp_path / "s", "stub", release.release(notebook).notebook)
    marks = graded((path, known), tmp_path / "s", tmp_path / "g", sandbox.Limits(), kernel=False)
    points = {task.grade_id: float(task.points) for task in known.tasks}
    for student, keep in {**halves, "stub": []}.items():
        solved = {check_of(notebook, name) for name in keep}
        assert marks[student].points == {t: p if t in solved else 0.0 for t, p in points.items()}, marks[student].wrong
        errors = [o for c in nbformat.read(tmp_path / "g" / "students" / student / "executed.ipynb", as_version=4).cells
                  for o in c.get("outputs", []) if o.output_type == "error"]
        assert not errors
