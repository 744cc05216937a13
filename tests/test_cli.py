"""The command line: exit codes a script can trust, errors a person can use."""
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import ROOT
from test_runner import root, write  # noqa: F401  (a fixture)
from typer.testing import CliRunner

from densegen.course import cli, console, doctor, lectures


@pytest.fixture
def shell(root, monkeypatch):  # noqa: F811
    monkeypatch.chdir(root)
    monkeypatch.setattr(console.console, "width", 200)
    monkeypatch.setattr(console.errors, "width", 200)
    return lambda *words: CliRunner().invoke(cli.app, words)


def test_run_prints_claims_with_measured_and_published_values(shell, root):  # noqa: F811
    lines = "from densegen.workbench.run import *", "start(scale)", "claim('it holds', True, value=0.12345678, reference='0.12')", "report()"
    write(root, "10_a", *lines)
    result = shell("run", "--scale", "smoke")
    assert result.exit_code == 0 and "1 of 1 lectures" in result.output
    assert all(word in result.output for word in ("it holds", "0.1235", "0.12", "make lab", "make site"))
    listed = shell("lectures", "--scale", "smoke").output
    assert "1 not judged" in listed and "Title of 10_a" in listed
    assert shell("run", "--scale", "cpu").exit_code == 0
    assert "1 of 1" in shell("lectures", "--scale", "cpu").output


def test_one_failure_does_not_stop_the_others_and_ends_with_1(shell, root):  # noqa: F811
    write(root, "10_bad", "1 / 0")
    write(root, "11_good", "1")
    result = shell("run", "--scale", "smoke")
    assert result.exit_code == 1
    assert all(word in result.output for word in ("1 of 2 lectures", "cell 2", "ZeroDivisionError", "1 / 0", "10_bad.ipynb"))


def test_two_jobs_run_at_once_and_share_the_cores(shell, root):  # noqa: F811
    meet = "import os, pathlib, time\nhere = pathlib.Path('{0}')\nhere.write_text(os.environ['OMP_NUM_THREADS'])\n"
    meet += "deadline = time.time() + 60\nwhile not pathlib.Path('{1}').exists():\n    assert time.time() < deadline\n    time.sleep(0.1)"
    write(root, "10_a", meet.format(root / "a", root / "b"))
    write(root, "11_b", meet.format(root / "b", root / "a"))
    result = shell("run", "--scale", "smoke", "--jobs", "2")
    assert result.exit_code == 0 and "2 of 2 lectures" in result.output
    assert (root / "a").read_text() == (root / "b").read_text() == str(max(1, torch.get_num_threads() // 2))


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "coupilng"], "did you mean '31_coupling'"),
        (["run", "31", "--set", "m=1"], "did you mean"),
        (["run", "31", "--set", "n"], "expected name=value"),
        (["data", "check", "mnits"], "did you mean 'mnist'"),
        (["data", "fetch", "mnits"], "did you mean 'mnist'"),
    ],
)
def test_senseless_requests_end_with_2(shell, root, words, message):  # noqa: F811
    write(root, "31_coupling", "1", parameters='scale = "cpu"\nn = 1\nmm = 2')
    result = shell(*words)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output
    assert not (root / "_runs").exists()


def test_unknown_scale_ends_with_2(shell):
    assert shell("run", "--scale", "huge").exit_code == 2


def test_set_reaches_the_notebook(shell, root):  # noqa: F811
    write(root, "10_a", "print(n + 1)")
    assert shell("run", "10", "--scale", "smoke", "--set", "n=41").exit_code == 0
    executed = nbformat.read(root / "_runs/smoke/10_a,n=41/10_a.ipynb", as_version=4)
    assert executed.cells[-1].outputs[0].text == "42\n"


def test_keep_needs_a_finished_run(shell, root):  # noqa: F811
    write(root, "10_a", "print(n)")
    assert shell("keep", "--scale", "smoke").exit_code == 1
    shell("run", "--scale", "smoke")
    assert shell("keep", "--scale", "smoke").exit_code == 0
    assert nbformat.read(root / "nbs/10_a.ipynb", as_version=4).cells[-1].outputs[0].text == "1\n"


def test_readme_is_written_and_checked(shell, root):  # noqa: F811
    write(root, "index", "1 + 1")
    assert shell("readme", "--check").exit_code == 1
    assert shell("readme").exit_code == 0 and shell("readme", "--check").exit_code == 0
    text = (root / "README.md").read_text()
    assert text.startswith("# Title of index") and "```python\n1 + 1\n```" in text


def test_the_readme_of_this_checkout_is_current():
    assert (ROOT / "README.md").read_text() == cli.readme_text(ROOT)


def test_doctor_finds_this_machine_fit(shell):
    result = shell("doctor")
    assert result.exit_code == 0 and "the course can run here" in result.output


def test_doctor_names_what_is_missing(shell, monkeypatch):
    monkeypatch.setattr(doctor, "missing_requirements", lambda: ["papermill"])
    result = shell("doctor")
    assert result.exit_code == 1 and "not installed: papermill" in result.output


def test_data_check_finds_damage(shell, monkeypatch):
    monkeypatch.setattr("densegen.workbench.data.check", lambda name: "ok" if name == "mnist" else "expected sha256 1; got 2")
    assert shell("data", "check", "mnist").exit_code == 0
    assert shell("data", "check").exit_code == 1


def test_installed_command_and_version():
    out = subprocess.run([sys.executable, "-c", "from densegen.course.cli import main; main()", "--version"], capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.startswith("densegen ")


ODD = "[/x]"
COMMANDS = [
    (["run", ODD], 2),
    (["run", "10", "--set", ODD], 2),
    (["run", "10", "--set", f"{ODD}=1"], 2),
    (["run", "10", "--set", f"n={ODD}"], 2),
    (["run", "10", "--device", ODD], 2),
    (["run", "--scale", ODD], 2),
    (["keep", ODD], 2),
    (["lectures", "--scale", ODD], 2),
    (["data", "check", ODD], 2),
    (["data", "fetch", ODD], 2),
    (["score", ODD, "--model", ODD, "--out", "out"], 2),
    (["score", "nbs", "--model", "settings.ini", "--masks", ODD, "--out", "out"], 2),
]


@pytest.mark.parametrize("words, code", COMMANDS, ids=lambda w: " ".join(w) if isinstance(w, list) else str(w))
def test_brackets_are_words(shell, root, words, code):  # noqa: F811
    write(root, "10_a", "1")
    result = shell(*words)
    assert result.exit_code == code and ODD in result.output and "Traceback" not in result.output
    assert not (root / "_runs").exists()


def test_titles_with_brackets_are_listed(shell, root):  # noqa: F811
    write(root, "10_[red]", "1")
    listed = shell("lectures")
    assert listed.exit_code == 0 and "Title of 10_[red]" in listed.output


def test_hostile_lectures_fail_alone(shell, root):  # noqa: F811
    claims = "from densegen.workbench.run import *\nstart(scale)\nclaim('x in [/0, 1] :bug:', True, value='[red]5', reference='[/]')\nreport()"
    file = "import os, pathlib, time\nfolder = pathlib.Path(os.environ['DENSEGEN_RUN'])\n"
    write(root, "10_claims", claims)
    write(root, "11_error", "raise ValueError('[/wrong] value')  # [/line]")
    write(root, "12_progress", file + "(folder / 'progress.json').write_text('{\"label\": 1, \"step\": []}')\ntime.sleep(1)")
    write(root, "13_damaged", file + "(folder / 'claims.json').write_text('[1')")
    (root / "nbs" / "14_broken.ipynb").write_text("{")
    write(root, "15_parameters", "1", parameters="scale = (")
    result = shell("run", "--scale", "smoke", "--jobs", "2")
    assert result.exit_code == 1 and "2 of 6 lectures ran" in result.output and "Traceback" not in result.output
    for word in ("x in [/0, 1] :bug:", "[red]5", "[/]", "[/wrong] value", "# [/line]", "damaged claims", "expected a notebook"):
        assert word in result.output, word
    assert shell("lectures", "--scale", "smoke").exit_code == 0
    assert shell("keep", "--scale", "smoke", "10").exit_code == 0
    assert shell("keep", "--scale", "smoke", "14").exit_code == 1


SET = {
    "text": ('""', {"5": "5", "12:30": "12:30", "no": "no", "010": "010", "a # b": "a # b", "[1]": "[1]", "": "", "x" * 9999: "x" * 9999}),
    "list": ("[0]", {"[1,2]": [1, 2], "[]": []}),
    "whole": ("1", {"5": 5, "-5": -5, "1_000": 1000}),
    "real": ("0.5", {"5": 5.0, "1e-3": 1e-3, "-.5": -0.5}),
    "truth": ("True", {"False": False}),
    "open": ("None", {"3": 3, "'a'": "a", "None": None}),
}


@pytest.mark.parametrize("kind", SET)
def test_set_takes_the_type_of_the_default(root, kind):  # noqa: F811
    default, values = SET[kind]
    lecture = write(root, "10_a", "1", parameters=f'scale = "cpu"\nn = {default}')
    for text, value in values.items():
        found = lectures.typed(lecture, lectures.settings_from([f"n={text}"]))["n"]
        assert found == value and type(found) is type(value)


REFUSED = ["[", "&a [*a]", "!!python/name:os.system", "5 # five", "010", "2.5", "no", "1, 2", "1] + [2", "x" * 100_000, "[" * 100_000, "__import__('os')", ""]


@pytest.mark.parametrize("text", REFUSED, ids=lambda t: t[:20])
def test_set_refuses_what_is_no_literal(shell, root, text):  # noqa: F811
    write(root, "10_a", "1")
    result = shell("run", "10", "--set", f"n={text}")
    assert result.exit_code == 2 and "--set n: expected a value of type int" in result.output
    assert len(result.output) < 300 and not (root / "_runs").exists()


@pytest.mark.parametrize("words", [["scale=smoke"], ["seed=1"], ["device=cpu"], ["n=1", "--set", "n=2"]], ids=str)
def test_nothing_is_set_twice(shell, root, words):  # noqa: F811
    write(root, "10_a", "1", parameters='scale = "cpu"\nseed = 0\ndevice = "cpu"\nn = 1')
    result = shell("run", "10", "--scale", "cpu", "--set", *words)
    assert result.exit_code == 2 and "expected a parameter that nothing else sets" in result.output
    assert not (root / "_runs").exists()


def test_values_arrive_as_they_are(shell, root):  # noqa: F811
    write(root, "10_a", "print([n, m])", parameters='scale = "cpu"\nn = [0]\nm = ""')
    assert shell("run", "--scale", "smoke", "--set", "n=[1, 2.5, 'a']", "--set", "m=12:30 # x").exit_code == 0
    (path,) = (root / "_runs" / "smoke").glob("10_a*/10_a.ipynb")
    assert nbformat.read(path, as_version=4).cells[-1].outputs[0].text == "[[1, 2.5, 'a'], '12:30 # x']\n"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_a_timeout_is_a_number_of_seconds(shell, root, seconds):  # noqa: F811
    write(root, "10_a", "1")
    assert shell("run", "10", "--timeout", seconds).exit_code == 2 and not (root / "_runs").exists()


@pytest.mark.parametrize("name", ["readme", "lectures", "site", "lab", "keep", "run"])
def test_outside_a_checkout_each_command_says_so(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, [name])
    assert result.exit_code == 2 and "settings.ini" in result.output and "Traceback" not in result.output


def test_the_command_answers_before_torch_is_there():
    script = "import sys, densegen.course.cli; print([m for m in ('torch', 'papermill', 'rfc3987_syntax.syntax_helpers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip() == "[]"


@pytest.mark.parametrize("words", [["-h"], ["--help"], ["score", "-h"]])
def test_help(words):
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0 and "Usage" in result.output


def test_the_package_is_a_command():
    call = [sys.executable, "-m", "densegen", "--version"]
    assert subprocess.run(call, capture_output=True, text=True, check=True, cwd=ROOT).stdout == "densegen 0.1.0\n"


def test_lab_opens_a_working_copy_and_passes_options_on(shell, root, monkeypatch):  # noqa: F811
    calls = []
    monkeypatch.setattr(cli, "_call", lambda *words, **environment: calls.append(words))
    write(root, "index", "1")
    original = (root / "nbs" / "index.ipynb").read_bytes()
    assert shell("lab", "--", "--no-browser", "--port", "9999").exit_code == 0
    ours = ("--LabApp.default_url=/lab/tree/index.ipynb", "--ContentsManager.pre_save_hook=densegen.course.lectures.without_widgets")
    assert calls[0][1:] == ("lab", str(root / "_lab" / "index.ipynb"), *ours, "--no-browser", "--port", "9999")
    (root / "_lab" / "index.ipynb").write_text("mine")
    write(root, "10_new", "1")
    shell("lab", "--port", "9998", "--no-browser")
    assert calls[1][1:] == ("lab", str(root / "_lab" / "index.ipynb"), *ours, "--port=9998", "--no-browser")
    assert (root / "_lab" / "index.ipynb").read_text() == "mine" and (root / "_lab" / "10_new.ipynb").exists()
    shell("lab", "--refresh")
    assert (root / "_lab" / "index.ipynb").read_bytes() == original == (root / "nbs" / "index.ipynb").read_bytes()
    assert [p.read_text() for p in root.glob("_lab-*/index.ipynb")] == ["mine"]
