"""What makes a page easy to read: code that only draws is folded, dumps are tables, and numbers end where eyes stop."""

import ast
import html
import re

DIGITS = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]\d+)?(?!\w)")
CODE = re.compile(r'(<pre tabindex="0">)(.*?)(</pre>)', re.S)
TABLE = re.compile(r"<table.*?</table>", re.S)
CELL = re.compile(r"<t([dh])([^>]*)>(.*?)</t\1>", re.S)
NUMBER = re.compile(r"(?:[-+−±~<>≤≥]|&[lg]t;)?\s*\d[\d.,\s]*(?:e[-+]?\d+)?(?: ?(?:%|s|ms|MiB|nats|pp))?"
                    r"(?: ?\(?(?:[-+−±]|\+-|&plusmn;|to|\.\.)? ?[-+−]?\d[\d.,e+−-]*(?: to [-+−]?\d[\d.,e+−-]*)?\)?)?")


def without_caption(source: str) -> str:
    "The code of a picture without the call that tells what it shows: the book prints the caption below it."
    try:
        body = ast.parse(source).body
    except SyntaxError:  # a line for the shell
        return source
    told = [s for s in body if isinstance(s, ast.Expr) and ast.unparse(s.value).startswith("caption(")]
    lines = source.split("\n")
    for statement in reversed(told if len(body) > len(told) else []):
        if source.split("\n")[statement.lineno - 1][: statement.col_offset].strip() == "":
            del lines[statement.lineno - 1 : statement.end_lineno]
    return "\n".join(lines).strip("\n")


def draws(source: str) -> list[str]:
    "Names of the functions of a cell that holds nothing else, and whose first parameter is what they draw on."
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return []
    ours = [s for s in body if isinstance(s, ast.FunctionDef) and s.args.args and s.args.args[0].arg in ("ax", "axes", "fig")]
    return [s.name for s in ours] if len(ours) == len(body) else []


def rounded(text: str) -> str:
    "Numbers of more than eight digits with six: the rest is noise of the machine, and stands in the notebook."
    def shorter(match):
        digits = len(re.sub(r"e.*|\D", "", match[0]).lstrip("0"))
        return f"{float(match[0]):.6g}" if digits > 8 else match[0]
    return DIGITS.sub(shorter, text)


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


def wrapping(body: str) -> str:
    "Lines of code that a window may cut, marked with their indentation, so that their rest hangs below them."
    def marked(line):
        text = html.unescape(re.sub(r"<[^>]*>", "", line))
        whole = line.count("<span") == line.count("</span>")
        if len(text) <= 80 or not whole:
            return line
        return f'<span class="line" style="--i:{len(text) - len(text.lstrip())}">{line}</span>'
    return CODE.sub(lambda m: m[1] + "\n".join(map(marked, m[2].split("\n"))) + m[3], body)


def aligned(body: str) -> str:
    "Tables whose columns of numbers stand right, digit under digit."
    def one(table):
        text = table[0]
        if re.search(r"(col|row)span", text):
            return text
        rows = [CELL.findall(row) for row in re.findall(r"<tr.*?</tr>", text, re.S)]
        bare = lambda inside: re.sub(r"<[^>]*>", "", inside).strip()
        columns = list(zip(*[[bare(inside) for _, _, inside in row] for row in rows if row and row[0][0] == "d"]))
        right = {k for k, column in enumerate(columns) if is_numeric(column)}
        return re.sub(r"<tr.*?</tr>", lambda row: _marked(row[0], right), text, flags=re.S)
    return TABLE.sub(one, body)


def is_numeric(column: tuple[str, ...]) -> bool:
    "Whether at least two thirds of what stands in a column are numbers."
    filled = [text for text in column if text and text not in ("-", "–", "—", "nan")]
    return bool(filled) and 3 * sum(NUMBER.fullmatch(text) is not None for text in filled) >= 2 * len(filled)


def _marked(row: str, right: set[int]) -> str:
    place = iter(range(row.count("<t")))
    def mark(cell):
        if next(place) not in right or "class=" in cell[2] and "head" not in cell[2]:
            return cell[0]
        kind = re.sub(r' class="[^"]*"', "", cell[2])
        return f'<t{cell[1]} class="number"{kind}>{cell[3]}</t{cell[1]}>'
    return CELL.sub(mark, row)
