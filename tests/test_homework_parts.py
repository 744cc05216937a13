"""The parts of the grader one at a time, and what each of them must never do."""
import contextlib
import copy
import csv
import html
import json
import os
import socket
import threading

import numpy as np
import pytest
import torch
from homework_helpers import CANARY, hand_in, solve, tiny

from densegen.course import assignment, gradebook, grading, handed_in, homework, judging, plain, sandbox, student
from densegen.course.processes import Busy, owned
from densegen.course.release import BrokenHomework, mark

OPEN = sandbox.Sandbox("none", False)  # for submissions of our own
NAME = "tiny-double-check"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    "The teacher's notebook and what is read from it."
    path = hand_in(tmp_path_factory.mktemp("teacher"), "tiny", tiny())
    return path, assignment.read_homework(path)


@pytest.fixture(scope="module")
def wall():
    try:
        return sandbox.find_sandbox()
    except sandbox.NoSandbox as reason:
        pytest.skip(f"no sandbox: {reason}")


def cells_of(notebook):
    return handed_in.read_submission(json.dumps(notebook).encode())


def sources(notebook):
    return {mark(cell).get("grade_id"): cell.source for cell in notebook.cells}


# what was handed in


def test_given_cells_are_those_of_the_release(teacher):
    notebook = tiny()
    for place in (1, 4):
        notebook.cells[place].source = "print('mine')"
    notebook.cells[4].metadata.nbgrader |= {"locked": False, "solution": True}
    del notebook.cells[6]
    made, places, notes = handed_in.restore(teacher[1], cells_of(notebook))
    released = sources(teacher[1].released)
    given = [name for name in released if name not in ("tiny-double", "tiny-spread", "tiny-named", "tiny-words")]
    assert [sources(made)[name] for name in given] == [released[name] for name in given]
    assert sources(made)["tiny-double"] == tiny().cells[3].source and len(places) == len(released)
    assert {"tiny-imports: was changed; restored", f"{NAME}: was changed; restored"} <= set(notes)


def test_what_is_executed_shows_nothing_hidden(teacher):
    made, _, _ = handed_in.restore(teacher[1], cells_of(tiny()))
    assert CANARY not in json.dumps(made) and "agrees(" not in json.dumps(made)


def test_another_homework_is_refused(teacher):
    with pytest.raises(handed_in.Unreadable, match="expected cells of tiny; got other-"):
        handed_in.restore(teacher[1], cells_of(tiny("other")))


@pytest.mark.parametrize("make, told", [
    (lambda path, other: path.symlink_to(other), "expected a file; "),
    (lambda path, other: os.link(other, path), "second name"),
    (lambda path, other: os.mkfifo(path), "got something else"),
    (lambda path, other: path.touch() or os.truncate(path, handed_in.LARGEST + 1), "expected at most 20,000,000 bytes"),
])
def test_only_plain_files_are_read(tmp_path, make, told):
    (tmp_path / "another's").write_text("solution")
    make(tmp_path / "mine.ipynb", tmp_path / "another's")
    with pytest.raises(handed_in.Unreadable, match=told):
        handed_in.read_file(tmp_path / "mine.ipynb")


def test_who_handed_in_what(tmp_path):
    for place in ("anna", "bert/tiny", "bert/draft", "carl/tiny", "carl", "dora/one", "dora/two"):
        hand_in(tmp_path / "s", place, tiny())
    (tmp_path / "s" / "emil").symlink_to(tmp_path / "s" / "bert")
    (tmp_path / "s" / "notes.txt").touch()
    found, others = grading.find_submissions(tmp_path / "s", "tiny")
    assert others == ["notes.txt"]
    assert {s.student: s.refusal.partition(";")[0] for s in found} == {
        "anna": "", "bert": "", "carl": "expected one submission of a student", "carl.ipynb": "expected one submission of a student",
        "dora": "expected one notebook", "emil": "expected a file"}
    assert next(s.path for s in found if s.student == "bert").name == "tiny.ipynb"


# judging


def judged(teacher, answers, number=0, largest=None):
    "What is said to these answers to a task: a value or an error for each call."
    questions = judging.Questions(teacher[1], "secret")
    questions.largest = largest or {}
    task = teacher[1].tasks[number]
    drawn = questions.drawn[task.grade_id]
    found = [[answers(*arguments) for arguments in calls] for calls in drawn]
    return judging.judge_task(task, json.dumps(found), questions)


def test_right_answers_and_no_others(teacher):
    value = lambda found: {"value": plain.encode(found)}
    assert judged(teacher, lambda x: value(2 * x)) is None
    assert "differ" in judged(teacher, lambda x: value(2.01 * x))
    assert "differ" in judged(teacher, lambda x: value(np.nan * x))
    assert "shape" in judged(teacher, lambda x: value((2 * x)[:, None]))
    assert judged(teacher, lambda x: {"error": "ZeroDivisionError"}) == "double: ZeroDivisionError"
    assert judged(teacher, lambda x: {}) and judged(teacher, lambda x: {"points": 100})
    assert "cannot be judged" in judged(teacher, lambda x: {"value": {"pickle": "x"}})


def test_one_wrong_call_of_three_is_wrong(teacher):
    calls = iter(range(3))
    assert judged(teacher, lambda x: {"value": plain.encode((2 + (next(calls) == 2)) * x)})


def test_an_answer_has_a_size(teacher):
    large = lambda x: {"value": plain.encode(np.zeros(2000))}
    assert "expected at most 1032 numbers; got 2000" in judged(teacher, large, 1, {"tiny-spread-check": 1032})


def test_no_answer_is_no_point(teacher):
    questions, task = judging.Questions(teacher[1], "secret"), teacher[1].tasks[0]
    for text in (None, "", "[]", "[[]]", '[[{"value": 1}]]', "[" * 10**5, '{"points": 2}'):
        assert judging.judge_task(task, text, questions), text


def test_a_judge_cannot_change_the_next_students_arguments(teacher):
    def spoils(result, x):
        x *= 0

    check = homework.Check("f", lambda rng: (rng.normal(size=3),), spoils, True)
    task = assignment.Task("t", 1, 0, [check])
    questions = judging.Questions(teacher[1]._replace(tasks=[task]), "secret")
    before = copy.deepcopy(questions.drawn)
    assert judging.judge_task(task, json.dumps([[{"value": 1}] * 3]), questions) is None
    assert np.array_equal(before["t"][0][0][0], questions.drawn["t"][0][0][0])


def test_the_same_function_answers_the_same():
    "Random numbers of a student's own do not make the points a lottery."
    calls = [["f", [plain.encode(()), plain.encode(())]]]
    (first, second), = json.loads(student.answers(calls, {"f": lambda: torch.randn(3)}))
    assert first == second and "value" in first


# behind the wall


def behind(wall, source, limits):
    "How a notebook of one cell ends, and what it printed."
    cells = [{"cell_type": "code", "source": source}]
    request = {"notebook": {"cells": cells}, "calls": {}, "kernel": False, "cell": limits.cell, "limits": limits._asdict()}
    outcome = sandbox.confined(wall, "densegen.course.student.main", json.dumps(request).encode(), limits)
    outputs, _ = judging.read_lines(outcome.output)
    return outcome, "".join(output.get("text", "") for output in outputs.get(0, []))


TOO_MUCH = {
    "time": ({"cell": 1, "wall": 2}, "import signal, time\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nfor _ in range(25): time.sleep(1)"),
    "memory": ({"memory": 2 * 10**8}, "import time\nkept = bytearray(b'x' * 3 * 10**8)\ntime.sleep(30)"),
    "processes": ({"processes": 8}, "import os, time\nfor _ in range(4): os.fork()\ntime.sleep(30)"),
    "output": ({"output": 10**6}, "import os\nwhile True:\n    for n in range(3, 9):\n        try: os.write(n, b'x' * 10**5)\n"
                                  "        except OSError: pass"),
}


@pytest.mark.parametrize("limit", TOO_MUCH)
def test_a_limit_ends_it(wall, limit):
    changed, source = TOO_MUCH[limit]
    outcome, _ = behind(wall, source, sandbox.Limits(**({"cell": 15, "wall": 30} | changed)))
    assert outcome.stopped == limit and outcome.seconds < 20


def test_what_is_seen_inside(wall, tmp_path, monkeypatch):
    "No secret of the environment, no file of ours, no port and no socket of this machine."
    monkeypatch.setenv("DENSEGEN_SECRET", CANARY)
    (tmp_path / "secret.txt").write_text(CANARY)
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        there = stack.enter_context(socket.socket(socket.AF_UNIX))
        there.bind("\0densegen-part")
        there.listen()
        _, told = behind(wall, f"""
import glob, os, socket
print(sorted(os.environ))
for name in (*glob.glob("/proc/*/environ"), {str(tmp_path / 'secret.txt')!r}):
    try: print(open(name).read())
    except OSError: pass
for family, place in ((socket.AF_INET, ("127.0.0.1", {port})), (socket.AF_UNIX, chr(0) + "densegen-part")):
    try:
        socket.socket(family).connect(place)
        print("connected")
    except OSError: pass
print("writable" if os.access("/course/densegen", os.W_OK) else "read-only")
""", sandbox.Limits(cell=20, wall=40))
    names = told.splitlines()[0]
    assert "read-only" in told and "'HOME'" in names and "DENSEGEN_WORKER" not in names
    assert CANARY not in told and "connected" not in told


# the class


def grade(teacher, folder, out, **changed):
    path, known = teacher
    submissions, _ = grading.find_submissions(folder, known.name)
    settings = grading.Settings(OPEN, "secret", kernel=False)._replace(**changed)
    kept = {}
    marks = grading.grade_class(known, path, submissions, out, settings, watch=lambda m, old: kept.update({m.student: old}))
    return {m.student: m.total for m in marks}, {name for name, old in kept.items() if old}


def test_what_is_graded_anew(teacher, tmp_path):
    "What changed, and nothing else; who has gone is forgotten."
    half = solve(tiny(), {"tiny-double": tiny().cells[3].source})
    for name in ("anna", "bert"):
        hand_in(tmp_path / "s", name, half)
    assert grade(teacher, tmp_path / "s", tmp_path / "g") == ({"anna": 2.0, "bert": 2.0}, set())
    hand_in(tmp_path / "s", "bert", tiny())
    (tmp_path / "s" / "anna.ipynb").rename(tmp_path / "s" / "carl.ipynb")
    assert grade(teacher, tmp_path / "s", tmp_path / "g") == ({"bert": 6.0, "carl": 2.0}, set())
    assert grade(teacher, tmp_path / "s", tmp_path / "g") == ({"bert": 6.0, "carl": 2.0}, {"bert", "carl"})
    assert grade(teacher, tmp_path / "s", tmp_path / "g", secret="another")[1] == set()
    with open(tmp_path / "g" / "grades.csv", newline="") as file:
        assert [row["student"] for row in csv.DictReader(file)] == ["bert", "carl"]
    with owned(tmp_path / "g"), pytest.raises(Busy):
        grade(teacher, tmp_path / "s", tmp_path / "g")


def test_a_wrong_solution_of_the_teacher_is_told(teacher, tmp_path):
    notebook = tiny()
    notebook.cells[7].source = notebook.cells[7].source.replace("n * len(word)", "n")
    path = hand_in(tmp_path, "tiny", notebook)
    questions = judging.Questions(teacher[1], "secret")
    with pytest.raises(BrokenHomework, match="tiny-named-check"):
        grading._teacher(teacher[1], questions, path, tmp_path / "out", grading.Settings(OPEN, "x", kernel=False), threading.Event())


def test_texts_of_strangers_stay_texts(teacher, tmp_path):
    marks = gradebook.Marks("<b>=cmd()", status="+x", points={NAME: 2.0}, wrong={NAME: "<script>"}, notes=["<i>"], answers={})
    page = gradebook.student_page(teacher[1], marks).decode()
    assert not [word for word in ("<script>", "<i>", "<b>") if word in page] and html.escape("<script>") in page
    gradebook.write_tables(tmp_path, teacher[1], [marks, gradebook.Marks("=1+1", points={})])
    rows = list(csv.reader((tmp_path / "grades.csv").read_text().splitlines()))
    assert [row[0] for row in rows[1:]] == ["<b>=cmd()", "'=1+1"] and rows[1][2] == "'+x"
