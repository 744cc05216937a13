"""The book: every lecture a page, mathematics and figures there, and not one request to any host."""
import functools
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser

import pytest
import yaml
from conftest import ROOT

PAGES = sorted(p.stem for p in (ROOT / "nbs").glob("*.ipynb") if not p.name.startswith((".", "_", "hw")))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "book", ROOT / "nbs", folder]
    done = subprocess.run([*command, "-d", folder / ".doctrees"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


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
    assert sorted(page.removesuffix(".ipynb") for page in listed) == PAGES
    numbered = [page for page in listed if page[0].isdigit()]
    assert numbered == sorted(numbered)


def test_one_quarto_file_serves_both():
    link = ROOT / "nbs" / "_quarto.yml"
    assert link.is_symlink() and link.resolve() == ROOT / "_quarto.yml"
    assert yaml.safe_load(link.read_text())["format"]["html"]["html-math-method"] == "mathml"


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on PATH: the book is not opened")


@pytest.fixture(scope="module")
def served(site):
    "The site behind a server on this machine, which notes what is asked for."
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Content-Security-Policy", "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:")
            super().end_headers()

        def log_message(self, form, *values):
            asked.append(values[0])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def visit(address, profile):
    "The page after its scripts have run, and the requests to other hosts that the policy refused."
    flags = "--headless --no-sandbox --disable-gpu --virtual-time-budget=20000 --enable-logging=stderr".split()
    command = [BROWSER, *flags, f"--user-data-dir={profile}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    return done.stdout, [line for line in done.stderr.splitlines() if "Content Security Policy" in line]


@needs_browser
def test_the_browser_would_notice_a_request_to_another_host(served, site, tmp_path):
    (site / "bad.html").write_text('<img src="http://example.invalid/x.png">')
    assert visit(f"{served[0]}/bad.html", tmp_path / "profile")[1]


@needs_browser
@pytest.mark.parametrize("page", [p for p in PAGES if p in ("index", "20_energy", "31_coupling")])
def test_in_a_browser(served, page, tmp_path):
    address, asked = served
    dom, refused = visit(f"{address}/{page}.html", tmp_path / "profile")
    assert refused == []
    source = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text())
    prose = "".join("".join(c["source"]) for c in source["cells"] if c["cell_type"] == "markdown")
    formulas = len(re.findall(r"\$\$.+?\$\$", prose, re.S))
    assert len(re.findall(r'<mjx-container[^>]*display="true"', dom)) >= formulas
    assert "<mjx-merror" not in dom and "Math input error" not in dom
    assert f"GET /{page}.html HTTP/1.1" in asked
