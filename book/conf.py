"""The book through Sphinx, from the notebooks as they are: for machines without Quarto. Order and parts come from sidebar.yml."""
import json
import re
from pathlib import Path

import yaml

NBS = Path(__file__).resolve().parent.parent / "nbs"

project = "densegen"
author = copyright = "the densegen authors"
extensions = ["myst_nb", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
html_theme = "furo"
html_title = "densegen"
html_copy_source = False
html_show_sphinx = False
html_static_path = ["static"]
html_css_files = ["book.css"]
pygments_style, pygments_dark_style = "friendly", "github-dark"
exclude_patterns = ["**.ipynb_checkpoints", "_*", "hw*"]  # homeworks stand there with their solutions
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # what a check of a homework tells the grader


def toctrees() -> str:
    "The sidebar as hidden tables of contents, one for each part."
    contents = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    parts = [part if isinstance(part, dict) else {"section": "", "contents": [part]} for part in contents]
    block = "```{{toctree}}\n:hidden:\n{caption}\n{pages}\n```"
    pages = [[p.removesuffix(".ipynb") for p in part["contents"] if p != "index.ipynb"] for part in parts]
    captions = [f":caption: {part['section']}\n" if part["section"] else "" for part in parts]
    return "\n\n".join(block.format(caption=c, pages="\n".join(p)) for c, p in zip(captions, pages) if p)


def alternative_text(cell: dict) -> str | None:
    "What `caption` put into the metadata of a cell's picture."
    found = [o.get("metadata", {}).get("image/png", {}).get("alt") for o in cell["outputs"]]
    return next(filter(None, found), None)


def prepare(app, page, source) -> None:
    "Hide imports and hidden exports behind a click, drop nbdev's directives, give the index its contents."
    notebook = json.loads(source[0])
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        directives = re.findall(r"^#\|\s*(\w+)", text, re.M)
        code = re.sub(r"^#\|.*\n?", "", text, flags=re.M).strip("\n")
        if cell["cell_type"] != "code":
            continue
        cell["source"] = code
        if alt := alternative_text(cell):
            cell["metadata"]["mystnb"] = {"image": {"alt": alt}}
        if not code:
            cell["metadata"]["tags"] = ["remove-cell"]
        elif "export" in directives or re.match(r"(import|from) ", code):
            cell["metadata"]["tags"] = ["hide-input"]
    if stamp := notebook["metadata"].get("densegen"):
        line = f"*Run at scale {stamp['scale']} on {stamp['date']} in {stamp['seconds']} s.*"
        notebook["cells"].insert(1, {"cell_type": "markdown", "id": "stamp", "metadata": {}, "source": line})
    if page == "index":
        contents = {"cell_type": "markdown", "id": "contents", "metadata": {}, "source": toctrees()}
        notebook["cells"].append(contents)
    source[0] = json.dumps(notebook)


def setup(app) -> None:
    app.connect("source-read", prepare)
