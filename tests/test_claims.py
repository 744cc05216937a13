"""The list of claims, and the counts that the front page prints of it."""
from claims import ROOT, claims, summary


def test_front_page_prints_the_counts():
    assert summary(claims()) in (ROOT / "README.md").read_text(), f"nbs/index.ipynb should say: {summary(claims())}"


def test_counts_are_of_kinds_and_seeds():
    row = {"kind": "measured", "over": "one run", "seeds": 1}
    rows = [row, row | {"over": "3 seeds", "seeds": 3}, row | {"over": "200 images"}, row | {"kind": "saved", "over": "3 seeds", "seeds": 3}]
    assert summary(rows).startswith("3 claims are measured in every run, 2 of them")
    assert "1 over several seeds; 1 more stand on saved runs" in summary(rows)
