"""Tables that can be read: dumps become tables, numbers have three digits, and points stand under points."""

import ast
import math
import re

TABLE = re.compile(r"<table.*?</table>", re.S)
CELL = re.compile(r"<t([dh])([^>]*)>(.*?)</t\1>", re.S)
NUMBER = re.compile(r"(?:[-+−±~<>≤≥]|&[lg]t;)?\s*\d[\d.,\s]*(?:e[-+]?\d+)?(?: ?(?:%|s|ms|MiB|nats|pp))?"
                    r"(?: ?\(?(?:[-+−±]|\+-|&plusmn;|to|\.\.)? ?[-+−]?\d[\d.,e+−-]*(?: to [-+−]?\d[\d.,e+−-]*)?\)?)?")
ALONE = re.compile(r"(<t[dh][^>]*>)<p>((?:(?!</?p).)*)</p>(?=</t[dh]>)", re.S)  # one paragraph fills the cell
PLAIN = re.compile(r"[-−+]?\d+(\.\d+)?")
FOUR = re.compile(r"(?<![\w.])-?(?:[1-9]\.\d{3}|[1-9]\d\.\d\d|[1-9]\d\d\.\d|0\.0*[1-9]\d{3}|[1-9]\.\d{3}e[-+]\d+)(?![\w.])")


def as_table(text: str) -> str | None:
    "A dictionary of numbers and words, or of such dictionaries, as a table; None for anything else."
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None
    flat = lambda d: isinstance(d, dict) and d and all(isinstance(v, (int, float, str)) for v in d.values())
    if not isinstance(value, dict) or len(value) < 2 or any("|" in str(key) for key in value):
        return None
    if all(map(flat, value.values())):
        heads = list(dict.fromkeys(key for row in value.values() for key in row))
        rows = [[key, *(row.get(head, "") for head in heads)] for key, row in value.items()]
        heads = ["", *heads]
    elif flat(value) and all(isinstance(key, str) for key in value) and len("".join(value)) < 70:
        heads, rows = list(value), [list(value.values())]
    elif flat(value):
        heads, rows = ["", "value"], list(map(list, value.items()))
    else:
        return None
    said = lambda v: f"{v:.4g}" if isinstance(v, float) else str(v).replace("|", "\\|")
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(said, line)) + " |" for line in lines)


def shorter(table: str, cited: str) -> str:
    """A table of a run, in Markdown, with three digits where it has four.

    A column stays if half of its numbers, or a number and its neighbour in another column, would become equal to others,
    if the prose (`cited`) names one of its numbers, or if it holds what was published."""
    rows = [re.split(r"(?<!\\)\|", line.strip()[1:-1]) for line in table.split("\n")]
    if len({len(row) for row in rows}) > 1:
        return table
    old = list(zip(*rows))
    new = [tuple(map(_three, column)) if _may_change(column, cited) else column for column in old]
    clash = {k for before, after in zip(zip(*old), zip(*new)) for k in _merged(before, after)}
    columns = [old[k] if k in clash else column for k, column in enumerate(new)]
    return "\n".join(f"|{'|'.join(row)}|" for row in zip(*columns))


def _three(cell: str) -> str:
    "A cell of numbers alone, each with three digits instead of four."
    if re.search(r"[^-\d.,e+*\s]", cell):
        return cell
    return FOUR.sub(lambda m: _digits(float(m[0]), "e" in m[0]), cell)


def _digits(value: float, small: bool) -> str:
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.2e}" if small else f"{value:.{max(places, 0)}f}"


def _may_change(column: tuple[str, ...], cited: str) -> bool:
    numbers = {number for cell in column for number in FOUR.findall(cell)}
    named = any(re.search(rf"(?<![\d.]){re.escape(number)}(?![\d.])", cited) for number in numbers)
    merged = _merged(column, tuple(map(_three, column)))
    close = 2 * len(merged) >= len(column) - 2 or any("*" in column[k] for k in merged)
    return not (named or re.search("publish|paper", column[0]) or close)


def _merged(before: tuple[str, ...], after: tuple[str, ...]) -> set[int]:
    "Where cells that differed are equal."
    bare = lambda cells: [cell.strip(" *") for cell in cells]
    pairs = list(zip(bare(before), bare(after)))
    return {k for k, (old, new) in enumerate(pairs) if any(new == n and old != o for o, n in pairs)}


def aligned(body: str) -> str:
    "Tables without needless tags, whose columns of numbers stand right, point under point."
    return TABLE.sub(lambda m: _aligned(ALONE.sub(r"\1\2", m[0])), body)


def _aligned(table: str) -> str:
    table = re.sub(r'<tr class="row-(?:odd|even)">', "<tr>", table)
    if re.search(r"(col|row)span", table):
        return table
    rows = [CELL.findall(row) for row in re.findall(r"<tr.*?</tr>", table, re.S)]
    columns = list(zip(*[[_bare(inside) for _, _, inside in row] for row in rows if row and row[0][0] == "d"]))
    right = {k: _decimals(column) for k, column in enumerate(columns) if is_numeric(column)}
    wordy = {k for k, column in enumerate(columns) if k not in right and max(map(len, column)) > 40}
    return re.sub(r"<tr.*?</tr>", lambda row: _marked(row[0], right, wordy), table, flags=re.S)


def _bare(inside: str) -> str:
    return re.sub(r"<[^>]*>", "", inside).strip()


def is_numeric(column: tuple[str, ...]) -> bool:
    "Whether at least two thirds of what stands in a column are numbers."
    filled = [text for text in column if text and text not in ("-", "–", "—", "nan")]
    return bool(filled) and 3 * sum(NUMBER.fullmatch(text) is not None for text in filled) >= 2 * len(filled)


def _decimals(column: tuple[str, ...]) -> int:
    "How many characters the longest fraction of a column takes, with its point; 0 if it holds more than plain numbers."
    found = [PLAIN.fullmatch(text) for text in column if any(map(str.isdigit, text))]
    return max(len(number[1] or "") for number in found) if all(found) else 0


def _marked(row: str, right: dict[int, int], wordy: set[int]) -> str:
    "A row with a class for what stands right, and for the heads of columns that hold sentences: a phone leaves room for those."
    place = iter(range(row.count("<t")))
    def mark(cell):
        column = next(place)
        if column in wordy and cell[1] == "h":
            return f'<th class="words">{cell[3]}</th>'
        if column not in right or "class=" in cell[2] and "head" not in cell[2]:
            return cell[0]
        kind = re.sub(r' class="[^"]*"', "", cell[2])
        number = PLAIN.fullmatch(_bare(cell[3])) if cell[1] == "d" else None
        missing = right[column] - len(number[1] or "") if number else 0
        pad = f' data-pad="{"0" * missing if number[1] else "." + "0" * (missing - 1)}"' if missing > 0 else ""
        return f'<t{cell[1]} class="number"{kind}{pad}>{cell[3]}</t{cell[1]}>'
    return CELL.sub(mark, row)
