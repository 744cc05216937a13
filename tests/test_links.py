"""What the book makes on its own: links of names, pages of the package, references, colours, and live figures."""
import ast
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image, ImageDraw
from pygments.styles import get_style_by_name

sys.path.insert(0, str(ROOT / "book"))
import api  # noqa: E402
import asides  # noqa: E402
import conf  # noqa: E402
import links  # noqa: E402
import references  # noqa: E402
import slim  # noqa: E402

HMC = {"HMC": "densegen.energy.samplers"}
METHODS = {"densegen.energy.samplers.HMC": {"step"}}


def linked(text, meaning=HMC, here="20_energy"):
    return links.link(text, meaning, METHODS, here)


@pytest.mark.parametrize("text, expected", [
    ("see `31_coupling`", "see [`31_coupling`](31_coupling.ipynb)"),
    ("| `31_coupling`, `33_glow` |", "| [`31_coupling`](31_coupling.ipynb), [`33_glow`](33_glow.ipynb) |"),
    ("`HMC(step=0.1)` rolls, `HMC` again", "{py:obj}`HMC(step=0.1) <densegen.energy.samplers.HMC>` rolls, `HMC` again"),
    ("as 33_glow derives (31_coupling).", "as [33_glow](33_glow.ipynb) derives ([31_coupling](31_coupling.ipynb))."),
    ("`HMC.step`", "{py:obj}`HMC.step <densegen.energy.samplers.HMC.step>`"),
])
def test_names_become_links(text, expected):
    assert linked(text) == expected


@pytest.mark.parametrize("text", [
    "[`31_coupling`](31_coupling.ipynb)", "![`HMC`](a.png)", "[about `HMC` and more](https://x.org)",  # links already
    "## `HMC` rolls", "```\n`HMC`\n```", "~~~\n`31_coupling`\n~~~", "````\n```\n`HMC`\n```\n````",  # headings, code
    "`20_energy`", "`99_nothing`", "`hw1_energy`", "`HMC.nothing`", "`x.HMC`", "``HMC``",
    "results/31_coupling.json", "`densegen run 31_coupling`", "HMC, 31_couplings",
])
def test_all_else_stays_as_it_is(text):
    assert linked(text) == text


@pytest.mark.parametrize("text, expected", [
    ("# The deck\nSo the deck, and the deck.", "# The deck\nSo [the deck](outline.md), and the deck."),
    ("[the deck](x.md) `the deck`\n```\nthe deck\n```", "[the deck](x.md) `the deck`\n```\nthe deck\n```"),
    ("The deckchair", "The deckchair"),
])
def test_the_first_mention_of_the_deck_leads_to_its_outline(text, expected):
    assert links.outline(text) == expected


def anchor(page, *said):
    "A link as Sphinx writes it, around a name that is code or not."
    return f'<a class="reference internal" href="{page}">{"".join(said)}</a>'


CODE = '<code class="docutils literal notranslate"><span class="pre">', "</span></code>"


@pytest.mark.parametrize("body, expected", [
    (anchor("20_energy.html", '<span class="std std-doc">20_energy</span>'), anchor("20_energy.html", "20 Energies and the Boltzmann density")),
    (anchor("../23_jem.html#a", '<span class="doc">', CODE[0], "23_jem", CODE[1], "</span>"), anchor("../23_jem.html#a", "23 JEM")),
    (anchor("lab_jem.html", CODE[0], "lab_jem.ipynb", CODE[1]), anchor("lab_jem.html", "Lab: JEM")),
    (f"{anchor('33_glow.html', '33_glow')} {anchor('21_samplers.html', '21_samplers')} {anchor('x.html', 'x')}",
     f"{anchor('33_glow.html', '33 Glow')} · {anchor('21_samplers.html', '21 Samplers')} {anchor('x.html', 'x')}"),
    *[(same, same) for same in (anchor("22_learning.html", "a phantom"), anchor("33_glow.html", "21_samplers"), "<code>33_glow</code>")],
])
def test_links_to_lectures_show_titles(body, expected):
    assert links.titled(body) == expected


def test_everyday_words_mean_something_only_where_they_are_imported():
    code = "from densegen.workbench.training import (\n    fit, cosine)"
    meaning = links.known({"cells": [{"cell_type": "code", "source": code}]}, "31_coupling", conf.MODULES)
    assert meaning["fit"] == meaning["cosine"] == "densegen.workbench.training"
    assert meaning["RealNVP"] == meaning["Shift"] == "densegen.flows.coupling"  # born here
    assert "report" not in meaning and "effective_sample_size" in meaning
    twice = [name for name, homes in links.names(conf.MODULES).items() if len(homes) > 1]
    assert not any(name in links.known({"cells": []}, "00_notation", conf.MODULES) for name in twice)


MODULE = '''"""What `a` says."""

# %% auto #0
__all__ = ['add', 'Thing']

# %% ../../nbs/20_energy.ipynb #aaaa1111
def add(
    x: int,  # the first, *left*
    *, y: float = 1.0,  # the second
) -> float:  # their sum
    "Add."
    return x + y

# %% ../../nbs/20_energy.ipynb #bbbb2222
def _private():
    pass


class Thing(dict):
    "One."
    size: int  # of it

    def __init__(self, n: int):  # how many
        pass

    @property
    def half(self) -> float:
        "Of it."

    def double(self, by: int = 2) -> int:  # more
        "Twice."
'''


def test_page_of_a_module(tmp_path, monkeypatch):
    monkeypatch.setattr(api, "ROOT", tmp_path)
    path = tmp_path / "densegen" / "part" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(MODULE)
    module = api.read(path)
    page = api.page(module)
    assert module.page == "api/part-a" and module.lecture == "20_energy"
    for line in ("{py:function} add(x, *, y=1.0)", ":param x: the first, \\*left\\*", ":type y: float",
                 ":returns: their sum", ":rtype: float", "{py:class} Thing(n)", ":param n: how many",
                 "{py:property} half", "{py:attribute} size", "{py:method} double(by=2)", "of it",
                 "(#cell-20_energy-aaaa1111)", "(#cell-20_energy-bbbb2222)"):
        assert line in page, line
    assert "_private" not in page and "self" not in page and ":param by" not in page and ":returns: more" in page


def test_every_exported_name_has_its_place():
    pages = {module.name: api.page(module) for module in conf.MODULES}
    syms = ast.literal_eval((ROOT / "densegen" / "_modidx.py").read_text().split("d = ", 1)[1])["syms"]
    for module in conf.MODULES:
        listed = next(n.value for n in module.tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
        for name in ast.literal_eval(listed):
            assert re.search(rf"\{{py:\w+\}} {name}\b", pages[module.name]), f"{module.name}.{name}"
    assert {m for m in syms if syms[m]} - set(pages) == set()


def test_references_are_collected_once():
    one = ("## References\n\n- A. Bee, [*A Title: of words*](https://arxiv.org/abs/1234.5678v2), X 2020. "
           "C. Dee, E. Eff, *Other*, Y 1999.")
    two = ("# References\n\n- Bee, *Another spelling* ([arXiv:1234.5678](https://arxiv.org/abs/1234.5678)); "
           "Gee et al., *Third* ([doi](https://doi.org/1)).\n- Dee, *Other*.")
    cells = lambda text: {"cells": [{"cell_type": "markdown", "source": text}]}
    found = references.collect({"10_a": cells(one), "20_b": cells(two)})
    assert [lectures for _, lectures in found.values()] == [["10_a", "20_b"], ["10_a", "20_b"], ["20_b"]]
    assert [references.author(work) for work, _ in found.values()] == ["bee", "dee", "gee"]
    page = references.page({"10_a": cells(one), "20_b": cells(two)})
    assert "All 3 works" in page and page.index("## B") < page.index("## D") < page.index("## G")


def test_another_work_by_the_same_authors_is_cited_with_them():
    text = "## References\n- A. Bee, C. Dee, [*One*](https://a.org), 2019; and [*Two*](https://b.org), 2020."
    assert references.entries(text)[1] == "A. Bee, C. Dee, [*Two*](https://b.org), 2020."


def test_the_course_cites_each_work_once_and_with_an_address():
    lectures = [page for _, pages in conf.parts() for page in pages if (ROOT / "nbs" / f"{page}.ipynb").exists()]
    found = references.collect(references.load(ROOT / "nbs", lectures))
    assert len(found) > 200
    bare = [work for work, _ in found.values() if not references.ADDRESS.search(work)]
    assert len(bare) < 0.1 * len(found), bare
    titles = [references.title(work) for work, _ in found.values()]
    assert len(set(titles)) == len(titles), {t for t in titles if titles.count(t) > 1}


def test_fewer_spans_the_same_text():
    body = '<div class="highlight"><pre><span></span><span class="n">x</span> <span class="k">if</span></pre></div>'
    body += '<img alt="a" src="../_images/a.b.png"/><span class="math">x</span>'
    out = slim.slim(body, {"n"})
    bare = lambda html: re.sub(r"<[^>]*>", "", html)
    assert bare(out) == bare(body) and '<span class="n">' not in out and '<span class="k">if</span>' in out
    assert '<pre tabindex="0">x' in out and "_images/a.b.webp" in out and '<span class="math">x</span>' in out


def test_pages_are_tightened_around_their_code():
    assert slim.tight('<span class="mi">1</span><span class="a b">') == '<span class=mi>1</span><span class="a b">'
    page = "<p>a\n   b</p>\n\n  <pre tabindex>x\n\n    y</pre>\n  <script>\n  z</script>\n  "
    assert slim.tight(page) == "<p>a\nb</p>\n<pre tabindex>x\n\n    y</pre>\n<script>\n  z</script>\n"


def drawn(*, photograph):
    "A curve on a transparent ground, with a photograph over half of it or not."
    image = Image.new("RGBA", (300, 200))
    ImageDraw.Draw(image).line([(20, 180), (150, 20), (280, 180)], fill="#0072b2", width=3)
    if photograph:
        noise = np.random.default_rng(0).integers(0, 255, (200, 150, 3), np.uint8)
        image.paste(Image.fromarray(noise), (0, 0))
    return image


def test_pictures_are_small_and_drawings_are_told_from_photographs(tmp_path):
    for name in ("curve", "photograph"):
        drawn(photograph=name == "photograph").save(tmp_path / f"{name}.png")
    pictures = slim.smaller(tmp_path)
    assert {name: p.drawing for name, p in pictures.items()} == {"curve.webp": True, "photograph.webp": False}
    assert {(p.width, p.height) for p in pictures.values()} == {(300, 200)}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.webp", "photograph.webp"]
    with Image.open(tmp_path / "curve.webp") as image:
        before, after = (np.asarray(i.convert("RGBA"), int) for i in (drawn(photograph=False), image))
        assert abs(before - after)[before[..., 3] > 0].max() <= 8 and after[0, 0, 3] == 0


@pytest.mark.parametrize("alt, caption, turned", [
    ("A blue curve.", "It falls.", True), ("A white curve.", "It falls.", False), ("A curve.", "Darker: more.", False),
])
def test_drawings_that_speak_of_light_are_not_turned_over(alt, caption, turned):
    page = f'<img alt="{alt}" src="_images/a.webp" /><p>{caption}</p><p>white</p><img alt="x" src="_images/b.webp" />'
    out = slim.shown(page, {"a.webp": slim.Picture(900, 20, True)})
    assert out.count("drawing") == turned and out.count("wide") == 1
    assert re.sub(r' class="[a-z ]*"', "", out) == page.replace("<img ", '<img width="900" height="20" ', 1)
    assert 'class="small"' in slim.shown(page, {"a.webp": slim.Picture(600, 20, False)})


def test_ink_on_an_empty_ground_is_darker_and_the_same_grey_in_a_photograph_stays():
    image = Image.new("RGBA", (100, 60))
    draw = ImageDraw.Draw(image)
    draw.rectangle([50, 10, 90, 50], fill=(122, 122, 122, 255))  # a grey photograph
    draw.line([(10, 5), (10, 55)], fill=(122, 122, 122, 255), width=2)
    draw.point((20, 20), fill=(122, 122, 122, 90))
    draw.point((30, 20), fill=(0, 114, 178, 255))
    before, after = np.asarray(image), np.asarray(slim.inked(image))
    assert (after[..., 3] == before[..., 3]).all() and (after[30, 60:80] == before[30, 60:80]).all()
    assert (after[5:55, 10, :3] == slim.DARKER).all() and tuple(after[20, 20]) == (*3 * [slim.DARKER], 90)
    assert tuple(after[20, 30]) == (0, 114, 178, 255)


def test_the_ink_of_the_notebooks_is_known_to_the_book():
    from densegen.workbench.figures import COLOURS

    assert COLOURS["grey"] == f"#{slim.INK:02x}" + 2 * f"{slim.INK:02x}"
    assert contrast(3 * f"{slim.DARKER:02x}", "e2e4e8") > 7


LISTED = [
    "Song and Ermon, *Gradients*, NeurIPS 2019 ([arXiv:1907.05600](https://a.org/2020.1))",
    "Song and Ermon, *Techniques*, NeurIPS 2020 ([arXiv](https://b.org))",
    "Y. Song, C. Meng, S. Ermon, [*Implicit*](https://c.org), ICLR 2021.",
    "Y. Song et al., [*Equations*](https://d.org), ICLR 2021.",
    "A. van den Oord, N. Kalchbrenner, [*Pixels*](https://e.org), ICML 2016.",
]


@pytest.mark.parametrize("text, works", [
    ("(Song and Ermon, NeurIPS 2020)", ["b"]), ("Song and Ermon (2019) say", ["a"]), ("Song, Meng and Ermon, ICLR 2021", ["c"]),
    ("(Song et al., 2021)", []), ("as Song says", []), ("(PixelRNN, van den Oord and Kalchbrenner 2016)", ["e"]), ("In 2016", []),
    ("(van den Oord et al., ICML 2016; Song and Ermon 2020)", ["e", "b"]),
])
def test_a_work_that_is_named_stands_in_the_margin_where_no_other_can_be_meant(text, works):
    page = f'<p>So {text}.</p><pre>{text}</pre><section id="references"><p>{text}</p></section>'
    out = asides.beside(page, LISTED)
    assert re.findall(r'<span class="aside" role="note">.*?href="https://(\w)', out) == works
    assert re.sub(r'<span class="aside".*?</span>|</?a\b[^>]*>', "", out) == page
    assert asides.beside(page.replace("So", "So " + text + ","), LISTED).count('class="aside"') == len(works)


def test_many_lectures_have_notes_in_their_margin():
    works = [asides.works(json.loads(path.read_text())) for path in (ROOT / "nbs").glob("[0-9]*.ipynb")]
    assert sum(map(len, works)) > 300
    assert asides.works({"cells": [{"cell_type": "markdown", "source": ["## References\n- Bee, [*One*](https://a.org), 2019; [*Two*](https://b.org), 2020"]}]})[1].startswith("Bee, [*Two*]")


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return np.dot(linear, [0.2126, 0.7152, 0.0722])


def contrast(one, two):
    dark, light = sorted(map(luminance, (one, two)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("name", [conf.pygments_style, conf.pygments_dark_style])
def test_code_can_be_read(name):
    "WCAG AA asks for 4.5 : 1."
    style = get_style_by_name(name)
    ground = style.background_color.lstrip("#")
    ratios = {str(token): contrast(s["color"], s["bgcolor"] or ground) for token, s in style if s["color"]}
    assert min(ratios.values()) >= 4.5, min(ratios, key=ratios.get)
    assert contrast("ffffff", "000000") == pytest.approx(21)
    for token in ("Token.Literal.Number", "Token.Comment", "Token.Error", "Token.Name"):
        assert token in ratios


def test_citation_and_package_are_of_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    settings = (ROOT / "settings.ini").read_text()
    assert f"\nversion = {citation['version']}\n" in settings
    assert f"version = {{{citation['version']}}}" in (ROOT / "nbs" / "citing.md").read_text()


NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="no node on PATH: the scripts of the live figures are not run")


def script(code):
    "What an expression in JavaScript gives, through JSON; `at` holds the exports of the book's scripts."
    live = [f"live/{name}.js" for name in dict.fromkeys(["live", *[name for _, _, name, _, _ in conf.LIVE]])]
    names = [*live, "static/book.js"]
    requires = ", ".join(f"...require({json.dumps(str(ROOT / 'book' / name))})" for name in names)
    done = subprocess.run([NODE, "-e", f"const at = {{{requires}}}; console.log(JSON.stringify({code}))"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_node
@pytest.mark.parametrize("skew, tails", [(0.4, 1.2), (-1, 0.5), (0, 1), (1, 1.6)])
def test_live_change_of_variables(skew, tails):
    x = np.linspace(-3, 3, 13)
    values = {"skew": skew, "tails": tails, "centre": 0.5, "width": 1.5}
    three = "[at.forwardOf(x, m), at.inverseOf(at.forwardOf(x, m), m), at.density(x, m)]"
    got = script(f"((m) => {json.dumps(x.tolist())}.map((x) => {three}))({json.dumps(values)})")
    t = torch.tensor(x, requires_grad=True)
    z = torch.sinh((torch.asinh(t) - skew) / tails)
    (slope,) = torch.autograd.grad(z.sum(), t)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z).exp() * slope
    np.testing.assert_allclose(np.array(got).T, [z.detach(), x, expected.detach()], rtol=1e-9, atol=1e-12)
    measured = script(f"at.measured({json.dumps(values)})")
    exact = 0.5 * (math.erf(1.25 / math.sqrt(2)) - math.erf(-0.25 / math.sqrt(2)))
    assert measured["inLatent"] == pytest.approx(exact, abs=1e-6)
    assert measured["inData"] == pytest.approx(exact, abs=1e-4)


WELLS, WIDTH = torch.tensor([[-1.6, -0.8], [1.6, -0.8], [0, 1.6]], dtype=torch.float64), 0.55


def energy(x):
    return -torch.logsumexp(-(x[:, None] - WELLS).square().sum(-1) / (2 * WIDTH**2), 1)


@needs_node
def test_live_particles_move_as_the_samplers_of_the_package():
    from densegen.energy.samplers import leapfrog, value_and_gradient

    x, r = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0)).double()
    value, slope = value_and_gradient(energy, x)
    points, momenta = json.dumps(x.tolist()), json.dumps(r.tolist())
    got = script(f"{points}.map((x) => at.energyOf(x))")
    np.testing.assert_allclose([g["value"] for g in got], value, rtol=1e-9)
    np.testing.assert_allclose([g["slope"] for g in got], slope, rtol=1e-9, atol=1e-12)
    end, momentum, _, _ = leapfrog(energy, x, r, slope, 0.2, 7)
    got = script(f"{points}.map((x, k) => at.leapfrogOf(x, {momenta}[k], 0.2, 7))")
    np.testing.assert_allclose([g["x"] for g in got], end, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose([g["r"] for g in got], momentum, rtol=1e-8, atol=1e-10)
    got = script(f"{points}.map((x, k) => at.langevin(x, {{step: 0.03, heat: 0.5}}, {momenta}[k]))")
    np.testing.assert_allclose(got, x - 0.03 * slope + math.sqrt(2 * 0.03 * 0.5) * r, rtol=1e-9)


@needs_node
@pytest.mark.parametrize("heat", [1, 2])
def test_live_hmc_finds_the_spread_of_its_temperature(heat):
    code = """((heat) => { const s = at.startOf(3, 400), v = {step: 0.05, heat, leaps: 8};
              for (let k = 0; k < 300; k++) at.stepOf(s, v); return s.right; })(%s)"""
    x = torch.tensor(script(code % heat), dtype=torch.float64)
    side = torch.linspace(-6, 6, 241).double()
    grid = torch.cartesian_prod(side, side)
    weights = torch.softmax(-energy(grid) / heat, 0)
    expected, spread = (weights * energy(grid)).sum(), (weights * energy(grid).square()).sum()
    error = ((spread - expected**2) / len(x)).sqrt()
    assert abs(energy(x).mean() - expected) < 4 * error


@needs_node
def test_still_pictures_are_those_of_the_scripts(tmp_path):
    shutil.copytree(ROOT / "book" / "live", tmp_path / "live")
    subprocess.run([NODE, tmp_path / "live" / "static.js"], check=True, timeout=60)
    for _, _, name, _, _ in conf.LIVE:
        made, kept = ((folder / f"{name}.svg").read_text() for folder in (tmp_path / "live", ROOT / "book" / "live"))
        number = re.compile(r"-?\d+(?:\.\d+)?")
        assert number.sub("0", made) == number.sub("0", kept)
        np.testing.assert_allclose(*[np.array(number.findall(t), float) for t in (made, kept)], atol=0.11)


def test_live_figures_have_their_place():
    for page, heading, name, alt, text in conf.LIVE:
        cells = json.loads((ROOT / "nbs" / f"{page}.ipynb").read_text())["cells"]
        conf.live(page, cells)
        (figure,) = [c["source"] for c in cells if c["id"] == f"live-{name}"]
        assert f'id="live-{name}"' in figure and f'alt="{alt}"' in figure and "<noscript>" in figure
        for script_name in ("live.js", f"{name}.js"):
            source = (ROOT / "book" / "live" / script_name).read_text()
            assert len(source.splitlines()) < 150 and not re.search(r"^\s*(import|export)\b|fetch\(", source, re.M)


@needs_node
@pytest.mark.parametrize("s, spread", [(-1, 1.5), (0.3, 0.7)])
def test_live_forces_are_the_loss_of_a_flow_and_its_slope(s, spread):
    from densegen.flows.bijections import Affine, Flow, StandardNormal

    x = spread * torch.tensor(script("at.NUMBERS"), dtype=torch.float64)[:, None]
    got = script(f"at.lossOf({{s: {s}, spread: {spread}}})")
    flow = Flow(Affine(1, log_scale=-s), StandardNormal(1)).double()
    assert got["prior"] + got["volume"] == pytest.approx(-flow.log_prob(x).mean().item(), rel=1e-5)
    at = torch.tensor(float(s), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad((0.5 * (x * at.exp()).square()).mean() - at, at)
    assert got["pull"] + got["push"] == pytest.approx(slope.item(), rel=1e-9)
    assert script(f"at.lossOf({{s: {-math.log(spread)}, spread: {spread}}}).pull") == pytest.approx(1)  # balance


@needs_node
def test_excerpts_of_a_search_show_no_tex():
    text = r"so \(\nabla_x \log p_\theta(x)\) is the score, \[\frac{a}{b} \le \mathbb{E}[x]\] end"
    said = script(f"at.plainText({json.dumps(text)})")
    assert said == "so ∇_x log p_θ(x) is the score, a/b ≤ E[x] end"


def cell(source, *outputs):
    return {"cell_type": "code", "id": "a", "source": source, "metadata": {}, "outputs": list(outputs)}


def test_what_is_folded_says_what_it_is():
    plumbing = cell("#| export\ndef _one(x):\n    return x\n\nTWO = 2")
    assert conf.fold(plumbing, "", "31", 1) == 0
    assert plumbing["metadata"] == {"tags": ["hide-input"], "mystnb": {"code_prompt_show": "Code of _one, TWO",
                                                                      "code_prompt_hide": "Code of _one, TWO"}}
    shown = cell("#| exports\ndef two(x):\n    return x")
    conf.fold(shown, "", "31", 1)
    assert "tags" not in shown["metadata"] and shown["source"].startswith("def two")
    imports = [cell("#| export\nimport math"), cell("from torch import nn"), cell("x = 1"), cell("import time")]
    for one in imports:
        conf.fold(one, "", "31", 1)
    sources = [one["source"] for one in conf.joined(imports)]
    assert sources == ["import math\n\nfrom torch import nn", "x = 1", "import time"]


def test_figures_are_numbered_and_have_a_text():
    picture, told = {"data": {"image/png": "", "text/plain": "<Figure>"}}, {"data": {"text/markdown": "*A curve.*"}}
    stored = {"data": {"image/png": ""}, "metadata": {"image/png": {"alt": "as stored"}}}
    again = [{"data": dict(output["data"])} for output in (picture, told)]
    one = cell('caption("A curve.", alt="as the code says")', picture, told, *again)
    assert conf.fold(one, "Prose.", "31", 4) == 2
    texts = [one["outputs"][k]["data"]["text/markdown"] for k in (1, 3)]
    assert texts == ["**Figure 31.4** *A curve.*", "**Figure 31.5** *A curve.*"]
    texts = [conf.alternative_text(cell(code, output), "## Head\n\nSay `x`. And more.") for code, output in (
        ('caption("A", alt="as the code says")', stored), ('caption("A", alt="as the code says")', picture),
        ('show_picture(x, "A", f"rows of {n} cars")', picture), ("plt.plot(x)", picture), ("!ls", picture))]
    assert texts == ["as stored", "as the code says", "rows of  cars", "Say x.", "Say x."]
    assert conf.alternative_text(cell("x"), "Prose.") is None
    number = cell("x", {"data": {"text/plain": "(np.float64(4.2), np.True_, np.int64(3))"}})
    assert conf.fold(number, "", "", 1) == 0 and number["outputs"][0]["data"]["text/plain"] == "(4.2, True, 3)"
