"""The book: every lecture a page, mathematics and figures there, and not one request to any host."""
import json
import posixpath
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT

NAMED = [p for p in (ROOT / "nbs").glob("*.*") if not p.name.startswith((".", "_", "hw"))]
SOURCES = [p for p in NAMED if p.suffix in (".ipynb", ".md")]
PAGES = sorted(p.stem for p in SOURCES)
LECTURES = sorted(p.stem for p in SOURCES if p.suffix == ".ipynb")


class Page(HTMLParser):
    "What a page offers: places to point at, links, pictures, and code."

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.pictures, self.code, self.sidebar = set(), [], [], [], {}
        self.inside, self.entry = "", None
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        self.ids |= {a[key] for key in ("id", "name") if a.get(key)}
        if tag == "article":
            self.inside = "article"
        if "sidebar-tree" in (a.get("class") or ""):
            self.inside = "sidebar"
        if tag == "a" and "href" in a:
            self.links.append((self.inside, a["href"]))
            self.entry = a["href"] if self.inside == "sidebar" else None
        if tag == "img":
            self.pictures.append(a)
        if tag == "pre":
            self.code.append(a)

    def handle_data(self, data):
        if self.entry:
            self.sidebar[self.entry] = self.sidebar.get(self.entry, "") + data

    def handle_endtag(self, tag):
        if tag == "article" or (tag == "aside" and self.inside == "sidebar"):
            self.inside = ""
        if tag == "a":
            self.entry = None


@pytest.fixture(scope="session")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in sorted(site.rglob("*.html"))}


def is_outside(address):
    return re.match(r"(https?:|mailto:|data:|//)", address)


def test_no_link_is_dead(pages, site):
    dead = []
    for name, page in pages.items():
        for _, address in page.links:
            if is_outside(address):
                continue
            file, _, anchor = address.partition("#")
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), file)) if file else name
            missing = anchor and target in pages and unquote(anchor) not in pages[target].ids
            if missing or not (site / target).exists():
                dead.append((name, address))
    assert not dead, dead[:20]


def test_every_picture_has_a_text_that_says_what_is_seen(pages):
    pictures = [(name, picture) for name, page in pages.items() for picture in page.pictures]
    assert len(pictures) > 200
    assert not [(name, p.get("src")) for name, p in pictures if len((p.get("alt") or "").split()) < 3]
    assert not [(name, p["src"]) for name, p in pictures if re.search(r"_images/.*png|^data:", p["src"])]


def test_no_lecture_is_without_links(pages):
    for stem in LECTURES:
        inside = [a for place, a in pages[f"{stem}.html"].links if place == "article"]
        assert [a for a in inside if not a.startswith("#") and not is_outside(a)], stem


def test_each_module_and_its_lecture_know_each_other(pages):
    found = [name for name in pages if name.startswith("api/") and name != "api/index.html"]
    assert len(found) > 90
    for name in found:
        back = {a.split("#")[0] for place, a in pages[name].links if place == "article" and a.startswith("../")}
        assert any(name in {a for _, a in pages[lecture[3:]].links} for lecture in back if lecture[3:] in pages), name


def test_code_can_be_scrolled_by_keyboard(pages):
    assert all(code.get("tabindex") == "0" for page in pages.values() for code in page.code)


def test_numbers_of_the_sidebar_are_those_of_the_prose(pages):
    sidebar = pages["glossary.html"].sidebar
    for stem in LECTURES:
        if stem[0].isdigit():
            assert sidebar[f"{stem}.html"].startswith(f"{stem[:2]} "), stem
    assert {"references.html", "api/index.html"} <= set(sidebar)


def test_site_is_small_and_holds_only_what_is_read(site):
    files = [path for path in site.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    assert not [path.name for path in files if path.suffix in (".doctree", ".pickle", ".map", ".ipynb")]
    assert max(path.stat().st_size for path in files) < 2e6


@pytest.mark.skipif(shutil.which("node") is None, reason="no node on PATH: the search is not asked")
def test_search_finds_lectures_by_their_word_and_functions_by_their_name(site):
    words = ["Langevin", "log_prob", "calibrate", "partition function"]
    command = ["node", ROOT / "tests" / "search_book.js", site, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    langevin, log_prob, calibrate, words = json.loads(done.stdout)
    assert langevin[0] in ("21_samplers", "lab_langevin") and "api/energy-samplers" in langevin[:5]
    assert log_prob[0].startswith("api/") and "api/dense-your_model" in calibrate[:2] and "20_energy" in words[:5]


class Loaded(HTMLParser):
    "Addresses that a browser fetches by itself when it shows a page."

    def __init__(self):
        super().__init__()
        self.addresses = []

    def handle_starttag(self, tag, attributes):
        a = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "audio", "video", "embed"):
            self.addresses.append(a.get("src"))
        if tag == "link" and a.get("rel") not in ("canonical", "index", "search", "next", "prev", "help", "author"):
            self.addresses.append(a.get("href"))


@pytest.mark.parametrize("page", PAGES)
def test_page_is_complete_and_loads_nothing_from_elsewhere(site, page):
    html = (site / f"{page}.html").read_text()
    parser = Loaded()
    parser.feed(html)
    for address in filter(None, parser.addresses):
        assert not re.match(r"(https?:)?//", address), address
        if not address.startswith("data:"):
            assert (site / page).parent.joinpath(address.split("?")[0].split("#")[0]).exists(), address
    assert "<h1>" in html and "#| export" not in html


def test_style_sheets_load_nothing_from_elsewhere(site):
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", sheet.read_text()), sheet.name


def test_every_notebook_has_its_place_in_the_sidebar():
    contents = yaml.safe_load((ROOT / "nbs" / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    listed = [page for part in contents for page in (part["contents"] if isinstance(part, dict) else [part])]
    assert sorted(page.rsplit(".", 1)[0] for page in listed) == PAGES
    numbered = [page for page in listed if page[0].isdigit()]
    assert numbered == sorted(numbered)


def test_one_quarto_file_serves_both():
    link = ROOT / "nbs" / "_quarto.yml"
    assert link.is_symlink() and link.resolve() == ROOT / "_quarto.yml"
    assert yaml.safe_load(link.read_text())["format"]["html"]["html-math-method"] == "mathml"


def columns(width):
    "What the style sheet gives the middle of a window of so many pixels, in pixels: its column, and what is beside it."
    css = (ROOT / "book" / "static" / "book.css").read_text()
    rules = re.findall(r"(?:@media \(min-width: (\d+)em\) \{ )?body \{ (?:--code[^;]*; )?--width: (\d+)em; \}", css)
    em = 17.6 if width >= 97 * 16 else 16
    middle = [int(w) for at, w in rules if width >= 16 * int(at or 0)][-1] * em
    listed = width / 2 - (middle / 2 + 3 * em if width > 82 * 16 else 18.5 * em)
    if width <= 48 * 16:
        middle = width - 15 if "@media (max-width: 48em) { .content { width: 100%; } }" in css else middle
    return middle, max(15 * em, listed) * (width > 63 * 16) + 15 * em * (width > 82 * 16)


@pytest.mark.parametrize("width", [390, 768, 820, 1008, *range(1009, 1920, 50), 1312, 1313, 1366, 1440, 1551, 1552])
def test_nothing_makes_the_page_scroll_sideways(width):
    "The theme's list takes at least 15em from 63em on, its headings 15em from 82em on; a scroll bar takes 15 px."
    middle, sides = columns(width)
    assert middle + sides <= width - 15
