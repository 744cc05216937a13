"""The command line: exit codes a script can trust, errors a person can use."""
import subprocess
import sys

import nbformat
import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from test_runner import root, write  # noqa: F401  (a fixture)
from typer.testing import CliRunner

from densegen.course import cli


@pytest.fixture
def shell(root, monkeypatch):  # noqa: F811
    monkeypatch.chdir(root)
    monkeypatch.setattr(cli, "console", cli.Console(width=200))
    monkeypatch.setattr(cli, "errors", cli.Console(width=200, stderr=True))
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


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, ["lectures"])
    assert result.exit_code == 2 and "settings.ini" in result.output


@given(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.integers() | st.booleans() | st.text("abc", min_size=1))
def test_settings_arrive_with_their_types(name, value):
    text = str(value).lower() if isinstance(value, bool) else str(value)
    assert cli.settings_from([f"{name}={text}"]) == {name: value}


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
    monkeypatch.setattr(cli, "missing_requirements", lambda: ["papermill"])
    result = shell("doctor")
    assert result.exit_code == 1 and "not installed: papermill" in result.output


def test_data_check_finds_damage(shell, monkeypatch):
    monkeypatch.setattr(cli.library, "check", lambda name: "ok" if name == "mnist" else "expected sha256 1; got 2")
    assert shell("data", "check", "mnist").exit_code == 0
    assert shell("data", "check").exit_code == 1


def test_installed_command_and_version():
    out = subprocess.run([sys.executable, "-c", "from densegen.course.cli import main; main()", "--version"], capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.startswith("densegen ")
