"""A hand draws on the pad of the labs, in Chromium: what the model gets is what was drawn."""
import shutil

import pytest

from densegen.workbench.pad import Pad, drawn

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: nothing is drawn")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium or Chrome on PATH: nothing is drawn")

MODEL = """
const state = { side: 28, value: new DataView(new Uint8Array(784).buffer) };
window.model = { get: (name) => state[name], set: (name, value) => { state[name] = value; }, save_changes() {}, on() {} };
window.pixels = () => Array.from(new Uint8Array(state.value.buffer));
"""


@pytest.fixture(scope="module")
def tab():
    "A page with a pad in its upper left corner."
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=240_000)
        page = browser.new_page()
        code = Pad._esm.replace("export default { render };", "render({ model: window.model, el: document.body });")
        page.set_content("<body style='margin: 0'></body>")
        page.add_script_tag(content=MODEL)
        page.add_script_tag(content=code, type="module")
        page.wait_for_selector("canvas")
        yield page
        browser.close()


def stroke(tab, places):
    "Draw through places, (column, row) in pixels of the image; the image that the model gets."
    zoom = 10
    tab.mouse.move(places[0][0] * zoom, places[0][1] * zoom)
    tab.mouse.down()
    for x, y in places[1:]:
        tab.mouse.move(x * zoom, y * zoom, steps=5)
    tab.mouse.up()
    return drawn(bytes(tab.evaluate("pixels()")))[0, 0]


def test_a_stroke_arrives_where_it_was_drawn_and_can_be_taken_away(tab):
    image = stroke(tab, [(6, 20), (22, 20)])
    row, column = image.sum(1), image.sum(0)
    assert abs(int(row.argmax()) - 20) <= 1 and column[8:20].min() > 1 and column[:3].max() == 0
    assert 0.03 < image.mean() < 0.2
    tab.click("text=paint black")
    left = stroke(tab, [(6, 20), (22, 20)])  # a soft pen leaves soft edges
    assert left[19:21, 8:20].max() == 0 and left.mean() < 0.5 * image.mean()
    tab.click("text=clear")
    assert sum(tab.evaluate("pixels()")) == 0
