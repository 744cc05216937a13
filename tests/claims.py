"""All claims of the course: `python tests/claims.py` lists each with its kind, its seeds, and what decided it."""
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def claims() -> list[dict]:
    "One row a claim, from the stamps that `densegen keep` leaves in the notebooks."
    rows = []
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        stamp = json.loads(path.read_text())["metadata"].get("densegen", {"claims": []})
        for told in stamp["claims"]:
            seeds = re.search(r"(\d+) seeds", told["over"])
            rows.append({"lecture": path.stem, **told, "seeds": int(seeds[1]) if seeds else 1})
    return rows


def summary(rows: list[dict]) -> str:
    "The counts that the front page prints."
    fresh, kept = ([r for r in rows if r["kind"] == kind] for kind in ("measured", "saved"))
    repeated = [r for r in fresh if r["over"] != "one run"]
    seeded = [r for r in fresh if r["seeds"] > 1]
    return (
        f"{len(fresh)} claims are measured in every run, {len(repeated)} of them over repetitions "
        f"(seeds, images, points, chains), {len(seeded)} over several seeds; {len(kept)} more stand on saved runs."
    )


if __name__ == "__main__":
    for row in claims():
        print(f"{row['lecture']:22} {row['kind']:8} {row['seeds']:2} seeds  {row['over']:22} {row['claim']}")
    print(summary(claims()))
