"""References beside the text: where a lecture names a work that it lists, the work is linked, and stands in the margin."""

import html
import re

import references

CAPITAL = r"(?:(?:van den|van der|van|von|de|der) )?[A-ZÀ-ÞĀ-Ž][\w’'‐-]+"
REST = rf"(?:(?:, {CAPITAL})*,? (?:and|&amp;) {CAPITAL}|(?:, {CAPITAL})* et al\.)?"
CITED = re.compile(rf"({CAPITAL})({REST}),? \(?(?:(?!et al)[A-Z][\w+-]*,? ){{0,3}}((?:19|20)\d\d)\b")
PROSE = re.compile(r"<p>(?:(?!</p>).)*</p>", re.S)
APART = re.compile(r"(<blockquote.*?</blockquote>|<table.*?</table>|<pre.*?</pre>|<div class=\"cell_output.*?</div>|<h\d.*?</h\d>)", re.S)
TAG = re.compile(r"(<(?:a|code|em|span)\b[^>]*>.*?</(?:a|code|em|span)>|<[^>]*>)", re.S)


def works(notebook: dict) -> list[str]:
    "The works that a lecture lists under its References."
    prose = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    listed = [one for text in prose for work in references.entries(text) for one in _each(work)]
    return [work for work in listed if "$" not in work and references.ADDRESS.search(work)]


def _each(line: str) -> list[str]:
    "Several works of the same authors, which one line lists."
    first, *others = re.split(r"; (?=\[?\*)", line)
    return [first, *(authors(first) + other for other in others)]


def authors(work: str) -> str:
    "What stands before the title."
    return re.split(r"[*\[]", work, maxsplit=1)[0]


def published(work: str) -> str:
    "What stands behind the title, without addresses, whose numbers look like years."
    return re.sub(r"\]?\(http[^)]*\)|arXiv:\S+", "", work.split("*")[-1])


def meant(first: str, others: str, whole: str, listed: list[str]) -> str | None:
    "The one work by these authors of this year, None if there is no such work or more than one."
    year = whole[-4:]
    found = [w for w in listed if year in published(w) and re.match(rf"(?:\w\S*\. ?|\w\. ?)*{re.escape(first)}\b", authors(w))]
    if len(found) > 1 and not others.endswith("et al."):
        count = len(re.findall(CAPITAL, others)) + 1
        found = [w for w in found if all(name in authors(w) for name in re.findall(CAPITAL, others))
                 and (count > 1 or "," not in authors(w).rstrip(", "))]
    if len(found) > 1:
        venue = re.findall(r"[A-Z]\w+", whole.removeprefix(first + others))
        found = [w for w in found if venue and all(word in w for word in venue)]
    return found[0] if len(found) == 1 else None


def note(work: str) -> str:
    "A work as HTML: its title is a link."
    said = html.escape(work, quote=False)
    said = re.sub(r"\[([^\]]+)\]\((https?://[^\s)]+)\)", r'<a class="reference external" href="\2">\1</a>', said)
    return re.sub(r"\*([^*]+)\*", r"<em>\1</em>", said).rstrip(" .") + "."


def linked(text: str, listed: list[str], told: set[str]) -> str:
    "A piece of prose without tags; works that it names are linked, those that are named first stand in the margin."
    out, at = "", 0
    while found := CITED.search(text, at):
        work = meant(found[1], found[2], found[0], listed)
        if work is None:
            step = found.start() + len(found[1])
            out, at = out + text[at:step], step
            continue
        end = found.end() + (text[found.end() :].startswith(")") and "(" in found[0])
        href = references.ADDRESS.search(work)[1]
        out += f'{text[at : found.start()]}<a class="reference external" href="{href}">{text[found.start() : end]}</a>'
        if work not in told:
            out += f'<span class="aside" role="note">{note(work)}</span>'
            told.add(work)
        at = end
    return out + text[at:]


def beside(body: str, listed: list[str]) -> str:
    "The page with notes in its margin; lists of references, tables, code and what a run printed stay as they are."
    told = set()
    def paragraph(match):
        return "".join(part if k % 2 else linked(part, listed, told) for k, part in enumerate(TAG.split(match[0])))
    text, mark, rest = body.partition('<section id="references')
    return "".join(part if k % 2 else PROSE.sub(paragraph, part) for k, part in enumerate(APART.split(text))) + mark + rest
