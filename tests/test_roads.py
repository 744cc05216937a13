"Road data: CamVid with two protocols, photographs, data sets in their published layouts, the writer of results."
import ast
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from densegen.dense.roads import (
    camvid, cityscapes, fishyscapes_static, lost_and_found, road_anomaly, segment_me, street_hazards, write_segment_me,
)
from densegen.workbench.data import DataNotFound, datasets
from densegen.workbench.pictures import CLASSES, VOID, BadFile

HAVE_CAMVID = any(row["name"] == "camvid" and row["found"] != "missing" for row in datasets())


@pytest.mark.skipif(not HAVE_CAMVID, reason="CamVid is not on this machine")
def test_camvid_and_its_held_out_classes():
    whole, held = camvid("val"), camvid("val", held_out=True)
    assert len(whole) == 101 and whole.images.shape[1:] == (3, 180, 240)
    rare = (whole.labels == CLASSES.index("pedestrian")) | (whole.labels == CLASSES.index("bicyclist"))
    assert torch.equal(held.anomaly == 1, rare) and rare.any()
    assert (held.labels[rare] == VOID).all() and torch.equal(held.labels[~rare], whole.labels[~rare])
    assert held.names == CLASSES[:9] and not ((held.labels >= 9) & (held.labels != VOID)).any()
    assert torch.equal(whole.anomaly == VOID, whole.labels == VOID)


def test_photographs_have_masks_and_credits():
    data = road_anomaly()
    assets = ROOT / "densegen" / "assets"
    credits = (assets / "CREDITS.md").read_text()
    files = sorted(assets.glob("road_*.jpg"))
    assert len(data) == len(files) >= 5 and all(f.name in credits for f in files)
    assert sum(f.stat().st_size for f in assets.glob("road_*")) < 1e6, "with the first detector"
    assert all(f.stat().st_size < 6e5 for f in assets.iterdir())
    assert all(any(word in row for word in ("CC0", "CC BY 2", "CC BY 3", "public domain")) and "BY-SA" not in row
               for row in credits.splitlines() if row.startswith("| road_"))
    share = (data.anomaly == 1).float().flatten(1).mean(1)
    assert set(data.anomaly.unique().tolist()) <= {0, 1, VOID} and (share > 0.002).all() and (share < 0.5).all()


@pytest.mark.parametrize("call, message", [
    (lambda: road_anomaly("animals"), "name: expected one of"),
    (lambda: write_segment_me(torch.zeros(2, 3, 4), ".", "m", "t", "f"), "score: expected finite numbers"),
    (lambda: write_segment_me(torch.full((3, 4), torch.nan), ".", "m", "t", "f"), "score: expected finite numbers"),
])
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_missing_sets_say_where_they_should_be(monkeypatch, tmp_path):
    monkeypatch.setenv("DENSEGEN_DATA", str(tmp_path))
    with pytest.raises(DataNotFound, match="road_anomaly.*roadanomaly21_val.*DENSEGEN_DATA"):
        road_anomaly("anomaly_track")


# published layouts

def picture(path, size=(24, 16), colour=(90, 100, 110)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def mask(path, values, size=(24, 16)):
    "A mask whose columns hold the values in turn."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.resize(np.array(values, np.uint8), size[::-1])).save(path)
    return path


def test_cityscapes_layout(tmp_path):
    for city in ("aachen", "ulm"):
        picture(tmp_path / f"leftImg8bit/val/{city}/{city}_000000_000019_leftImg8bit.png")
        mask(tmp_path / f"gtFine/val/{city}/{city}_000000_000019_gtFine_labelIds.png", [0, 7, 26, 33])
    pairs = cityscapes(tmp_path)
    image, labels, anomaly = pairs[1]
    assert len(pairs) == 2 and image.shape == (16, 24, 3) and pairs.check() == []
    assert labels[0, :4].tolist() == [VOID, 0, 13, 18] and anomaly[0, :4].tolist() == [VOID, 0, 0, 0]


def test_fishyscapes_layouts(tmp_path):
    frame = "04_Maurener_Weg_8_000000_000030"
    picture(tmp_path / f"leftImg8bit/test/04_Maurener_Weg_8/{frame}_leftImg8bit.png")
    mask(tmp_path / f"fishyscapes_lostandfound/0000_{frame}_labels.png", [0, 1, 255])
    image, labels, anomaly = lost_and_found(tmp_path)[0]
    assert anomaly[0, :3].tolist() == [0, 1, VOID] and (labels == VOID).all() and image.dtype == np.uint8
    picture(tmp_path / "static/original/0001.png")
    mask(tmp_path / "static/labels/0001.png", [1, 0])
    assert fishyscapes_static(tmp_path / "static")[0][2][0, :2].tolist() == [1, 0]


def test_segment_me_layout(tmp_path):
    picture(tmp_path / "images/validation0000.jpg")
    picture(tmp_path / "images/animals01_x.jpg")
    mask(tmp_path / "labels_masks/validation0000_labels_semantic.png", [0, 1, 255])
    pairs = segment_me(tmp_path)
    assert len(pairs) == 1 and pairs[0][2][0, :3].tolist() == [0, 1, VOID]
    everything = segment_me(tmp_path, "")
    assert len(everything) == 2 and len(everything.check()) == 1 and "animals01_x_labels_semantic.png" in everything.check()[0]


def test_street_hazards_layout(tmp_path):
    rows = [{"fpath_img": "images/test/t5/300.png", "fpath_segm": "annotations/test/t5/300.png", "width": 24, "height": 16}]
    picture(tmp_path / "test" / rows[0]["fpath_img"])
    mask(tmp_path / "test" / rows[0]["fpath_segm"], [1, 13, 14, 0])
    (tmp_path / "test" / "test.odgt").write_text(json.dumps(rows))
    _, labels, anomaly = street_hazards(tmp_path)[0]
    assert labels[0, :4].tolist() == [0, 12, VOID, VOID] and anomaly[0, :4].tolist() == [0, 0, 1, VOID]
    (tmp_path / "test" / "test.odgt").write_text("{broken")
    with pytest.raises(BadFile, match="test.odgt: expected a JSON list"):
        street_hazards(tmp_path)


def test_one_bad_file_does_not_stop_the_rest(tmp_path):
    for k in range(4):
        picture(tmp_path / f"images/validation{k}.jpg")
        mask(tmp_path / f"labels_masks/validation{k}_labels_semantic.png", [0, 1], (24, 16) if k != 2 else (16, 24))
    (tmp_path / "images/validation1.jpg").write_bytes(b"\xff\xd8\xff")
    pairs = segment_me(tmp_path)
    messages = pairs.check()
    assert len(messages) == 2 and "validation1.jpg" in messages[0] and "validation2_labels" in messages[1]
    assert pairs[0][0].shape == pairs[3][0].shape
    with pytest.raises(BadFile, match="expected files like"):
        segment_me(tmp_path / "nowhere")


def test_results_for_the_benchmark(tmp_path):
    score = torch.linspace(-30, -29.9, 1001).expand(2, -1)
    path = write_segment_me(score, tmp_path, "ours", "AnomalyTrack-all", "validation0000")
    assert path == tmp_path / "anomaly_p/ours/AnomalyTrack-all/validation0000.hdf5"
    with h5py.File(path) as file:
        values = file["value"][()]
    assert values.shape == (2, 1001) and len(np.unique(values)) == 1001 and np.allclose(values, score)


# the renderer is an appendix

def test_no_detector_imports_the_renderer():
    for path in (ROOT / "densegen" / "dense").glob("*.py"):
        nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, (ast.Import, ast.ImportFrom))]
        assert not [ast.unparse(n) for n in nodes if "streets" in ast.unparse(n)], path.name


def test_importing_the_dense_part_loads_no_renderer():
    names = sorted(p.stem for p in (ROOT / "densegen" / "dense").glob("*.py") if p.stem != "__init__")
    script = f"import sys, {', '.join(f'densegen.dense.{n}' for n in names)}; print([m for m in sys.modules if 'streets' in m])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.strip() == "[]"
