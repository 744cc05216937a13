"""The book in Chromium: pages are opened, and their faults are named.

A page takes a second or two of one core, and the book has more than two hundred: CI opens a sample, each page at one width
and in one theme, and a few at all widths, in both themes and with axe-core. DENSEGEN_BROWSER=all does that with every page,
DENSEGEN_BROWSER=2/3 with the second third of them.
"""
import functools
import http.server
import json
import os
import random
import re
import shutil
import statistics
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book"))
import conf  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no Chromium or Chrome on PATH: the book is not opened", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: the book is not opened")
axe = pytest.importorskip("axe_playwright_python", reason="no axe-core: the book is not opened")

LOOK = (ROOT / "tests" / "book" / "look.js").read_text()
AXE = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
SEEN = [(width, theme) for theme in ("light", "dark") for width in (390, 820, 1366, 1440)]
AXED = [(width, theme) for theme in ("light", "dark") for width in (390, 1366)]
BARE = """() => {  // axe walks over what it is told to leave out, too: glyphs and tokens go, their places and their texts stay
    const formulas = [...document.querySelectorAll("mjx-container")].map((e) => [e, e.getBoundingClientRect()]);
    for (const [e, { width, height }] of formulas) {
        e.replaceChildren();
        e.style = e.hasAttribute("display") ? `height: ${height}px` : `display: inline-block; width: ${width}px; height: ${height}px`;
    }
    for (const e of document.querySelectorAll("pre")) if (e.childElementCount) e.textContent = e.textContent;
}"""
LISTED = [page for _, listed in conf.parts() for page in listed]
PACKAGE = [module.page for module in conf.MODULES]
PAGES = [*LISTED, "references", "search", "api/index", *PACKAGE]
ALL = os.environ.get("DENSEGEN_BROWSER", "").replace("all", "1/1")
PART, PARTS = map(int, ALL.split("/") if ALL else (1, 1))
dice = random.Random(0)
FORMULAS = ["20_energy", "22_learning"]  # pages that are full of them
ONCE = [*dice.sample(LISTED, 20), *dice.sample(PACKAGE, 8), "references", "search", *FORMULAS]
ONCE = {page: dice.choice(SEEN) for page in ONCE}
OFTEN = PAGES[PART - 1 :: PARTS] if ALL else ["index", "glossary", "api/index", "20_energy", *dice.sample(PACKAGE, 1)]
FIGURES = sorted({page for page, *_ in conf.LIVE})
PREFIX = "/some/path/"  # the book stands below the root of its host
PATIENCE = 240_000  # ms, for a machine that has much else to do


class BelowARoot(http.server.SimpleHTTPRequestHandler):
    "The site at PREFIX and nothing beside it."

    def translate_path(self, path):
        return super().translate_path(path.removeprefix(PREFIX) if path.startswith(PREFIX) else "/nowhere")

    def log_message(self, *said):
        pass


@pytest.fixture(scope="module")
def served(site):
    handler = functools.partial(BelowARoot, directory=site)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{PREFIX}"
    server.shutdown()


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as player:
        browser = player.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield browser
        browser.close()


class Visitor:
    "One tab of a browser. It notes what goes wrong while a page loads, and how long that takes."

    def __init__(self, browser, home):
        self.home, self.faults, self.seconds = home, [], {}
        self.tab = browser.new_context(reduced_motion="reduce").new_page()
        self.tab.set_default_timeout(PATIENCE)
        self.tab.on("console", lambda m: m.type == "error" and self.faults.append(f"console: {m.text}"))
        self.tab.on("pageerror", lambda error: self.faults.append(f"console: {error}"))
        self.tab.on("requestfailed", lambda r: self.faults.append(f"request failed: {r.url[:100]}"))
        self.tab.on("response", lambda r: r.status >= 400 and self.faults.append(f"{r.status}: {r.url}"))
        self.tab.on("request", self.asked)

    def asked(self, request):
        if not request.url.startswith((self.home, "data:", "blob:")):
            self.faults.append(f"foreign request: {request.url[:100]}")

    def window(self, width, theme):
        self.tab.set_viewport_size({"width": width, "height": 900})
        self.tab.emulate_media(color_scheme=theme, reduced_motion="reduce")

    def open(self, page, width=1366, theme="light"):
        "Go to a page of the book, and wait until its mathematics is set and its pictures have come."
        self.window(width, theme)
        self.faults.clear()
        begun = time.perf_counter()
        self.tab.goto(self.home + page, wait_until="load")
        self.seconds[page] = time.perf_counter() - begun
        self.tab.evaluate("window.MathJax?.startup?.promise")
        self.tab.evaluate("""async () => {
            for (const image of document.images) image.loading = "eager";
            await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
        }""")

    def look(self, width, theme):
        "Faults of the page that is open, seen in a window of this width."
        self.window(width, theme)
        return self.faults + self.tab.evaluate(LOOK)

    def examine(self, theme="light"):
        """Serious findings of axe-core on the page that is open, contrasts below 7 : 1 too: rule, how often, the first place.

        Tokens of code and glyphs of formulas are left out, thousands on a page: their colours have a test of their own.
        They are taken off the page, so `look` comes first. Only contrasts depend on the theme: all else is judged in light.
        """
        if not self.tab.evaluate("'axe' in window"):
            self.tab.evaluate(AXE)
            self.tab.evaluate(BARE)
        wanted = {"resultTypes": ["violations"], "rules": {"color-contrast-enhanced": {"enabled": True}}}
        if theme == "dark":
            wanted["runOnly"] = ["color-contrast", "color-contrast-enhanced"]
        found = self.tab.evaluate("wanted => axe.run({exclude: ['pre *', 'mjx-container']}, wanted)", wanted)["violations"]
        serious = [finding for finding in found if finding["impact"] in ("serious", "critical")]
        return [f"{f['id']} ({len(f['nodes'])} times): {f['nodes'][0]['html'][:200]}" for f in serious]


@pytest.fixture(scope="module")
def visitor(chromium, served):
    found = Visitor(chromium, served)
    yield found
    slowest = sorted(found.seconds.items(), key=lambda one: -one[1])[:5]
    print(f"\n{len(found.seconds)} pages load in {statistics.median(found.seconds.values()):.2f} s (median); slowest:", ", ".join(f"{page} {seconds:.2f} s" for page, seconds in slowest))


@pytest.mark.parametrize("page", [] if ALL else ONCE)
def test_page_has_no_fault(visitor, page):
    visitor.open(f"{page}.html", *ONCE[page])
    assert not visitor.look(*ONCE[page])


@pytest.mark.parametrize("page", OFTEN)
def test_page_has_no_fault_at_any_width_in_any_theme(visitor, page):
    visitor.open(f"{page}.html")
    found = {f"{width} {theme}": visitor.look(width, theme) for width, theme in SEEN}
    axe = {f"axe {width} {theme}": visitor.examine(theme) for width, theme in AXED if not visitor.window(width, theme)}
    assert not {seen: faults for seen, faults in (found | axe).items() if faults}


@pytest.mark.parametrize("page", FORMULAS)
def test_every_formula_of_the_source_is_set(visitor, page):
    source = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text())
    prose = "".join("".join(c["source"]) for c in source["cells"] if c["cell_type"] == "markdown")
    visitor.open(f"{page}.html")
    assert visitor.tab.locator('mjx-container[display="true"]').count() >= len(re.findall(r"\$\$.+?\$\$", prose, re.S)) > 5


PLANTED = {
    "console: ": "<script>nothing()</script>",
    "404: ": '<script src="none.js"></script>',
    "foreign request: ": '<link rel="stylesheet" href="http://example.invalid/x.css">',
    "sideways ": '<p id="wide" style="width: 3000px">wide</p>',
    "formula with an error: ": r'<span class="math">\(a^b^c\)</span>',
    "command unknown to MathJax: ": r'<span class="math">\(\nothing\)</span>',
    "TeX as text: ": "<article><p>so $x^2$ it is</p></article>",
    "dead anchor: #none": '<a href="#none">there</a>',
    "no real alt text: ": '<img src="_static/favicon.svg" alt="favicon.svg">',
    "picture does not show: ": '<img src="data:image/png;base64,AAAA" alt="a picture of nothing">',
}


@pytest.mark.parametrize("fault", PLANTED)
def test_each_kind_of_fault_would_be_noticed(visitor, fault):
    mathjax = '<script src="_static/mathjax/tex-chtml.js"></script>' if "math" in PLANTED[fault] else ""
    page = f'<!doctype html><html lang="en"><title>t</title>{mathjax}<body>{PLANTED[fault]}</body></html>'
    visitor.tab.route("**/planted.html", lambda route: route.fulfill(body=page, content_type="text/html"))
    visitor.open("planted.html")
    found = visitor.look(1366, "light")
    assert any(said.startswith(fault) for said in found), found
    if fault.startswith("sideways"):
        assert "p#wide" in found[0]


@pytest.mark.parametrize("colour, rule", [("#ccc", "color-contrast"), ("#666", "color-contrast-enhanced")])
def test_axe_would_notice_grey_on_white(visitor, colour, rule):
    page = f'<!doctype html><html lang="en"><title>t</title><main><p style="color: {colour}">pale</p></main></html>'
    visitor.tab.route(f"**/{rule}.html", lambda route: route.fulfill(body=page, content_type="text/html"))
    visitor.open(f"{rule}.html")
    assert {found.split()[0] for found in visitor.examine()} == {rule}


@pytest.mark.parametrize("home", ["below a path", "file"])
def test_code_is_copied_as_it_was_written(chromium, served, site, home):
    visitor = Visitor(chromium, served if home == "below a path" else f"{site.as_uri()}/")
    visitor.tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.open("35_splines.html")
    buttons = visitor.tab.locator("button.copybtn")
    buttons.first.wait_for(state="attached")
    assert buttons.count() == visitor.tab.locator("div.highlight pre").count() - visitor.tab.locator(".cell_output pre").count()
    for place in (".cell_input:not(details *):has(.line)", ".cell_input:not(details *):has(.k)"):  # a long line, and any
        button = visitor.tab.locator(f"{place} button.copybtn").first
        code = visitor.tab.locator(f"{place} pre").first.text_content()
        button.focus()
        visitor.tab.keyboard.press("Enter")
        visitor.tab.locator("button.copybtn.success").first.wait_for()
        assert button.evaluate("e => getComputedStyle(e).opacity") == "1"
        assert visitor.tab.evaluate("navigator.clipboard.readText()").rstrip() == code.rstrip()
        source = "".join("".join(c["source"]) for c in json.loads((ROOT / "nbs" / "35_splines.ipynb").read_text())["cells"])
        assert code.rstrip() in source
    assert not visitor.faults
    visitor.tab.context.close()


@pytest.mark.parametrize("home", ["below a path", "file"])
@pytest.mark.parametrize("page", FIGURES)
def test_live_figures_move_with_their_sliders(chromium, served, site, page, home):
    visitor = Visitor(chromium, served if home == "below a path" else f"{site.as_uri()}/")
    visitor.open(f"{page}.html")
    figures = visitor.tab.locator(".live")
    assert figures.count() == sum(at == page for at, *_ in conf.LIVE)
    for figure in figures.all():
        assert figure.locator("[role=img]").get_attribute("aria-label")
        for slider in figure.locator("input[type=range]").all():
            before = figure.locator("[role=img]").screenshot()
            slider.focus()
            for _ in range(3):
                visitor.tab.keyboard.press("ArrowLeft" if slider.input_value() == slider.get_attribute("max") else "ArrowRight")
            if (step := figure.get_by_role("button", name="One step")).count():
                step.click()
            assert figure.locator("[role=img]").screenshot() != before, slider.get_attribute("name")
    assert not visitor.faults
    visitor.tab.context.close()


CUT = """() => [...document.querySelectorAll(".live svg")].flatMap((picture) => {
    const edge = picture.getBoundingClientRect(), words = [...picture.querySelectorAll("text")];
    const out = (box) => box.right > edge.right + 1 || box.left < edge.left - 1 || box.bottom > edge.bottom + 1 || box.top < edge.top - 1;
    return words.filter((word) => word.textContent.trim() && out(word.getBoundingClientRect())).map((word) => word.textContent);
})"""


@pytest.mark.parametrize("page", FIGURES)
def test_no_word_of_a_live_figure_is_cut_on_a_phone(visitor, page):
    visitor.open(f"{page}.html", 390)
    assert visitor.tab.locator(".live svg text").count() > 2
    assert not visitor.tab.evaluate(CUT)


def test_notes_stand_in_the_margin_of_a_wide_window_beside_nothing_else(visitor):
    visitor.open("15_score.html", 1440)
    notes = visitor.tab.locator(".aside")
    assert notes.count() > 5 and notes.first.is_visible()
    edges = notes.evaluate_all("all => all.map((e) => [e, e.closest('p')].map((e) => e.getBoundingClientRect()).map((r) => [r.left, r.right, r.top, r.bottom]))")
    assert all(note[0] >= prose[1] - 1 and note[1] < 1440 and note[2] >= prose[2] - 1 for note, prose in edges)
    tops = [note[2:] for note, _ in edges]
    assert all(before[1] <= after[0] for before, after in zip(tops, tops[1:]))  # one below the other
    visitor.window(1366, "light")
    assert not notes.first.is_visible()


@pytest.mark.parametrize("word, first", [("Langevin", ("21_samplers", "lab_langevin")), ("log_prob", ("api/",))])
def test_search_finds(visitor, word, first):
    visitor.open(f"search.html?q={word}")
    visitor.tab.locator("#search-results li").first.wait_for()
    found = visitor.tab.locator("#search-results li a").evaluate_all("links => links.map((a) => a.getAttribute('href'))")
    assert found[0].startswith(first), found[:5]
    visitor.tab.wait_for_load_state("networkidle")  # excerpts are fetched; the next page would cut that short
    assert not visitor.faults
