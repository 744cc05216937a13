"""Pages of the package, from its source alone: signatures, first sentences, and the comment beside each parameter."""

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "densegen"
CELL = re.compile(r"^# %% \.\./\.\./nbs/(\w+)\.ipynb #(\w+)$")


@dataclass
class Module:
    "One module: what it says of itself, its public names, and where each was written."
    name: str  # densegen.energy.samplers
    tree: ast.Module
    comments: dict[int, str]  # line -> what stands behind the # on it
    cells: list[tuple[int, str, str]]  # first line, lecture, cell
    public: dict[str, ast.stmt]  # what `__all__` names, in the order of the lecture

    @property
    def page(self) -> str:
        "Its page in the book."
        return "api/" + self.name.removeprefix("densegen.").replace(".", "-")

    @property
    def lecture(self) -> str:
        "The notebook that it is exported from."
        return self.cells[-1][1]

    def born(self, line: int) -> tuple[str, str]:
        "Lecture and cell of a line of the source."
        return next((lecture, cell) for first, lecture, cell in reversed(self.cells) if first <= line)


def read(path: Path) -> Module:
    "A module of the package, as it is written."
    text = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = enumerate(text.splitlines(), 1)
    cells = [(n, *found.groups()) for n, line in lines if (found := CELL.match(line))]
    tree = ast.parse(text)
    listed = _all(tree)
    public = {name: node for node in tree.body for name in names_of(node) if name in listed}
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return Module(name, tree, comments, cells, public)


def modules() -> list[Module]:
    "Every module of the package that exports something."
    found = map(read, sorted(PACKAGE.glob("*/[!_]*.py")))
    return [module for module in found if module.public and module.cells]


def names_of(node: ast.stmt) -> list[str]:
    "What a statement defines."
    if isinstance(node, ast.Assign):
        return [t.id for target in node.targets for t in getattr(target, "elts", [target]) if isinstance(t, ast.Name)]
    if isinstance(node, ast.AnnAssign):
        return [node.target.id]
    return [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []


def _all(tree: ast.Module) -> list[str]:
    listed = next(node.value for node in tree.body if "__all__" in names_of(node))
    return ast.literal_eval(listed)


def _plain(text: str) -> str:
    "Markdown in which stars, dollars and angles outside of code stand for themselves."
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else re.sub(r"([*<$|])", r"\\\1", p) for p in parts)


def _signature(arguments: ast.arguments, method: bool) -> str:
    bare = ast.parse(f"def f({ast.unparse(arguments)}): pass").body[0].args
    for argument in _each(bare):
        argument.annotation = None
    first = [bare.posonlyargs, bare.args][not bare.posonlyargs]
    if method and first and first[0].arg in ("self", "cls"):
        del first[0]
    return f"({ast.unparse(bare)})"


def _each(a: ast.arguments) -> list[ast.arg]:
    return [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]


def _fields(module: Module, function: ast.FunctionDef, returns: bool = True) -> list[str]:
    "The parameters and the result as a list of fields, each with the comment that stands beside it."
    lines, listed = [], [a for a in _each(function.args) if a.arg not in ("self", "cls")]
    last = {argument.end_lineno: argument for argument in listed}  # a comment is about the last one on its line
    ended = function.returns.lineno if function.returns else 0
    for argument in listed:
        comment = module.comments.get(argument.end_lineno)
        if comment and last[argument.end_lineno] is argument and argument.end_lineno != ended:
            lines.append(f":param {argument.arg}: {_plain(comment)}")
            if argument.annotation:
                lines.append(f":type {argument.arg}: {ast.unparse(argument.annotation)}")
    if returns and function.returns and ast.unparse(function.returns) != "None":
        said = next((c for n in range(function.returns.end_lineno, function.body[0].lineno)
                     if (c := module.comments.get(n))), "")
        lines += [f":returns: {_plain(said)}"] * bool(said) + [f":rtype: {ast.unparse(function.returns)}"]
    return lines


def _directive(kind: str, title: str, body: list[str], options: dict[str, str], colons: int) -> str:
    fence = ":" * colons
    settings = [f":{key}: {value}".rstrip() for key, value in options.items()]
    return "\n".join([f"{fence}{{py:{kind}}} {title}", *settings, "", *body, fence, ""])


def _function(module: Module, node: ast.FunctionDef, extra: list[str], kind: str = "function") -> str:
    marks = {ast.unparse(d) for d in node.decorator_list}
    said = [_plain(ast.get_docstring(node) or ""), ""]
    if "property" in marks:
        options = {"type": ast.unparse(node.returns)} if node.returns else {}
        return _directive("property", node.name, said + extra, options, 4)
    options = {mark: "" for mark in marks & {"classmethod", "staticmethod"}}
    title = node.name + _signature(node.args, kind == "method")
    return _directive(kind, title, [*said, *extra, *_fields(module, node)], options, 4)


def _class(module: Module, node: ast.ClassDef, extra: list[str]) -> str:
    first = next((n for n in node.body if getattr(n, "name", "") == "__init__"), None)
    assigned = [n for n in node.body if isinstance(n, (ast.AnnAssign, ast.Assign))]
    attributes = [n for n in assigned if "".join(names_of(n))[:1].isalpha()]
    data = [n for n in attributes if isinstance(n, ast.AnnAssign)]
    made = any("dataclass" in ast.unparse(d) for d in node.decorator_list)
    plain = ", ".join(n.target.id + (f"={ast.unparse(n.value)}" if n.value else "") for n in data)
    title = node.name + (_signature(first.args, True) if first else f"({plain})" if made else "")
    bases = [f"A kind of {', '.join(f'`{ast.unparse(b)}`' for b in node.bases)}.", ""] if node.bases else []
    fields = _fields(module, first, False) if first else []
    body = [_plain(ast.get_docstring(node) or ""), "", *extra, *bases, *fields, ""]
    for n in attributes:
        options = {"type": ast.unparse(n.annotation)} if isinstance(n, ast.AnnAssign) else {}
        said = [_plain(module.comments.get(n.end_lineno, ""))]
        body.append(_directive("attribute", names_of(n)[0], said, options, 4))
    methods = {n.name: n for n in reversed(node.body) if isinstance(n, ast.FunctionDef) and n.name[0] != "_"}
    body += [_function(module, n, [], "method") for n in reversed(methods.values())]
    return _directive("class", title, body, {}, 5)


def page(module: Module) -> str:
    "The page of a module, in MyST Markdown."
    lecture = module.lecture
    parts = ["---\norphan: true\n---", f"# {module.name}", _plain(ast.get_docstring(module.tree) or ""),
             f"Written in the lecture [`{lecture}`](../{lecture}.ipynb); all modules: [the package](index.md).",
             f"```{{py:module}} {module.name}\n```"]
    for name, node in module.public.items():
        born = [f"[Where it is written](#cell-{'-'.join(module.born(node.lineno))}).", ""]
        if isinstance(node, ast.ClassDef):
            parts.append(_class(module, node, born))
        elif isinstance(node, ast.FunctionDef):
            parts.append(_function(module, node, born))
        else:
            parts.append(_directive("data", name, [_plain(module.comments.get(node.lineno - 1, "")), "", *born], {}, 4))
    return "\n\n".join(parts) + "\n"


def overview(found: list[Module]) -> str:
    "The list of all modules by subpackage, in the order of the course."
    parts = ["# The package", "What `import densegen` gives, one module for each lecture that exports. A page is made "
             "from the source: signatures, the comment beside each parameter, links to where it is written."]
    order = sorted(found, key=lambda m: m.lecture)
    for group in dict.fromkeys(m.name.split(".")[1] for m in order):
        rows = [f"| [`{m.name}`]({m.page.removeprefix('api/')}.md) | [`{m.lecture}`](../{m.lecture}.ipynb) | "
                f"{_plain(ast.get_docstring(m.tree) or '')} |" for m in order if m.name.split(".")[1] == group]
        parts.append("\n".join([f"## densegen.{group}", "", "| module | lecture | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def contents(module: Module | None, found: list[Module]) -> str:
    "What stands on the left of a page of the package: the course, the subpackages, and the modules of this one."
    order = sorted(found, key=lambda m: m.lecture)
    entry = '<li class="toctree-l1{}"><a class="reference internal" href="{}">{}</a></li>'
    groups = dict.fromkeys(m.name.split(".")[1] for m in order)
    parts = [entry.format("", "../index.html", "The course"), entry.format("", "index.html", "The package")]
    parts += [entry.format("", f"index.html#densegen-{group}", f"densegen.{group}") for group in groups]
    listed = [m for m in order if module and m.name.split(".")[1] == module.name.split(".")[1]]
    marks = [" current current-page" if m is module else "" for m in listed]
    here = [entry.format(mark, f"{m.page[4:]}.html", m.name.split(".")[2]) for mark, m in zip(marks, listed)]
    own = f'<p class="caption"><span class="caption-text">{module.name.rsplit(".", 1)[0]}</span></p>' if module else ""
    return f"<ul>{''.join(parts)}</ul>{own}<ul>{''.join(here)}</ul>"
