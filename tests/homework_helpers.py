"""A tiny homework without tensors, which starts in a moment, and submissions made from it."""
import copy
import json

import nbformat

from densegen.course.release import is_solution, mark
from densegen.course.template import nbgrader_mark

CANARY = "expected-values-live-here"

DOUBLE = "def double(x):\n    ### BEGIN SOLUTION\n    return 2 * x\n    ### END SOLUTION"
SPREAD = "def spread(x):\n    ### BEGIN SOLUTION\n    return x - x.mean()\n    ### END SOLUTION"
NAMED = "def named(n, word):\n    ### BEGIN SOLUTION\n    return {'text': word * n, 'size': n * len(word)}\n    ### END SOLUTION"

CHECK_DOUBLE = f"""
with visible("tiny-double", points=2):
    assert double(np.ones(2)).tolist() == [2, 2], "twice one is two"
### BEGIN HIDDEN TESTS
# {CANARY}
def drawn(rng):
    return (rng.normal(size=int(rng.integers(3, 6))),)

agrees(double, draw=drawn, reference=lambda x: x + x)
### END HIDDEN TESTS
"""
CHECK_SPREAD = """
with visible("tiny-spread", points=3):
    assert spread(np.arange(3.0)).tolist() == [-1, 0, 1], "the mean of 0, 1, 2 is 1"
### BEGIN HIDDEN TESTS
def numbers(rng):
    return (rng.normal(3, 1, size=8),)

def centred(result, x):
    if abs(result.mean()) > 1e-6:
        return "the mean is not zero"
    return None if abs(result - result[0] - (x - x[0])).max() < 1e-6 else "differences have changed"

accepts(spread, draw=numbers, judge=centred)
### END HIDDEN TESTS
"""
CHECK_NAMED = """
with visible("tiny-named", points=1):
    assert named(2, "ab") == {"text": "abab", "size": 4}, "twice ab is abab"
### BEGIN HIDDEN TESTS
def words(rng):
    return int(rng.integers(2, 5)), "ab" + chr(97 + int(rng.integers(26)))

agrees(named, draw=words, reference=lambda n, word: {"text": "".join([word] * n), "size": n * len(word)})
### END HIDDEN TESTS
"""
IMPORTS = "import numpy as np\nfrom densegen.course.homework import accepts, agrees, visible"
RUBRIC = "=== BEGIN MARK SCHEME ===\n1 point: it is the secret reason of the rubric\n=== END MARK SCHEME ==="
CELLS = [
    ("text", "title", "# A tiny homework"), ("code", "imports", IMPORTS), ("code", "parameters", 'scale = "cpu"\nseed = 0'),
    ("task", "double", DOUBLE), ("check", "double-check", CHECK_DOUBLE), ("task", "spread", SPREAD),
    ("check", "spread-check", CHECK_SPREAD), ("task", "named", NAMED), ("check", "named-check", CHECK_NAMED),
    ("text", "question", "Why is it so?"), ("answer", "words", RUBRIC),
]
POINTS = {"double-check": 2, "spread-check": 3, "named-check": 1, "words": 1}


def tiny(name="tiny"):
    "The teacher's version."
    cells = []
    for kind, cell, text in CELLS:
        make = nbformat.v4.new_markdown_cell if kind in ("text", "answer") else nbformat.v4.new_code_cell
        metadata = {"nbgrader": nbgrader_mark(kind, f"{name}-{cell}", POINTS.get(cell, 0))}
        cells.append(make(text.strip(), metadata=metadata | ({"tags": ["parameters"]} if cell == "parameters" else {}), id=cell))
    return nbformat.v4.new_notebook(cells=cells)


def stub(notebook):
    "The notebook with every solution taken out, as `release` leaves it."
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if is_solution(cell) and cell.cell_type == "code":
            cell.source = unsolved(cell.source)
    return notebook


def unsolved(source):
    "A solution cell without its solution."
    before, _, rest = source.partition("### BEGIN SOLUTION")
    return before + "raise NotImplementedError()" + rest.partition("### END SOLUTION")[2]


def solve(notebook, solutions):
    "The unsolved notebook with these sources: grade_id -> source."
    notebook = stub(notebook)
    for cell in notebook.cells:
        if mark(cell).get("grade_id") in solutions:
            cell.source = solutions[mark(cell)["grade_id"]]
    return notebook


def half_solved(notebook, keep):
    "Only the solutions with these grade_ids, as the teacher wrote them."
    sources = {mark(c)["grade_id"]: c.source for c in notebook.cells if mark(c).get("grade_id") in keep}
    return solve(notebook, sources)


def check_of(notebook, grade_id):
    "The check that stands below a solution cell: the next one."
    names = [mark(c).get("grade_id") for c in notebook.cells]
    below = notebook.cells[names.index(grade_id) + 1 :]
    return next(mark(c)["grade_id"] for c in below if mark(c).get("grade") and not is_solution(c))


def hand_in(folder, student, notebook):
    "Write a submission, which may be bytes."
    path = folder / f"{student}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    data = notebook if isinstance(notebook, bytes) else json.dumps(notebook).encode()
    path.write_bytes(data)
    return path
