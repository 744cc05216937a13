"""The book through Sphinx, from the notebooks as they are, for machines without Quarto; its order is in sidebar.yml."""
import ast
import json
import re
import shutil
import sys
from pathlib import Path

import yaml

BOOK = Path(__file__).resolve().parent
NBS = BOOK.parent / "nbs"
sys.path.insert(0, str(BOOK))

import api  # noqa: E402
import asides  # noqa: E402
import links  # noqa: E402
import reading  # noqa: E402
import references  # noqa: E402
import slim  # noqa: E402
import tables  # noqa: E402

project = "densegen"
author = copyright = "the densegen authors"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx_copybutton"]
html_theme = "furo"
html_title = "densegen"
copybutton_selector = "div.highlight pre:not(.cell_output pre)"
html_favicon = "static/favicon.svg"
html_copy_source = False
html_search_scorer = str(BOOK / "static" / "scorer.js")
html_show_sphinx = False
html_use_index = html_domain_indices = False
html_static_path = ["static", "live"]
html_css_files = ["book.css"]
html_js_files = [("book.js", {"defer": "defer"})]
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"
exclude_patterns = ["**.ipynb_checkpoints", "_*", "hw*"]  # homeworks stand there with their solutions
myst_enable_extensions = ["dollarmath", "amsmath", "fieldlist", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # what a check of a homework tells the grader
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}  # assistive MathML stays on
add_module_names = False
python_use_unqualified_type_names = True
nitpicky = True
nitpick_ignore_regex = [("py:(class|exc)", ".*")]  # types of other packages

# live figures: page, heading before which one stands, script, what is in its picture, what to do with it
LIVE = [
    ("30_bijections", "What a normalizing flow must be", "change",
     "A bell above, a bent and skewed one below, joined by lines; an interval of each is filled, of equal area.",
     "Move the interval and bend the map: lengths change, the area does not. Where lines spread, the density falls."),
    ("30_bijections", "A first flow learns", "forces",
     "Points too close to zero under a bell; beside it the loss over the scale as the sum of two curves.",
     "Find the scale at which the two arrows are equally long. What is the mean of z² there, for each spread?"),
    ("21_samplers", "Slow in high dimension", "particles",
     "Three round wells twice; 150 blue and 150 orange points that began in the lower left one are spread over them.",
     "All particles start in one well. Which sampler reaches the others first, and what does each slider change?"),
    ("22_learning", "Score matching", "phantoms",
     "Two orange bells of data; a blue model with a third, tall mode to the right; lines of chains that stay at the data.",
     "The tall mode at the right is a phantom: no data are there. Learn with chains from the data: what do they do to it? "
     "Then let a tenth of the chains begin anywhere, and learn again. How many steps k would do the same?"),
    ("31_coupling", "Digits: from pixels to a density", "layers",
     "Left a cloud of coloured points in circles; right the same points and circles, bent to two moons.",
     "Undo one coupling after the other: each moves points along one axis only. The moons are apart, the latents hang "
     "together: where is the thread between the moons made, and what does a low temperature do to it?"),
    ("33_glow", "Arithmetic with attributes", "latents",
     "A digit 3, a digit 8, a mixture of their latents, the same mixture of their pixels, and 25 small mixtures.",
     "The coarse latents are the 32 of the last level, the fine ones the other 32. Move one share at a time: which of "
     "the two decides what digit the judge reads? Compare the middle with that of the pixels."),
    ("37_continuous", "Few steps", "stream",
     "Grey points of noise, blue particles at the inner ends of thin lines; beside it two falling curves of errors.",
     "Begin with one Euler step: where does all the noise go, and why there? How many steps does the first field need "
     "until the distance is below a tenth, and how many after reflow?"),
    ("52_metrics", "An interval over images", "threshold",
     "A road with sheep, cells coloured as found, missed and false alarms; beside it a ROC curve with a point.",
     "Lower the threshold until 95 % of the anomaly is found: what does it cost in false alarms? Keep that threshold "
     "and change the photograph: does it find as much there?"),
]
MODULES = api.modules()
METHODS = links.methods(MODULES)
WORKS = {}  # what each lecture lists under its References
PLAIN = slim.colourless(pygments_style, pygments_dark_style)


def parts() -> list[tuple[str, list[str]]]:
    "The sidebar: the heading of each part and its pages, without endings."
    contents = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    found = [part if isinstance(part, dict) else {"section": "", "contents": [part]} for part in contents]
    return [(p["section"], [re.sub(r"\.(ipynb|md)$", "", page) for page in p["contents"]]) for p in found]


def toctrees() -> str:
    "The sidebar as hidden tables of contents, one for each part."
    block = "```{{toctree}}\n:hidden:\n{caption}\n{pages}\n```"
    listed = [(c, [page for page in pages if page != "index"]) for c, pages in parts()]
    listed[-1][1].extend(["references", "api/index"])
    captions = [f":caption: {c}\n" if c else "" for c, _ in listed]
    entries = [[brief(page) for page in pages] for _, pages in listed]
    return "\n\n".join(block.format(caption=c, pages="\n".join(e)) for c, e in zip(captions, entries) if e)


def brief(page: str) -> str:
    "An entry of the sidebar: of a long title what stands before its colon, of a lab what stands behind it."
    if not (NBS / f"{page}.ipynb").exists():
        return page
    first = "".join(json.loads((NBS / f"{page}.ipynb").read_text())["cells"][0]["source"])
    before, _, behind = re.search(r"^# (.*)", first, re.M)[1].partition(": ")
    number = re.match(r"(\d+)(?=_)|", page)[0]
    name = behind[:1].upper() + behind[1:] if before == "Lab" else before
    return f"{number} {name}".strip() + f" <{page}>" if behind else page


def gather(target: Path) -> None:
    "All pages in one folder: the notebooks and pages of the course, the package's pages, and the references."
    shutil.rmtree(target, ignore_errors=True)
    (target / "api").mkdir(parents=True)
    for path in NBS.glob("[!_.]*.*"):
        if path.suffix in (".ipynb", ".md", ".png") and not path.name.startswith("hw"):
            shutil.copy2(path, target)
    for module in MODULES:
        (target / f"{module.page}.md").write_text(api.page(module))
    (target / "api" / "index.md").write_text(api.overview(MODULES))
    lectures = [page for _, pages in parts() for page in pages if (NBS / f"{page}.ipynb").exists()]
    (target / "references.md").write_text(references.page(references.load(NBS, lectures)))


def alternative_text(cell: dict, before: str) -> str | None:
    "What a picture shows: as `caption` stored it, else as the code says, else the first sentence of the prose above."
    images = [(o, kind) for o in cell["outputs"] for kind in o.get("data", {}) if kind.startswith("image/")]
    told = [o.get("metadata", {}).get(kind, {}).get("alt") for o, kind in images]
    if not images:
        return None
    return next(filter(None, [*told, said_in_code("".join(cell["source"])), first_sentence(before)]), None)


def said_in_code(source: str) -> str | None:
    "The `alt` of a call, by keyword or as the last of several texts."
    try:
        calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except SyntaxError:  # a line for the shell
        return None
    given = [k.value for call in calls for k in call.keywords if k.arg == "alt"]
    shown = [call for call in calls if ast.unparse(call.func) in ("show_picture", "contact", "sheet")]
    given += [call.args[2] for call in shown if len(call.args) > 2]
    constants = [[n.value for n in ast.walk(value) if isinstance(n, ast.Constant)] for value in given]
    texts = ["".join(filter(lambda v: isinstance(v, str), values)) for values in constants]
    return next(filter(None, texts), None)


def first_sentence(prose: str) -> str | None:
    "In plain text, without heading."
    plain = re.sub(r"^#.*$|[*`$]|\]\([^)]*\)|\[", "", prose, flags=re.M).strip()
    return re.split(r"(?<=[.?!])\s", plain)[0].replace("\n", " ") if plain else None


IMPORTS = re.compile(r"(import|from) ")
NUMPY = re.compile(r"np\.(?:float|int|bool|str)\d*_?\(([^()]*)\)|np\.(True|False)_")


def fold(cell: dict, before: str, number: str, first: int, prose: str = "") -> int:
    "Fold imports, hidden exports and what only draws, and say what it is; give the figure its text and its number."
    text = "".join(cell["source"])
    directives = re.findall(r"^#\|\s*(\w+)", text, re.M)
    code = re.sub(r"^#\|.*\n?", "", text, flags=re.M).strip("\n")
    settings = cell["metadata"]["mystnb"] = {}
    if alt := alternative_text(cell, before):
        settings["image"] = {"alt": alt}
        code = reading.without_caption(code)
    cell["source"] = code
    if not code:
        cell["metadata"]["tags"] = ["remove-cell"]
    elif said := folded(code, {*directives, *cell["metadata"].get("tags", [])}, alt):
        cell["metadata"]["tags"] = ["hide-input"]
        settings |= {"code_prompt_show": said, "code_prompt_hide": said}
    return outputs(cell, number, first, prose)


def folded(code: str, marks: set[str], pictured: str | None) -> str | None:
    "The line under which code is folded, None for code that teaches."
    if IMPORTS.match(code):
        return "Imports"
    if "parameters" in marks:
        return f"Parameters: {defined(code)}"
    if "export" in marks:
        return f"Code of {defined(code)}"
    if drawn := reading.draws(code):
        return f"Drawing: {', '.join(drawn)}"
    return "Code of the figure" if pictured and code.count("\n") > 2 else None


def defined(code: str) -> str:
    "What a cell of the package defines."
    names = [name for node in ast.parse(code).body for name in api.names_of(node)]
    return ", ".join(names) or "this step"


def outputs(cell: dict, number: str, first: int, prose: str) -> int:
    "Number the caption under a picture, and show numbers so that they can be read; how many figures there were."
    seen, figures = False, 0
    for output in cell["outputs"]:
        data = output.get("data", {})
        seen |= any(kind.startswith("image/") for kind in data)
        told = "".join(data.get("text/markdown", ""))
        if seen and told.startswith("*"):
            figure = f"{number}.{first + figures}".lstrip(".")
            data["text/markdown"], seen, figures = f"**Figure {figure}** {told}", False, figures + 1
        if "text/plain" in data:
            data["text/plain"] = reading.rounded(NUMPY.sub(r"\1\2", "".join(data["text/plain"])))
        if list(data) == ["text/plain"] and (table := tables.as_table(data["text/plain"])):
            data["text/markdown"] = table
        if (table := "".join(data.get("text/markdown", ""))).startswith("| "):
            data["text/markdown"] = tables.shorter(table, prose)
    return figures


def joined(cells: list[dict]) -> list[dict]:
    "Folded imports, or folded code, that follow one another without an output as one cell, after all their anchors."
    found, anchors = [], []
    for cell in cells:
        if cell["id"].startswith("to-"):
            anchors.append(cell)
            continue
        if found and (said := together(found[-1], cell)):
            last = found.pop()
            between = "\n\n" if said == "Imports" else "\n\n\n"
            cell = cell | {"source": last["source"] + between + cell["source"]}
            cell["metadata"] |= {"mystnb": {"code_prompt_show": said, "code_prompt_hide": said}}
        found += [*anchors, cell]
        anchors = []
    return found + anchors


def together(one: dict, two: dict) -> str | None:
    "The line under which two folded cells are one, None if they are not."
    first, second = (cell["metadata"].get("mystnb", {}).get("code_prompt_show", "") for cell in (one, two))
    if one.get("outputs") or "Code of the figure" in (first, second):
        return None
    if first == second == "Imports":
        return first
    kinds = [kind for kind in ("Code of ", "Drawing: ") if first.startswith(kind) and second.startswith(kind)]
    return f"{first}, {second[len(kinds[0]):]}" if kinds else None


def markdown(name: str, source: str) -> dict:
    "A cell of prose that only the book has."
    return {"cell_type": "markdown", "id": name, "metadata": {}, "source": source}


def heading(notebook: dict, page: str) -> list[str]:
    "What stands under the title: when the lecture ran, and the page of its module."
    said = []
    if stamp := notebook["metadata"].get("densegen"):
        said.append(f"*Run at scale {stamp['scale']} on {stamp['date']} in {stamp['seconds']} s.*")
    for module in MODULES:
        if module.lecture == page:
            said.append(f"*Its code as a module: [`{module.name}`]({module.page}.md).*")
    return said


def live(page: str, cells: list[dict]) -> None:
    "Put the live figures of a page before their headings; until its script has run, a still picture stands there."
    for _, heading, name, alt, text in (one for one in LIVE if one[0] == page):
        still = f'<img src="_static/{name}.svg" alt="{alt}" width="640" height="340">'
        figure = (f'<div class="live" id="live-{name}">{still}'
                  f"<noscript><p>With scripts this picture has sliders.</p></noscript><p>{text}</p></div>")
        at = next(k for k, c in enumerate(cells) if "".join(c["source"]).startswith(f"## {heading}\n"))
        cells.insert(at, markdown(f"live-{name}", figure))


def prepare(app, page, source) -> None:
    "What the book adds to a notebook: numbers, links, folds, texts of pictures, and the contents on the index."
    if not source[0].startswith("{"):
        if page in PROSE:
            source[0] = links.link(source[0], links.known({"cells": []}, page, MODULES), METHODS, page)
        return
    notebook = json.loads(source[0])
    WORKS[page] = asides.works(notebook)
    meaning = links.known(notebook, page, MODULES)
    exported = {cell for module in MODULES for _, lecture, cell in module.cells if lecture == page}
    number = re.match(r"(\d+)(?=_)|", page)[0]
    prose = "".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    cells, before, told, figures = [], "", False, 1
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            figures += fold(cell, before, number, figures, prose)
            if cell["id"] in exported and not IMPORTS.match(cell["source"]):
                cells.append(markdown(f"to-{cell['id']}", f"(cell-{page}-{cell['id']})="))
        elif cell["cell_type"] == "markdown":
            before = "".join(cell["source"])
            cell["source"] = links.link(before, meaning, METHODS, page)
            if not told:
                cell["source"] = links.outline(cell["source"])
                told = "](outline.md)" in cell["source"]
        cells.append(cell)
    if number:
        cells[0]["source"] = re.sub(r"^# ", f"# {number} ", cells[0]["source"], count=1, flags=re.M)
    if said := heading(notebook, page):
        cells.insert(1, markdown("stamp", " ".join(said)))
    live(page, cells)
    if page == "index":
        cells.append(markdown("contents", toctrees()))
    source[0] = json.dumps(notebook | {"cells": joined(cells)})


def finish_page(app, page, template, context, doctree) -> None:
    here = [name for at, _, name, _, _ in LIVE if at == page]
    data = [f"{name}_data" for name in here if (BOOK / "live" / f"{name}_data.js").exists()]
    for script in ["live", *data, *here] if here else []:
        app.add_js_file(f"{script}.js", loading_method="defer")
    if page.startswith("api/"):
        context["furo_navigation_tree"] = api.contents(next((m for m in MODULES if m.page == page), None), MODULES)
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    if "body" in context:
        body = asides.beside(links.titled(context["body"]), WORKS.get(page, []))
        context["body"] = tables.aligned(reading.wrapping(slim.slim(body, PLAIN)))


def finish_site(app, failure) -> None:
    if failure is None and app.builder.format == "html":
        pictures = slim.smaller(app.outdir / "_images")
        slim.mathematics(app.outdir / "_static" / "mathjax")
        furo = app.outdir / "_static" / "styles" / "furo.css"
        furo.write_text(slim.plain_links(furo.read_text(encoding="utf-8")), encoding="utf-8")
        for path in app.outdir.rglob("*.map"):
            path.unlink()
        for path in app.outdir.rglob("*.html"):
            page = slim.shown(path.read_text(encoding="utf-8"), pictures)
            path.write_text(slim.tight(page), encoding="utf-8")


PROSE = {path.stem for path in NBS.glob("*.md")}


def setup(app) -> None:
    if app.doctreedir.is_relative_to(app.outdir):  # what only Sphinx reads does not belong into the site
        app.doctreedir = app.outdir.parent / f"{app.outdir.name}_doctrees"
    app.srcdir = app.doctreedir / "sources"
    gather(app.srcdir)
    app.connect("source-read", prepare)
    app.connect("html-page-context", finish_page, priority=900)  # after the theme
    app.connect("build-finished", finish_site)
