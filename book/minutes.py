"""`python book/minutes.py`: how long each part of the course took in the runs that are kept, into the table of the front page."""

import json
import re
from pathlib import Path
from statistics import median

import yaml

NBS = Path(__file__).resolve().parent.parent / "nbs"
ROW = re.compile(r"^\| (?P<part>[^|]+?) \|[^|]*\|[^|]*\|[^|]*\|(?P<rest>.*)$", re.M)  # lectures, minutes, longest


def parts() -> dict[str, list[float]]:
    "Minutes of the lectures of each part, from the stamps that `densegen keep` leaves."
    contents = yaml.safe_load((NBS / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    pages = {part["section"]: part["contents"] for part in contents if isinstance(part, dict)}
    stamps = {part: [json.loads((NBS / page).read_text())["metadata"].get("densegen") for page in names if page.endswith(".ipynb")]
              for part, names in pages.items()}
    minutes = {part: [stamp["seconds"] / 60 for stamp in found if stamp] for part, found in stamps.items()}
    return {part: found for part, found in minutes.items() if found}


def filled(text: str) -> str:
    "The map with its numbers written anew; rows of other tables stay."
    spent = parts()

    def row(found: re.Match) -> str:
        minutes = spent.get(found["part"])
        if minutes is None:
            return found[0]
        return f"| {found['part']} | {len(minutes)} | {median(minutes):.1f} | {max(minutes):.0f} |{found['rest']}"

    return ROW.sub(row, text)


def main() -> None:
    path = NBS / "index.ipynb"
    book = json.loads(path.read_text())
    for cell in book["cells"]:
        cell["source"] = filled("".join(cell["source"])).splitlines(keepends=True)
    path.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
