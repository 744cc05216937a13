"""What makes a page easy to read: code that only draws is folded, long lines hang, and numbers end where eyes stop."""

import ast
import html
import re

DIGITS = re.compile(r"(?<![\w.])-?\d+\.\d+(?:e[-+]\d+)?(?!\w)")
CODE = re.compile(r'(<pre tabindex="0">)(.*?)(</pre>)', re.S)


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


def wrapping(body: str) -> str:
    "Lines of code that a window may cut, marked with their indentation, so that their rest hangs below them."
    def marked(line):
        text = html.unescape(re.sub(r"<[^>]*>", "", line))
        whole = line.count("<span") == line.count("</span>")
        if len(text) <= 80 or not whole:
            return line
        return f'<span class="line" style="--i:{len(text) - len(text.lstrip())}">{line}</span>'
    return CODE.sub(lambda m: m[1] + "\n".join(map(marked, m[2].split("\n"))) + m[3], body)
