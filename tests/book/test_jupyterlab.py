"""JupyterLab itself in Chromium, as `densegen lab` starts it: the index, a link, a lab that is run, its slider, the pad."""
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import nbformat
import pytest
from conftest import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: JupyterLab is not opened")
pytest.importorskip("jupyterlab", reason="no JupyterLab: it is not opened")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on PATH: JupyterLab is not opened")

PATIENCE = 120  # s, for a machine that has much else to do
PAD = """from densegen.workbench.figures import explore, sheet
from densegen.workbench.pad import Pad, drawn
explore(lambda drawing: (sheet(drawn(drawing), 1, 2), f"ink: {drawn(drawing).sum() > 5}"), drawing=Pad(28))"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    "A checkout of the index, a lecture, a lab at scale smoke and a pad; the address that `densegen lab` prints for it."
    root, home = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("home")
    (root / "nbs").mkdir()
    for name in ("settings.ini", *(f"nbs/{n}" for n in ("index.ipynb", "front.png", "outline.md", "20_energy.ipynb"))):
        shutil.copy(ROOT / name, root / name)
    lab = nbformat.read(ROOT / "nbs" / "lab_langevin.ipynb", as_version=4)
    shown = 1 + next(k for k, cell in enumerate(lab.cells) if cell.source.rstrip().endswith("begin=Dropdown(options=list(STARTS)))"))
    lab.cells = lab.cells[:shown]
    for cell in lab.cells:
        cell.source = cell.source.replace('scale = "cpu"', 'scale = "smoke"')
    nbformat.write(lab, root / "nbs" / "lab_langevin.ipynb")
    pad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(PAD)], metadata=lab.metadata)
    nbformat.write(pad, root / "nbs" / "lab_flow.ipynb")  # the index has a link to this name
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mine = {"HOME": str(home), "PYTHONPATH": str(ROOT)} | {f"JUPYTER_{k}_DIR": str(home / k) for k in ("CONFIG", "DATA", "RUNTIME")}
    words = [sys.executable, "-m", "densegen", "lab", "--no-browser", "--port", str(port)]
    words += ["--", "--allow-root", f"--IdentityProvider.token={'t' * 48}"]
    said = home / "said.txt"
    with said.open("w") as log:
        server = subprocess.Popen(words, cwd=root, env=os.environ | mine, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.findall(r"(http://127\.0\.0\.1:\d+/\S+)", said.read_text())):
            assert server.poll() is None and time.monotonic() < deadline, said.read_text()
            time.sleep(0.2)
        yield root, found[-1].replace("token=...", f"token={'t' * 48}")
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def tab(address):
    "The page at that address, and what goes wrong on it."
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=1000 * PATIENCE)
        page, page_faults = browser.new_page(viewport={"width": 1400, "height": 900}), []
        page.set_default_timeout(1000 * PATIENCE)
        page.on("console", lambda m: m.type == "error" and page_faults.append(f"console: {m.text}"))
        page.on("pageerror", lambda error: page_faults.append(f"page: {error}"))
        page.on("response", lambda r: r.status >= 400 and page_faults.append(f"{r.status}: {r.url}"))
        page.on("request", lambda r: r.url.startswith("http") and "127.0.0.1" not in r.url and page_faults.append(f"foreign: {r.url}"))
        page.faults = page_faults
        page.goto(address[1])
        page.wait_for_selector(".jp-Notebook h1")
        yield page
        browser.close()


FRONT = ".jp-NotebookPanel:not(.lm-mod-hidden)"


def follow(tab, name):
    "Click the index's first link to a file; the notebook that then is in front."
    tab.locator(".lm-TabBar-tab", has_text="index.ipynb").first.click()
    link = tab.locator(f"{FRONT} .jp-Notebook a[href*='{name}']").first
    link.scroll_into_view_if_needed()
    link.click()
    tab.wait_for_selector(f".lm-TabBar-tab.lm-mod-current:has-text('{name}')")
    return tab.locator(FRONT)


def run_all(tab, notebook):
    "Run All Cells, and wait until the kernel has nothing left to do."
    notebook.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()
    tab.locator(".lm-MenuBar-item", has_text="Run").click()
    tab.locator(".lm-Menu-item", has_text="Run All Cells").first.click()
    notebook.locator(".widget-image").first.wait_for()
    notebook.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for()


def picture(notebook):
    "The pixels that the widget shows, fetched from its address."
    return notebook.locator(".widget-image").first.evaluate(
        "async (e) => Array.from(new Uint8Array(await (await fetch(e.src)).arrayBuffer())).join()"
    )


def changed(tab, notebook, before):
    "Wait for another picture than this."
    deadline = time.monotonic() + PATIENCE
    while picture(notebook) == before:
        assert time.monotonic() < deadline, "the picture stays as it was"
        tab.wait_for_timeout(100)


def test_the_printed_address_opens_the_index_and_nobody_asks(tab):
    assert "/lab/tree/index.ipynb" in tab.url
    assert tab.locator(".jp-Notebook h1").first.inner_text().startswith("densegen")
    assert tab.locator(".jp-Notebook img").first.evaluate("(e) => e.decode().then(() => e.naturalWidth)") > 300
    tab.wait_for_timeout(1000)  # notices come late
    assert tab.locator(".Toastify__toast").all_inner_texts() == [] and tab.locator(".jp-Dialog").all_inner_texts() == []


def test_links_of_the_index_lead_to_texts_and_lectures(tab):
    lecture = follow(tab, "20_energy")
    assert lecture.locator("h1").first.inner_text().startswith("Energies")
    lecture.locator("mjx-container, .MathJax").first.wait_for()  # drawn after the text
    assert "not trusted" not in lecture.inner_text().lower()
    follow(tab, "outline.md")


def test_a_lab_runs_and_its_slider_moves_the_picture(tab, address):
    lab = follow(tab, "lab_langevin")
    run_all(tab, lab)
    assert lab.locator("text=Error").count() == 0
    lab.locator(".widget-image").first.scroll_into_view_if_needed()
    before = picture(lab)
    lab.locator(".noUi-handle").first.focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    changed(tab, lab, before)
    tab.keyboard.press("Control+S")
    file, deadline = address[0] / "_lab" / "lab_langevin.ipynb", time.monotonic() + PATIENCE
    while not (cells := [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"])[0].execution_count:
        assert time.monotonic() < deadline, "not saved"
        tab.wait_for_timeout(100)
    assert not [o for c in cells for o in c.outputs if "widget" in str(o.get("data"))]


def test_a_hand_draws_and_python_sees_it(tab):
    notebook = follow(tab, "lab_flow")
    run_all(tab, notebook)
    assert notebook.locator(".widget-html", has_text="ink: False").count()
    before, canvas = picture(notebook), notebook.locator("canvas[aria-label='drawing pad']")
    canvas.scroll_into_view_if_needed()
    at = canvas.bounding_box()
    tab.mouse.move(at["x"] + 60, at["y"] + 100)
    tab.mouse.down()
    tab.mouse.move(at["x"] + 200, at["y"] + 120, steps=8)
    tab.mouse.up()
    changed(tab, notebook, before)
    notebook.locator(".widget-html", has_text="ink: True").wait_for()


def test_nothing_went_wrong_on_the_way(tab):
    assert tab.faults == []
