"""Labs: settings that their texts propose run, their claims stop nobody, sliders redraw and tell errors, the pad is a picture."""
import ast
import re

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from ipywidgets import FloatSlider, IntSlider

from densegen.course.lectures import without_widgets
from densegen.families import seven
from densegen.workbench import figures
from densegen.workbench.pad import Pad, drawn

LABS = sorted((ROOT / "nbs").glob("lab_*.ipynb"))
USUAL = ("scale", "seed", "device")


def cells(path, kind="code"):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def parameters_of(path):
    (cell,) = [c for c in cells(path) if "parameters" in c.metadata.get("tags", [])]
    return {s.targets[0].id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}


def proposed(path):
    "Settings that the text proposes, written `name = \"value\"` with a parameter's name."
    text = "\n".join(c.source for c in cells(path, "markdown"))
    return [(name, value) for name, value in re.findall(r"`(\w+) = \"(\w+)\"`", text) if name in parameters_of(path)]


PROPOSED = [pytest.param(p, *setting, id=f"{p.stem}-{setting[1]}") for p in LABS for setting in sorted(set(proposed(p)))]


def test_texts_propose_settings():
    assert len(PROPOSED) >= 3


@pytest.mark.parametrize("path,name,value", PROPOSED)
def test_what_a_text_proposes_runs(path, name, value, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda *a, **k: None)
    space = {"__name__": "lab"}
    for cell in cells(path):
        exec(compile(cell.source, f"{path.stem}/{cell.id}", "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            space |= {"scale": "smoke", name: value}
    plt.close("all")
    assert space["run"].claims == [], "a claim is made about a setting of the reader"


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in LABS])
def test_first_cell_says_how_to_run_it(path):
    first = cells(path, "markdown")[0].source
    assert "**To run it:**" in first and "`densegen lab`" in first and "`cpu`" in first and "`smoke`" in first


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in LABS])
def test_every_widget_has_a_picture_under_it(path):
    "The next figure after an `explore` comes before the next `explore`."
    order = []
    for cell in cells(path):
        order += ["widget"] * len(re.findall(r"^explore\(", cell.source, re.M))
        order += ["picture"] * ("caption(" in cell.source or "show_picture(" in cell.source)
    assert "widget" in order and order[-1] == "picture"
    assert ("widget", "widget") not in list(zip(order, order[1:]))


@pytest.mark.parametrize("path", [pytest.param(p, id=p.stem) for p in sorted((ROOT / "nbs").glob("*.ipynb"))])
def test_no_widget_is_stored(path):
    notebook = nbformat.read(path, as_version=4)
    assert "widgets" not in notebook.metadata
    assert not [o for c in notebook.cells for o in c.get("outputs", []) if any("widget-view" in k for k in o.get("data", {}))]


def test_saving_in_jupyter_leaves_widgets_out():
    kinds = ("application/vnd.jupyter.widget-view+json", "image/png")
    outputs = [{"output_type": "display_data", "data": {kind: ""}, "metadata": {}} for kind in kinds]
    content = {"cells": [{"cell_type": "code", "outputs": outputs}, {"cell_type": "markdown"}], "metadata": {"widgets": {}}}
    without_widgets(model={"type": "notebook", "content": content}, path="x")
    assert [list(o["data"]) for o in content["cells"][0]["outputs"]] == [["image/png"]] and content["metadata"] == {}
    without_widgets(model={"type": "file", "content": "text"}, path="x")


def test_a_slider_redraws_and_tells_errors():
    def draw(x):
        return np.full((4, 4, 3), 10 // x, np.uint8), f"x is {x}"

    box = figures.explore(draw, x=IntSlider(5, 0, 9))
    slider, picture, line = box.children
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG") and line.value == "x is 5" and slider.description == "x"
    slider.value = 0
    assert picture.value == b"" and "ZeroDivisionError" in line.value
    slider.value = 1
    assert bytes(picture.value) not in (b"", first) and line.value == "x is 1"


def test_an_error_is_shown_as_text():
    def draw(x):
        if x:
            raise ValueError("<img src=x>")
        plt.figure(figsize=(1, 1))

    box = figures.explore(draw, x=IntSlider(0, 0, 1))
    box.children[0].value = 1
    assert "<img" not in box.children[2].value and "&lt;img" in box.children[2].value and plt.get_fignums() == []


def test_the_first_drawing_may_fail_loudly():
    with pytest.raises(ZeroDivisionError):
        figures.explore(lambda x: 1 / x, x=FloatSlider(0.0))


def test_moving_parts_leave_nothing_behind():
    figure, ax = plt.subplots(figsize=(2, 1))
    (line,) = ax.plot([0.0, 1.0, 0.0])
    pixels = figures.moving(figure, line)
    first = pixels()
    line.set_ydata([1.0, 0.0, 1.0])
    assert (pixels() != first).any()
    line.set_ydata([0.0, 1.0, 0.0])
    assert (pixels() == first).all() and plt.get_fignums() == []


def test_points_lie_where_they_belong():
    black = np.zeros((100, 100, 3), np.uint8)
    painted = figures.with_points(black, torch.tensor([[2.0, 3.0], [99.0, 0.0]]), (255, 0, 0))
    rows, columns = np.nonzero(painted[..., 0])
    assert len(rows) == 4 and (black == 0).all()
    assert abs(columns.mean() - 75) < 2 and abs(rows.mean() - 12) < 2  # right of the middle, above it


def test_a_density_stands_upright():
    picture = figures.density_map(lambda x: -4 * (x - torch.tensor([-2.0, 3.0])).square().sum(1), side=80, points=40)
    row, column = np.unravel_index(picture.astype(int).sum(2).argmax(), (80, 80))
    assert abs(column - 20) <= 2 and abs(row - 10) <= 2


def test_a_sheet_keeps_order_and_size():
    x = torch.zeros(3, 1, 2, 2)
    x[1] = 1
    page = figures.sheet(x, columns=2, zoom=5)
    assert page.shape == (24, 24, 3)
    assert (page[:10, 12:22] == 255).all() and (page[:10, :10] == 0).all() and (page[12:22, 12:22] == 127).all()


def test_the_pad_keeps_rows():
    pad, image = Pad(4), torch.zeros(4, 4)
    image[1, 3] = 1.0
    pad.put(image)
    assert torch.equal(drawn(pad.value)[0, 0], image) and drawn(Pad(3).value).shape == (1, 1, 3, 3)
    with pytest.raises(ValueError, match="side \\* side"):
        drawn(b"123")


def test_the_pad_takes_what_a_page_sends():
    "A page sends buffers, which reach Python as views of memory."
    pad = Pad(2)
    pad.set_state({"value": memoryview(bytes([0, 255, 0, 51]))})
    assert drawn(pad.value).flatten().tolist() == pytest.approx([0, 1, 0, 0.2])


def test_the_pad_asks_nobody_for_its_page():
    page = str(Pad(4).get_state()["_esm"])
    assert "function render" in page and "://" not in page and "import " not in page


def test_the_seven_have_equal_weights():
    sizes = {name: sum(p.numel() for p in seven.family(name).parameters()) for name in seven.HOW | {"GAN": 0}}
    assert all(36_000 <= n <= 44_000 for n in sizes.values()), sizes
    with pytest.raises(ValueError, match="expected one of"):
        seven.family("transformer")


@pytest.mark.parametrize("name", ["energy", "VAE", "autoregressive", "GAN", "flow", "score"])
def test_each_of_the_seven_trains(name):
    torch.manual_seed(0)
    v = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8)
    weights = seven.family_weights(name, v, 2)
    model = seven.family(name, (1, 8, 8))
    before = {k: w.clone() for k, w in model.state_dict().items()}
    model.load_state_dict(weights)
    assert any(not torch.equal(before[k], w) for k, w in weights.items())
    assert all(w.isfinite().all() for w in weights.values() if w.is_floating_point())
