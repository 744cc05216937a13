"""Tables of the book: three digits, numbers under numbers, and no value that says more or less than before."""
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "book"))
import tables  # noqa: E402


@pytest.mark.parametrize("text, expected", [
    ("{'a': 0.123456, 'b': 2}", "| a | b |\n| --- | --- |\n| 0.1235 | 2 |"),
    ("{5: 1.5, 10: 2.5}", "|  | value |\n| --- | --- |\n| 5 | 1.5 |\n| 10 | 2.5 |"),
    ("{'a': {'x': 1, 'y': 2}, 'b': {'y': 3}}", "|  | x | y |\n| --- | --- | --- |\n| a | 1 | 2 |\n| b |  | 3 |"),
    ("{'a': 1}", None), ("{'a': [1, 2], 'b': [3]}", None), ("{1, 2}", None), ("<f>", None), ("{'a|b': 1, 'c': 2}", None),
])
def test_dictionaries_are_tables(text, expected):
    assert tables.as_table(text) == expected


def column(*cells, head="x", prose=""):
    "One column after it was shortened."
    lines = tables.shorter("\n".join(f"| {cell} |" for cell in (head, "---", *cells)), prose).split("\n")
    return [line.strip("| ") for line in lines[2:]]


@pytest.mark.parametrize("four, three", [
    ("0.1234", "0.123"), ("-12.34", "-12.3"), ("123.4", "123"), ("0.9996", "1.000"), ("1.234e-05", "1.23e-05"),
    ("0.00012345", "0.00012345"), ("0.001234", "0.00123"), ("**0.8765**", "**0.876**"), ("0.1234, 2.345", "0.123, 2.35"),
    ("1234", "1234"), ("0.123", "0.123"), ("2.5", "2.5"), ("1807.03039", "1807.03039"), ("2.13.0", "2.13.0"),
    ("52.43 AP", "52.43 AP"), ("a 0.1234", "a 0.1234"), ("", ""),
])
def test_numbers_of_a_run_have_three_digits(four, three):
    assert column(four) == [three]


def test_what_tells_more_than_three_digits_stays():
    assert column("0.9871", "0.9874") == ["0.9871", "0.9874"]  # would be equal
    assert column("0.9871", "0.9874", "0.1234", "0.2345", "0.3456") == ["0.987", "0.987", "0.123", "0.234", "0.346"]  # few
    assert column("**0.9874**", "0.9871", "0.1234", "0.2345", "0.3456")[:2] == ["**0.9874**", "0.9871"]  # the best one
    assert column("0.9871", "0.9871") == ["0.987", "0.987"]  # are equal
    assert column("0.9871", prose="has 0.9871 of them") == ["0.9871"]
    assert column("0.9871", prose="has 10.9871 of them") == ["0.987"]
    assert column("97.25", head="published, %") == ["97.25"]
    row = "| a | b | c |\n| --- | --- | --- |\n| 1.234 | 1.233 | 5.678 |"
    assert tables.shorter(row, "").endswith("| 1.234 | 1.233 | 5.68 |")
    ragged = "| a | b |\n| --- | --- |\n| 1.234 |"
    assert tables.shorter(ragged, "") == ragged
    assert tables.shorter("| a\\|b | c |\n| --- | --- |\n| x\\|y | 1.234 |", "").endswith("| x\\|y | 1.23 |")


def test_columns_of_numbers_stand_right():
    rows = [["row", "AP", "said"], ["x", "0.25", "less (0.1)"], ["y", "0.5 (0.4 to 0.6)", "3 seeds"], ["z", "-", ""]]
    tags = ['<th class="head">', "<td>", "<td>", "<td>"]
    body = "".join("<tr>" + "".join(f"{tag}<p>{text}</p></{tag[1:3]}>" for text in row) + "</tr>" for tag, row in zip(tags, rows))
    out = tables.aligned(f"<table>{body}</table><p>0.5</p>")
    assert re.findall(r'class="number"[^>]*>([^<]*)', out) == ["AP", "0.25", "0.5 (0.4 to 0.6)", "-"]
    assert re.sub(r' class="number"| class="head"', "", out).count("<td>") == 9



def test_points_stand_under_points():
    cells = ["0.25", "12", "<strong>3.5</strong>", "-"]
    rows = "".join(f"<tr><td><p>r</p></td><td><p>{text}</p></td></tr>" for text in cells)
    out = tables.aligned(f"<table>{rows}</table>")
    assert re.findall(r'data-pad="([.0]*)">(.*?)</td>', out) == [(".00", "12"), ("0", "<strong>3.5</strong>")]
    mixed = tables.aligned("<table><tr><td>0.25</td></tr><tr><td>1e-05</td></tr><tr><td>7</td></tr></table>")
    assert "data-pad" not in mixed and mixed.count('class="number"') == 3


def test_a_cell_loses_its_paragraph_only_if_it_is_the_only_one():
    out = tables.aligned("<table><tr class=\"row-odd\"><td><p>a <b>c</b></p></td><td><p>d</p><p>e</p></td></tr></table>")
    assert out == "<table><tr><td>a <b>c</b></td><td><p>d</p><p>e</p></td></tr></table>"


def test_a_phone_leaves_room_for_columns_of_sentences():
    rows = f"<tr><th>a</th><th>b</th></tr><tr><td>short</td><td>{'long words ' * 5}</td></tr>"
    out = tables.aligned(f"<table>{rows}</table>")
    assert '<th>a</th><th class="words">b</th>' in out and out.count("class=") == 1
