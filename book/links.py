"""Names in prose become links while the book is built: lectures, functions, classes. The notebooks stay as they are."""

import ast
import html
import json
import re
from pathlib import Path

from api import Module

NBS = Path(__file__).resolve().parent.parent / "nbs"
STEMS = {path.stem for path in NBS.glob("[!_.]*.ipynb")}
ANY_STEM = "|".join(sorted(STEMS, key=len, reverse=True))
SPAN = re.compile(rf"(?<!`)`([^`\n]+)`(?!`)|(?<![\w/`])({ANY_STEM})(?![\w`]|\.\w)")
CALL = re.compile(r"([A-Za-z_]\w*)(?:\.(\w+))?(?:\(.*\))?")
LINK = re.compile(r"!?\[[^\]]*\](?:\([^)\s]*\)|\[[^\]]*\])")
LECTURE = re.compile(rf'(<a class="reference internal" href="(?:\.\./)?({ANY_STEM})\.html(?:#[^"]*)?">)(?:<[^>]*>)*\2(?:\.ipynb)?(?:<[^>]*>)*?</a>')
IMPORT = re.compile(r"^from densegen\.([\w.]+) import \(?([\w, \n]+)\)?", re.M)


def names(modules: list[Module]) -> dict[str, list[str]]:
    "Each public name with the modules that define it."
    found = {}
    for module in modules:
        for name in module.public:
            found.setdefault(name, []).append(module.name)
    return found


def known(notebook: dict, stem: str, modules: list[Module]) -> dict[str, str]:
    "What a bare name means in this notebook: what it exports, what it imports, and what only one module could mean."
    meaning = {name: homes[0] for name, homes in names(modules).items() if len(homes) == 1 and distinct(name)}
    code = "\n".join("".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code")
    public = {module.name: module.public for module in modules}
    for home, listed in IMPORT.findall(code):
        taken = re.findall(r"\w+", listed)
        meaning |= {name: f"densegen.{home}" for name in taken if name in public.get(f"densegen.{home}", {})}
    for module in modules:
        if module.lecture == stem:
            meaning |= {name: module.name for name in module.public}
    return meaning


def distinct(name: str) -> bool:
    "Whether a name is no everyday word: it has a capital inside, or an underscore."
    return len(name) > 3 and ("_" in name or any(c.isupper() for c in name[1:]))


def link(text: str, meaning: dict[str, str], methods: dict[str, set[str]], here: str = "") -> str:
    """The same Markdown with a link for each lecture, and for the first mention of each function or class.

    Fenced code, headings and what is a link already stay as they are."""
    seen, lines, fence = set(), [], ""
    for line in text.split("\n"):
        mark = re.match(r"\s*(```+|~~~+)", line)
        if mark and (not fence or line.strip().startswith(fence)):
            fence = "" if fence else mark[1]
        if fence or mark or line.startswith("#"):
            lines.append(line)
            continue
        taken = [m.span() for m in LINK.finditer(line)]

        def answer(m, taken=taken):
            if any(a <= m.start() and m.end() <= b for a, b in taken):
                return m[0]
            if m[2]:
                return m[2] if m[2] in (here, "index") else f"[{m[2]}]({m[2]}.ipynb)"
            return _link(m[1], meaning, methods, here, seen)

        lines.append(SPAN.sub(answer, line))
    return "\n".join(lines)


def outline(text: str) -> str:
    "The same Markdown, where the first mention of the deck leads to the page that says what it is."
    skip = rf"^#[^\n]*|{LINK.pattern}|`[^`\n]+`|^```.*?^```"
    free = re.compile(rf"(?:{skip})|(?P<deck>\b[Tt]he deck\b)", re.M | re.S)
    for found in free.finditer(text):
        if found["deck"]:
            return f"{text[: found.start()]}[{found['deck']}](outline.md){text[found.end() :]}"
    return text


def title(stem: str) -> str:
    "What a lecture is called in a sentence: its number, and its title up to the first colon."
    first = json.loads((NBS / f"{stem}.ipynb").read_text())["cells"][0]["source"]
    whole = "".join(first).split("\n")[0].removeprefix("# ")
    number = re.match(r"(\d+)_|", stem)[1]
    return f"{number} {whole.split(': ')[0]}" if number else whole


TITLES = {stem: title(stem) for stem in STEMS}


def titled(body: str) -> str:
    "A page where a link to a lecture shows its title instead of its file. The search, which reads the source, finds no more by it."
    apart = re.sub(rf"(?<=</a>) (?={LECTURE.pattern})", " · ", body)
    return LECTURE.sub(lambda m: f"{m[1]}{html.escape(TITLES[m[2]], False)}</a>", apart)


def _link(span: str, meaning: dict[str, str], methods: dict[str, set[str]], here: str, seen: set[str]) -> str:
    stem = span.removesuffix(".ipynb")
    if stem in STEMS:
        return f"`{span}`" if stem == here or stem.startswith("hw") else f"[`{span}`]({stem}.ipynb)"
    called = CALL.fullmatch(span)
    if not called or called[1] not in meaning:
        return f"`{span}`"
    name, method = called[1], called[2]
    target = f"{meaning[name]}.{name}"
    if method:
        if method not in methods.get(target, ()):
            return f"`{span}`"
        target += f".{method}"
    if target in seen or set(span) & set("<>$"):
        return f"`{span}`"
    seen.add(target)
    return f"{{py:obj}}`{span} <{target}>`"


def methods(modules: list[Module]) -> dict[str, set[str]]:
    "The public methods of each public class, as the pages of the package list them."
    found = {}
    for module in modules:
        for name, node in module.public.items():
            inside = node.body if isinstance(node, ast.ClassDef) else []
            methods = {n.name for n in inside if isinstance(n, ast.FunctionDef) and n.name[0] != "_"}
            found[f"{module.name}.{name}"] = methods
    return found
