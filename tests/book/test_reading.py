"""What the book does to code and outputs so that a page can be read."""
import re
import sys

import pytest
from conftest import ROOT
from pygments.styles import get_style_by_name

sys.path.insert(0, str(ROOT / "book"))
import conf  # noqa: E402
import reading  # noqa: E402

PICTURE = {"data": {"image/png": "", "text/plain": "<Figure>"}}


def cell(source, *outputs, name="a"):
    return {"cell_type": "code", "id": name, "source": source, "metadata": {}, "outputs": list(outputs)}


@pytest.mark.parametrize("text, expected", [
    ("(-inf, -999.6177978515625)", "(-inf, -999.618)"),
    ("2.3314683517128287e-15", "2.33147e-15"),
    ("0.00012345", "0.00012345"),
    ("[16.25, 1001, 154806]", "[16.25, 1001, 154806]"),
    ("1.2.3456789012 v1.123456789", "1.2.3456789012 v1.123456789"),
])
def test_numbers_end_where_eyes_stop(text, expected):
    assert reading.rounded(text) == expected


def test_a_dump_becomes_a_table_and_a_printed_text_stays():
    one = cell("x", {"data": {"text/plain": "{'a': 1, 'b': 2}"}}, {"name": "stdout", "text": "{'a': 1, 'b': 2}"})
    conf.fold(one, "", "31", 1)
    assert one["outputs"][0]["data"]["text/markdown"].startswith("| a | b |")
    assert one["outputs"][1] == {"name": "stdout", "text": "{'a': 1, 'b': 2}"}


def test_code_of_a_figure_is_shown_without_what_the_caption_says_again():
    drawn = 'fig, ax = plt.subplots()\nax.plot(x)\ncaption("A curve.",\n        alt="A line.")'
    one = cell(drawn, PICTURE)
    conf.fold(one, "", "31", 1)
    assert one["source"] == "fig, ax = plt.subplots()\nax.plot(x)" and "tags" not in one["metadata"]
    assert one["metadata"]["mystnb"]["image"] == {"alt": "A line."}
    for kept in ('caption("A", alt="B")', 'x = 1; caption("A")', "!ls", "ax.plot(x)"):
        assert reading.without_caption(kept) == kept


def test_long_drawing_is_folded_and_teaching_code_is_not():
    for code, outputs, said in (
        ("a = 1\nb = 2\nax.plot(a)\nax.plot(b)", [PICTURE], "Code of the figure"),
        ("a = 1\nb = 2\nc = 3\nd = 4", [], None),
        ("def bars(ax, x):\n    ax.bar(x)\n\n\ndef dots(axes):\n    pass", [], "Drawing: bars, dots"),
        ("def bars(ax, x):\n    ax.bar(x)\n\nx = 1", [], None),
        ("def forward(x):\n    return x", [], None),
        ('scale = "cpu"\nseed, walk = 0, 1', [], "Parameters: scale, seed, walk"),
    ):
        one = cell(code, *outputs)
        one["metadata"]["tags"] = ["parameters"] * code.startswith("scale")
        conf.fold(one, "Prose.", "31", 1)
        assert one["metadata"]["mystnb"].get("code_prompt_show") == said, code


def test_folded_neighbours_are_one_and_all_their_anchors_stay():
    anchors = [conf.markdown(f"to-{k}", f"(cell-{k})=") for k in range(3)]
    cells = [cell(f"#| export\ndef f{k}(x):\n    return x", *([PICTURE] if k == 1 else [])) for k in range(3)]
    for one in cells:
        conf.fold(one, "", "31", 1)
    found = conf.joined([anchors[0], cells[0], anchors[1], cells[1], anchors[2], cells[2]])
    assert [one["id"] for one in found] == ["to-0", "to-1", "a", "to-2", "a"]
    assert found[2]["metadata"]["mystnb"]["code_prompt_show"] == "Code of f0, f1"
    assert "def f0" in found[2]["source"] and "def f1" in found[2]["source"] and found[2]["outputs"]


def test_long_lines_hang_and_lose_nothing():
    short, long = "x = 1", "    <span class=\"k\">return</span> " + "a" * 80
    body = f'<pre tabindex="0">{short}\n{long}\n</pre><p>{long}</p>'
    out = reading.wrapping(body)
    assert f'{short}\n<span class="line" style="--i:4">{long}</span>\n</pre><p>{long}</p>' in out
    assert re.sub(r"<[^>]*>", "", out) == re.sub(r"<[^>]*>", "", body)


def luminance(colour):
    parts = [int(colour[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(c * weight for c, weight in zip(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("style, theme", [(conf.pygments_style, "body {"), (conf.pygments_dark_style, 'body[data-theme="dark"] {')])
def test_code_can_be_read_on_the_ground_that_it_lies_on(style, theme):
    "WCAG AA asks for 4.5 : 1."
    css = (ROOT / "book" / "static" / "book.css").read_text()
    ground = re.search(rf"^{re.escape(theme)} --code-ground: #(\w+);", css, re.M)[1]
    colours = {token["color"] for _, token in get_style_by_name(style) if token["color"]}
    for pair in (sorted(map(luminance, (colour, ground))) for colour in colours):
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5
