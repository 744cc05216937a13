"""The list of claims, and the counts that the front page prints of it."""
import re
import sys

from claims import ROOT, claims, summary

sys.path.insert(0, str(ROOT / "book"))
import minutes  # noqa: E402


def test_front_page_prints_the_counts():
    assert summary(claims()) in (ROOT / "README.md").read_text(), f"nbs/index.ipynb should say: {summary(claims())}"


def test_counts_are_of_kinds_and_seeds():
    row = {"kind": "measured", "over": "one run", "seeds": 1}
    rows = [row, row | {"over": "3 seeds", "seeds": 3}, row | {"over": "200 images"}, row | {"kind": "saved", "over": "3 seeds", "seeds": 3}]
    assert summary(rows).startswith("3 claims are measured in every run, 2 of them")
    assert "1 over several seeds; 1 more stand on saved runs" in summary(rows)


def test_claims_that_the_front_page_quotes_stand_in_their_lectures():
    page = (ROOT / "README.md").read_text().split("## Claims at a glance")[1].split("\n## ")[0]
    quoted = re.findall(r"^\| \[`(\w+)`\]\S* \| (.*) \| (.*) \|$", page, re.M)
    told = {(row["lecture"], row["claim"], row["over"]) for row in claims()}
    assert len(quoted) >= 8 and not [row for row in quoted if row not in told]


def test_the_map_says_about_how_long_each_part_takes():
    "Within a factor of two, for stamps are of a busy machine; `python book/minutes.py` writes them anew."
    page = (ROOT / "README.md").read_text()
    found = {row[1]: [float(v) for v in row[0].split("|")[2:5]] for row in minutes.ROW.finditer(page) if row["part"] in minutes.parts()}
    for part, spent in minutes.parts().items():
        lectures, middle, longest = found[part]
        assert abs(lectures - len(spent)) <= 6 and longest / 2 - 1 <= max(spent) <= 2 * longest + 1, f"{part}: python book/minutes.py"
        assert middle / 2 - 0.5 <= minutes.median(spent) <= 2 * middle + 0.5, f"{part}: python book/minutes.py"


def test_the_map_is_written_from_the_stamps(monkeypatch):
    monkeypatch.setattr(minutes, "parts", lambda: {"Labs": [1.0, 2.5, 9.0]})
    other = "| `cpu` | a | b |\n| Flows | 1 | 2.0 | 3 | x |"
    assert minutes.filled(f"{other}\n| Labs | 0 | 0 | 0 | see |") == f"{other}\n| Labs | 3 | 2.5 | 9 | see |"
