"""The page of references: what the lectures cite, each work once, with its address and the lectures that use it."""

import json
import re
import unicodedata
from pathlib import Path

HEAD = re.compile(r"^#+ *References.*$", re.M)
WORK = re.compile(r"\[\*([^*]+?)\*\]\((https?://[^\s)]+)\)|\*([^*]+?)\*")
ADDRESS = re.compile(r"\]\((https?://[^\s)]+)\)")


def entries(text: str) -> list[str]:
    "The works that a cell lists under References, one each, without the bullet."
    parts = HEAD.split(text)
    if len(parts) < 2:
        return []
    listed = re.findall(r"^- (.+(?:\n  +.+)*)", parts[1], re.M)
    lines = [line for line in listed if "http" in line or ".ipynb" not in line]  # others point to lectures
    return [work for line in lines for work in _works(re.sub(r"\s+", " ", line).strip())]


def _works(line: str) -> list[str]:
    "A line may hold several works; each begins with authors, after a full stop or a semicolon."
    initials, names = r"(?:[A-Z]\.[- ]?)+ ?[^\W\d_][\w-]+(?:,| et al)", r"[^\W\d_][^;*]+\*"
    starts = [m.end() for m in re.finditer(rf"[.)] (?={initials})|; (?={names})", line)]
    whole = [line[a:b].strip().rstrip(";") for a, b in zip([0, *starts], [*starts, len(line)])]
    if not all(map(WORK.search, whole)):
        return [line]
    for k, work in enumerate(whole):
        if work.startswith("and "):  # another one by the same authors
            whole[k] = whole[k - 1][: WORK.search(whole[k - 1]).start()] + work.removeprefix("and ")
    return whole


def title(work: str) -> str:
    "The title as a key: small letters and digits alone, up to its first colon."
    found = WORK.search(work)
    said = (found[1] or found[3]) if found else work
    flat = unicodedata.normalize("NFKD", said).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", " ", flat).strip()


def address(work: str) -> str:
    "Where the work is: the last part of an arXiv address or DOI names it, whoever cites it."
    found = ADDRESS.search(work)
    return re.sub(r"v\d+$", "", found[1]).lower() if found else ""


def collect(notebooks: dict[str, dict]) -> dict[str, tuple[str, list[str]]]:
    "Each work by its key: the fullest way to cite it, and the lectures that do, in their order."
    keys, found = {}, {}
    for stem, notebook in notebooks.items():
        for cell in notebook["cells"]:
            if cell["cell_type"] != "markdown":
                continue
            for work in entries("".join(cell["source"])):
                names = [name for name in (address(work), title(work)) if name]
                key = next((keys[name] for name in names if name in keys), names[0])
                keys |= {name: key for name in names if name not in keys}
                cited, lectures = found.get(key, ("", []))
                best = max(cited, work, key=lambda w: (bool(ADDRESS.search(w)), len(w)))
                found[key] = best, lectures + [stem] * (stem not in lectures)
    return found


def author(work: str) -> str:
    "The first author's last name, to sort by."
    first = re.split(r",| and | et al|\[|\*", work, maxsplit=1)[0].strip()
    last = re.sub(r"^(?:[A-Z]\.[- ]?)+ ?", "", first)
    flat = unicodedata.normalize("NFKD", last).encode("ascii", "ignore").decode()
    return flat.lower() or title(work)


def page(notebooks: dict[str, dict]) -> str:
    "The page in Markdown, by first author."
    found = sorted(collect(notebooks).values(), key=lambda work: (author(work[0]), title(work[0])))
    lines = ["# References", f"All {len(found)} works that the lectures cite, by first author, each with its lectures."]
    letter, rows = "", []
    for work, lectures in found:
        first = author(work)[0].upper() if author(work)[0].isalpha() else "0-9"
        if first != letter:
            letter = first
            rows.append(f"\n## {letter}\n")
        behind = ", ".join(f"[`{stem}`]({stem}.ipynb)" for stem in lectures)
        rows.append(f"- {work} Cited in {behind}.")
    return "\n\n".join(lines) + "\n" + "\n".join(rows) + "\n"


def load(folder: Path, stems: list[str]) -> dict[str, dict]:
    "The notebooks of these names."
    return {stem: json.loads((folder / f"{stem}.ipynb").read_text()) for stem in stems}
