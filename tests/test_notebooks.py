"""The notebooks are the source: they must be in sync with the package, clean, and written in small cells."""
import ast
import json
import re
import shutil
import statistics
import subprocess
import sys

import nbformat
import pytest
from conftest import ROOT

from densegen.course.runner import source_hash

NOTEBOOKS = sorted(p for p in (ROOT / "nbs").glob("*.ipynb") if not p.name.startswith("_"))
LECTURES = [p for p in NOTEBOOKS if re.match(r"\d\d_", p.name)]
HOMEWORKS = [p for p in NOTEBOOKS if re.match(r"hw\d_", p.name)]
COURSE = [p for p in LECTURES if not p.name.startswith("9") and p.name != "00_notation.ipynb"]


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [c for c in read(path).cells if c.cell_type == "code" and c.source.strip()]


def default_exp(path):
    found = re.findall(r"^#\|\s*default_exp\s+(\S+)", "\n".join(c.source for c in code_cells(path)), re.M)
    assert len(found) <= 1, f"{path.name}: more than one default_exp"
    return found[0] if found else None


def by_name(paths):
    return [pytest.param(p, id=p.stem) for p in paths]


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A copy of the sources, so that exporting and cleaning cannot touch the checkout."
    folder = tmp_path_factory.mktemp("clone")
    for name in ("nbs", "densegen"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"), symlinks=True)
    for name in ("settings.ini", "_quarto.yml", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def nbdev(command, folder):
    script = f"from nbdev.{command[0]} import {command[1]}; {command[1]}()"
    subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, capture_output=True, timeout=120)


def test_package_is_what_the_notebooks_export(clone):
    for path in (clone / "densegen").rglob("*.py"):
        if not path.name.startswith("__"):
            path.unlink()
    nbdev(("doclinks", "nbdev_export"), clone)
    ours = {p.relative_to(ROOT): p.read_text() for p in (ROOT / "densegen").rglob("*.py")}
    exported = {p.relative_to(clone): p.read_text() for p in (clone / "densegen").rglob("*.py")}
    assert sorted(ours) == sorted(exported), "run `make export`"
    different = [str(p) for p in ours if ours[p] != exported[p]]
    assert not different, f"not in sync, run `make export`: {different}"


def test_notebooks_are_clean(clone):
    before = {p.name: json.loads(p.read_text()) for p in (clone / "nbs").glob("*.ipynb")}
    nbdev(("clean", "nbdev_clean"), clone)
    after = {p.name: json.loads(p.read_text()) for p in (clone / "nbs").glob("*.ipynb")}
    assert [n for n in before if before[n] != after[n]] == [], "run `make export`"


def test_stems_are_unique():
    stems = [re.sub(r"^\d+[a-zA-Z0-9]*_", "", p.stem).lower() for p in NOTEBOOKS]
    assert len(stems) == len(set(stems))


def test_default_exps_are_unique():
    modules = [m for m in map(default_exp, NOTEBOOKS) if m]
    assert len(modules) == len(set(modules))


@pytest.mark.parametrize("path", by_name(LECTURES))
def test_module_bears_the_stem(path):
    module = default_exp(path)
    assert module is None or module.split(".")[-1] == re.sub(r"^\d+_", "", path.stem)


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_small_and_executed(path):
    assert path.stat().st_size < 1.5e6
    cells = code_cells(path)
    outputs = [o for c in cells for o in c.outputs]
    assert outputs or not cells, "commit the notebook with its outputs: densegen run, then densegen keep"
    assert not [o.ename for o in outputs if o.output_type == "error"]
    ids = [c.id for c in read(path).cells]
    assert len(ids) == len(set(ids))


RUN = [p for p in NOTEBOOKS if p.stem != "index"]


# Their code is newer than their outputs: run and keep them, then take them off. A name that has no business here fails.
PENDING: set[str] = set()


@pytest.mark.parametrize("path", by_name(RUN))
def test_outputs_are_those_of_the_code(path):
    stamp = read(path).metadata.get("densegen")
    if path.stem in PENDING:
        assert not stamp or stamp["code"] != source_hash(read(path)), "outputs are current: take the name off PENDING"
        pytest.skip("outputs are older than the code")
    assert stamp, "no stamp: densegen run, then densegen keep"
    assert stamp["code"] == source_hash(read(path)), "code changed after its run: densegen run, then densegen keep"
    assert stamp["scale"] == "cpu"


def names_in(node):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def assigned(node):
    "Names that a statement sets, whatever the form."
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def statements(path):
    return [s for c in code_cells(path) if not c.source.startswith("%") for s in ast.parse(c.source).body]


def calls(node, name):
    return [c for c in ast.walk(node) if isinstance(c, ast.Call) and isinstance(c.func, ast.Name) and c.func.id == name]


def claims_on_tables(body):
    "Claims of this run that are computed from a saved table, which no run can change."
    tables, found = set(), []
    for statement in body:
        found += [ast.unparse(c.args[0]) for c in calls(statement, "claim") if names_in(c) & tables]
        touched = calls(statement, "load_table") or (isinstance(statement, ast.Assign) and names_in(statement.value) & tables)
        tables = tables | assigned(statement) if touched else tables - assigned(statement)
    return found


def chosen_on_the_test(body):
    "What `fit(evaluate=...)` looks at, through lambdas and functions, may not be test data."
    made = {name: s for s in body for name in assigned(s) | ({s.name} if isinstance(s, ast.FunctionDef) else set())}
    values, found = [], []
    for node in (n for s in body for n in ast.walk(s)):
        if isinstance(node, ast.keyword) and node.arg == "evaluate":
            values.append(node.value)
        if isinstance(node, ast.Assign) and "evaluate" in [getattr(t, "id", None) for t in node.targets]:
            values.append(node.value)
        if isinstance(node, ast.Dict):
            values += [v for k, v in zip(node.keys, node.values) if getattr(k, "value", None) == "evaluate"]
    for value in values:
        seen = names_in(value)
        seen |= {name for n in seen & made.keys() for name in names_in(made[n])}
        found += [name for name in seen if re.search(r"test|held", name)]
    return found


@pytest.mark.parametrize("path", by_name(LECTURES))
def test_no_claim_of_this_run_stands_on_a_file(path):
    assert not claims_on_tables(statements(path)), "use saved(...)"


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_nothing_is_chosen_on_the_test(path):
    assert not chosen_on_the_test(statements(path))


def test_the_guards_see_what_they_guard_against():
    body = lambda text: ast.parse(text).body
    assert claims_on_tables(body("t = load_table('x')\nr = t[0]\nclaim('a', r['y'] > 1)")) == ["'a'"]
    assert not claims_on_tables(body("t = load_table('x')\nsaved('a', t[0]['y'] > 1, t)\nt = 2\nclaim('b', t > 1)"))
    assert chosen_on_the_test(body("e = lambda m: m(test_images)\nfit(m, d, steps=1, evaluate=e)")) == ["test_images"]
    assert chosen_on_the_test(body("def f():\n    evaluate = lambda m: m(held.images)\n    o = {'evaluate': evaluate}"))
    assert not chosen_on_the_test(body("e = lambda m: m(val_images)\nfit(m, d, steps=1, evaluate=e)"))


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_spreads_divide_by_n_minus_1(path):
    for call in [c for s in statements(path) for c in ast.walk(s) if isinstance(c, ast.Call)]:
        if isinstance(call.func, ast.Attribute) and call.func.attr in ("std", "var") and ast.unparse(call.func.value) == "np":
            assert {"ddof", "correction"} & {k.arg for k in call.keywords}, ast.unparse(call)


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_one_statement_does_one_thing(path):
    "No `plt.xlabel(x), plt.legend();`: a tuple is a statement only where its value is shown."
    for cell in code_cells(path):
        if cell.source.startswith("%"):
            continue
        tree = ast.parse(cell.source)
        shown = None if cell.source.rstrip().endswith(";") else tree.body[-1] if tree.body else None
        tuples = [n for n in ast.walk(tree) if isinstance(n, ast.Expr) and isinstance(n.value, ast.Tuple)]
        assert not [ast.unparse(n) for n in tuples if n is not shown]


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_private_names_stay_in_their_module(path):
    imported = [s for s in statements(path) if isinstance(s, ast.ImportFrom) and (s.module or "").startswith("densegen")]
    assert not [a.name for s in imported for a in s.names if a.name.startswith("_")]


def names_of(statement):
    "Variables that a statement of a cell assigns."
    return {n.id for n in ast.walk(statement) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


@pytest.mark.parametrize("path", by_name(p for p in NOTEBOOKS if p.stem != "01_run"))  # 01 swaps a folder and swaps it back
def test_no_variable_hides_a_function_of_the_module(path):
    "Exported cells run in the notebook itself: a variable with the name of one of their functions breaks them there."
    exported = [re.match(r"#\|\s*exports?\b", c.source) is not None for c in code_cells(path)]
    trees = [ast.parse(re.sub(r"(?m)^%.*$", "", c.source)) for c in code_cells(path)]
    ours = [n for tree, out in zip(trees, exported) if out for n in tree.body]
    made = {n.name for n in ours if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    made |= {a.asname or a.name for n in ours if isinstance(n, ast.ImportFrom) for a in n.names}
    lecture = [n for tree, out in zip(trees, exported) if not out for n in tree.body]
    plain = [n for n in lecture if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert not made & set().union(*map(names_of, plain), {n.name for n in lecture if n not in plain})


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_outputs_name_no_place_of_the_machine(path):
    texts = [json.dumps(o.get("text", "")) for c in code_cells(path) for o in c.outputs]
    texts += [json.dumps({k: v for k, v in o.get("data", {}).items() if k != "image/png"}) for c in code_cells(path) for o in c.outputs]
    assert not re.findall(r"(?<![\w.$])/(?:tmp|root|home|work|Users|var/folders)/[\w.-]+", "\n".join(texts))


NOBODY_CAN_CHECK = r"in a trial|from memory|earlier measurement|many implementations|four libraries"


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_references_can_be_checked(path):
    prose = "\n".join(c.source for c in read(path).cells)
    assert not re.findall(NOBODY_CAN_CHECK, prose)


def test_arrows_point_to_lower_numbers():
    """A module imports, at any depth of its code, only from earlier lectures: no circle, hidden or not.

    The dense part and the command line are left out: their lectures will be put into a new order.
    """
    place = {default_exp(p): p.stem for p in LECTURES if default_exp(p)}
    for path in [p for p in LECTURES if p.stem < "50" or "70" <= p.stem < "80"]:
        exported = [c.source for c in code_cells(path) if re.match(r"#\|\s*exports?\b", c.source)]
        nodes = [n for source in exported for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
        for module in {n.module.removeprefix("densegen.") for n in nodes if (n.module or "").startswith("densegen.")}:
            assert place.get(module, "") < path.stem, f"{path.stem} imports {module}"


ORDERS = r"\b(beats?|wins?|outperforms?|better than|worse than)\b"


@pytest.mark.parametrize("path", by_name(RUN))
def test_an_order_has_its_interval(path):
    told = read(path).metadata.get("densegen", {}).get("claims", [])
    assert not [c["claim"] for c in told if c["over"] == "one run" and re.search(ORDERS, c["claim"])]


@pytest.mark.parametrize("path", by_name(RUN))
def test_claims_show_few_digits(path):
    tables = ["".join(o.get("data", {}).get("text/markdown", "")) for c in code_cells(path) for o in c.outputs]
    reports = [t for t in tables if t.startswith("| claim | holds")]
    assert not [m for t in reports for m in re.findall(r"\.0*[1-9]\d{4,}", t)]


@pytest.mark.parametrize("path", by_name(NOTEBOOKS))
def test_no_output_widgets(path):
    "They can make a notebook wait for ever when a program executes it; `explore` does without."
    assert not [c.source for c in code_cells(path) if re.search(r"\b(interact|Output)\(", c.source)]


@pytest.mark.parametrize("path", by_name(LECTURES))
def test_cells_are_small(path):
    lengths = [len(c.source.strip().splitlines()) for c in code_cells(path)]
    assert statistics.median(lengths) <= 5
    assert max(lengths) <= 45
    assert sum(n < 20 for n in lengths) >= 0.9 * len(lengths)
    assert max(len(line) for c in code_cells(path) for line in c.source.splitlines()) <= 120


@pytest.mark.parametrize("path", by_name(HOMEWORKS))
def test_cells_of_a_homework_are_small(path):
    "A check holds its hidden part and the visible one, which makes it longer."
    lines = [line for c in code_cells(path) for line in c.source.splitlines()]
    assert max(len(c.source.strip().splitlines()) for c in code_cells(path)) <= 60
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("path", by_name(LECTURES + HOMEWORKS))
def test_prose_comes_in_portions(path):
    for cell in read(path).cells:
        if cell.cell_type == "markdown" and not re.search(r"^## (References|Exercises|Summary)", cell.source, re.M):
            scheme = r"|^=== BEGIN MARK SCHEME.*?END MARK SCHEME ===$"  # for who grades
            prose = re.sub(r"\$\$.*?\$\$|^\|.*$|^```.*?^```" + scheme, "", cell.source, flags=re.S | re.M)
            assert len(prose.split()) <= 150, cell.source[:80]


@pytest.mark.parametrize("path", by_name(COURSE))
def test_has_the_parts_of_a_lecture(path):
    cells = read(path).cells
    tagged = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    names = [t.id for node in ast.parse(tagged[0].source).body for t in node.targets]
    assert names[:3] == ["scale", "seed", "device"]
    prose = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    for heading in ("Summary", "Exercises", "References"):
        assert re.search(rf"^## {heading}$", prose, re.M), f"no {heading}"
    assert cells[0].source.startswith("# ")


@pytest.mark.parametrize("path", by_name(LECTURES))
def test_never_imports_and_works_in_one_cell(path):
    for cell in code_cells(path):
        if cell.source.startswith("%"):
            continue
        kinds = {isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(cell.source).body}
        assert len(kinds) < 2, f"imports and code in one cell:\n{cell.source}"


def public(path):
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for sub in node.body:
                    if isinstance(sub, ast.FunctionDef) and not sub.name.startswith("_"):
                        yield f"{node.name}.{sub.name}", sub


MODULES = sorted(p for p in (ROOT / "densegen").rglob("*.py") if not p.name.startswith("_"))


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(ROOT))) for p in MODULES])
def test_public_names_have_docstrings_and_types(path):
    inherited = {"step", "targets", "forward", "inverse", "log_prob", "sample", "energy", "loss", "plot", "pick", "checkpoint"}
    for name, node in public(path):
        short = name.split(".")[-1]
        if short not in inherited:
            assert ast.get_docstring(node), f"{name}: no docstring"
        if isinstance(node, ast.FunctionDef) and "." not in name:
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            untyped = [a.arg for a in arguments if a.annotation is None]
            assert not untyped and (node.returns is not None), f"{name}: no type for {untyped or 'the result'}"


MODELS = [p for p in MODULES if p.parent.name in ("energy", "flows")]


@pytest.mark.parametrize("module", [f"densegen.{p.parent.name}.{p.stem}" for p in MODELS])
def test_models_import_torch_alone(module):
    banned = "matplotlib sklearn skimage scipy IPython ipywidgets lightning lightning_fabric pooch papermill".split()
    script = f"import sys, {module}; print([m for m in {banned} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"
