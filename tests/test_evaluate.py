"""Benchmarks in their published layouts: metrics against scikit-learn and the page of metrics, protocols, faults, memory."""
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from conftest import lines
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

from densegen.course import cli, console
from densegen.dense.components import ComponentMetrics
from densegen.dense.detector_file import load_detector, save_detector
from densegen.dense.metrics import best_f1_threshold, confusion, mean_iou, open_miou
from densegen.dense.segmentation import Dense, SegmentationModel
from densegen.workbench.pictures import VOID


class Red(SegmentationModel):
    "Scores red; the class is given by green, 13 of them."

    def forward(self, images):
        grid = torch.arange(13.0)[None, :, None, None]
        return Dense(-(images[:, 1:2].float() - grid).abs(), ())

    def anomaly_score(self, images):
        return images[:, 0].float() / 255


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_detector(Red().eval(), tmp_path_factory.mktemp("model") / "red.onnx", (32, 32), overlap=0)


@pytest.fixture
def command(monkeypatch):
    monkeypatch.setattr(console.console, "width", 300)
    monkeypatch.setattr(console.errors, "width", 300)
    return lambda *words: CliRunner().invoke(cli.app, ["evaluate", *map(str, words)])


def frame(seed, size=(64, 96)):
    "Scores 0..255 and a truth of 0, 1, void with blobs that the scores half know."
    rng = np.random.default_rng(seed)
    truth = np.zeros(size, np.uint8)
    truth[5:40, 8:60] = 1
    truth[50:, :7] = VOID
    red = np.clip(70 + 110 * (truth == 1) + rng.normal(0, 40, size), 0, 255).astype(np.uint8)
    return red, truth


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def segment_me(root, count=4, hidden=1):
    made = [frame(seed) for seed in range(count)]
    for k, (red, truth) in enumerate(made):
        save(root / f"images/validation{k:04}.png", np.stack([red, red, red], 2))
        save(root / f"labels_masks/validation{k:04}_labels_semantic.png", truth)
    for k in range(hidden):
        save(root / f"images/animals{k:02}.png", np.stack([frame(90)[0]] * 3, 2))
    return made


def test_segment_me_against_other_programs(model, command, tmp_path):
    made = segment_me(tmp_path / "set")
    result = command("anomaly_track", tmp_path / "set", "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out/metrics.json").read_text())
    score, truth = (np.stack([m[k] for m in made]) for k in (0, 1))
    score, kept = score.astype(np.float32) / 255, truth != VOID
    expected = {"AP": average_precision_score(truth[kept], score[kept]), "AUROC": roc_auc_score(truth[kept], score[kept])}
    alone = [average_precision_score(t[t != VOID], s[t != VOID]) for s, t in zip(score, truth)]
    expected["AP, mean of images"] = np.mean(alone)
    maps = torch.from_numpy(score), torch.from_numpy(truth)
    parts = ComponentMetrics(best_f1_threshold(*maps), 500, 100).update(*maps).compute()
    expected |= {"mean F1": parts["F1*"], "sIoU": parts["sIoU"], "PPV": parts["PPV"]}
    for name, value in expected.items():
        assert told["metrics"][name]["value"] == pytest.approx(value, abs=2e-4, nan_ok=True), name
    assert told["images"] == 4 and told["chance"] == pytest.approx(truth[kept].mean()) and "mIoU" not in told["metrics"]
    for estimate in told["metrics"].values():
        assert estimate["value"] is None or estimate["low"] <= estimate["value"] <= estimate["high"]
    files = sorted((tmp_path / "out/anomaly_p/red/AnomalyTrack-all").iterdir())
    assert [f.stem for f in files] == ["animals00", *(f"validation{k:04}" for k in range(4))]
    with h5py.File(files[1]) as file:
        assert np.allclose(file["value"][()], score[0])


def test_the_limits_are_those_of_the_track(model, command, tmp_path):
    red, truth = np.full((40, 60, 3), 10, np.uint8), np.zeros((40, 60), np.uint8)
    red[5:15, 5:15], truth[5:15, 5:15] = 200, 1  # 100 pixels: an object on both tracks, too small a prediction on one
    save(tmp_path / "set/images/validation0.png", red)
    save(tmp_path / "set/labels_masks/validation0_labels_semantic.png", truth)
    f1 = []
    for track in ("anomaly_track", "obstacle_track"):
        command(track, tmp_path / "set", "--model", model, "--out", tmp_path / track)
        f1.append(json.loads((tmp_path / track / "metrics.json").read_text())["metrics"]["mean F1"]["value"])
    assert f1 == [0.0, 1.0]


def test_fishyscapes_and_lost_and_found(model, command, tmp_path):
    name = "04_Maurener_Weg_8_000000_000030"
    red, truth = frame(1)
    save(tmp_path / f"leftImg8bit/test/04_Maurener_Weg_8/{name}_leftImg8bit.png", np.stack([red] * 3, 2))
    save(tmp_path / f"fishyscapes_lostandfound/0000_{name}_labels.png", truth)
    coarse = np.select([truth == 1, truth == 0], [17, 1]).astype(np.uint8)
    save(tmp_path / f"gtCoarse/test/04_Maurener_Weg_8/{name}_gtCoarse_labelIds.png", coarse)
    found = []
    for dataset in ("fishyscapes_lost_and_found", "lost_and_found"):
        result = command(dataset, tmp_path, "--model", model, "--out", tmp_path / dataset)
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / dataset / "metrics.json").read_text())["metrics"]["AP"]["value"])
    kept = truth != VOID
    assert found == pytest.approx([average_precision_score(truth[kept], red[kept])] * 2, abs=2e-4)
    assert list((tmp_path / "lost_and_found/anomaly_p/red/LostAndFound-test").iterdir())[0].stem == name
    save(tmp_path / "static/original/1.png", np.stack([red] * 3, 2))
    save(tmp_path / "static/labels/1.png", truth)
    assert command("fishyscapes_static", tmp_path / "static", "--model", model).exit_code == 0


def street_hazards(root, towns=("t5", "t6")):
    rows, made = [], []
    for k in range(4):
        red, truth = frame(k)
        red = red // (1 + k // 2)  # the second town is darker: its threshold is another one
        labels = np.random.default_rng(k).integers(0, 13, truth.shape).astype(np.uint8)
        named = np.where(np.random.default_rng(9 + k).random(truth.shape) < 0.3, (labels + 1) % 13, labels).astype(np.uint8)
        stem = f"test/{towns[k // 2]}/{k}.png"
        save(root / "test/images" / stem, np.stack([red, named, red], 2))
        save(root / "test/annotations" / stem, np.where(truth == 1, 14, np.where(truth == VOID, 0, labels + 1)).astype(np.uint8))
        rows.append({"fpath_img": f"images/{stem}", "fpath_segm": f"annotations/{stem}"})
        labels = np.where(truth == 0, labels, VOID)
        made.append([torch.from_numpy(part.astype(np.int64)) for part in (red, named, labels, truth)])
    (root / "test/test.odgt").write_text(json.dumps(rows))
    return [torch.stack(part) for part in zip(*made)]


def test_street_hazards_judges_classes_with_the_threshold_of_the_other_town(model, command, tmp_path):
    red, named, labels, truth = street_hazards(tmp_path / "set")
    result = command("street_hazards", tmp_path / "set", "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())["metrics"]
    assert metrics["mIoU"]["value"] == pytest.approx(mean_iou(confusion(named, labels, 13)))
    cuts = []
    for town in (slice(2, 4), slice(0, 2)):  # each from the other one
        odd = red[town][truth[town] == 1].sort(descending=True).values
        cuts.append(odd[-(-95 * len(odd) // 100) - 1])
    parts = [open_miou(named[t], red[t] >= cut, labels[t], truth[t], 13) for t, cut in zip((slice(0, 2), slice(2, 4)), cuts)]
    assert metrics["open-mIoU"]["value"] == pytest.approx(np.mean(parts)) and metrics["open-mIoU"]["value"] < metrics["mIoU"]["value"]
    assert Image.open(tmp_path / "out/test/images/test/t5/0_classes.png").getpixel((0, 0)) == named[0, 0, 0]
    again = command("street_hazards", tmp_path / "set")  # the package's own classes are other ones
    assert again.exit_code == 0 and "mIoU" not in again.stdout


def test_a_folder_of_ones_own_with_painted_masks(model, command, tmp_path):
    red, truth = frame(2)
    for name, ending in (("a.jpg", ".png"), ("deep/b.png", "_mask.png"), ("c.png", None)):
        save(tmp_path / "images" / name, np.stack([red] * 3, 2))
        if ending:
            save((tmp_path / "masks" / name).with_suffix("").with_name(name.split("/")[-1][0] + ending), np.where(truth == 1, 255, 0).astype(np.uint8))
    result = command("folder", tmp_path, "--model", model)
    assert result.exit_code == 0 and "255 counts as the anomaly" in result.stderr and "2 images judged" in result.stdout, result.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "masks"]  # nothing is left without --out


def test_one_bad_frame_costs_a_line(model, command, tmp_path):
    segment_me(tmp_path, 5)
    (tmp_path / "images/validation0001.png").write_bytes(b"half")
    save(tmp_path / "labels_masks/validation0002_labels_semantic.png", np.zeros((9, 9), np.uint8))
    save(tmp_path / "labels_masks/validation0003_labels_semantic.png", np.full((64, 96), VOID, np.uint8))
    result = command("anomaly_track", tmp_path, "--model", model)
    assert result.exit_code == 1 and "2 images judged" in result.stdout, result.output
    told = lines(result)
    assert len(told) == 3 and all(f"000{k}" in line for k, line in zip((1, 2, 3), told))


@pytest.mark.parametrize("words, said", [
    (["anomaly_trakc", "."], "did you mean 'anomaly_track'"), (["anomaly_track", "."], "expected files like"),
    (["folder", "."], "expected images/ and masks/"), (["street_hazards", "."], "test.odgt"),
])
def test_senseless_requests_end_with_2(words, said, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = command(*words)
    assert result.exit_code == 2 and len(lines(result)) == 1 and said in result.stderr and not list(tmp_path.iterdir())


def test_nothing_to_rank_is_a_line(model, command, tmp_path):
    save(tmp_path / "images/a.png", np.stack([frame(0)[0]] * 3, 2))
    save(tmp_path / "masks/a.png", np.zeros((64, 96), np.uint8))
    result = command("folder", tmp_path, "--model", model)
    assert result.exit_code == 1 and "no anomalies" in lines(result)[0]


def test_results_at_another_size_are_judged_at_full_size(model, command, tmp_path):
    segment_me(tmp_path / "set")
    for words in ([], ["--resize", "128"]):
        assert command("anomaly_track", tmp_path / "set", "--model", model, "--out", tmp_path / "out", *words).exit_code == 0
        with np.load(tmp_path / "out/images/validation0000.npz") as data:
            assert data["score"].shape == (64, 96)


def test_the_lines_of_the_readme_make_a_detector_for_the_command(root, command, tmp_path, monkeypatch):
    blocks = (root / "README.md").read_text().split("```python\n")[1:]
    (code,) = [block.split("```")[0] for block in blocks if "class Mine" in block]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("steps=200", "steps=2").replace('"train", 60', '"train", 6').replace('"val", 20', '"val", 3'), {"__name__": "readme"})
    saved = load_detector(tmp_path / "mine.onnx")
    assert saved.both and saved.calibration.rate <= 0.01 and saved.tile == (96, 128)
    segment_me(tmp_path / "set")
    assert command("anomaly_track", "set", "--model", "mine.onnx").exit_code == 0


MEMORY = """
import re, sys
from pathlib import Path
from densegen.course.evaluating import Trial, evaluate_request
model = Path(sys.argv[2]) if len(sys.argv) > 2 else None
code = evaluate_request(Trial("anomaly_track", Path(sys.argv[1]), model))
# ru_maxrss begins with what the parent had at the fork, VmHWM does not
print(code, int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


def peak(*words):
    "Megabytes that an evaluation in a process of its own needed at most."
    done = subprocess.run([sys.executable, "-c", MEMORY, *map(str, words)], capture_output=True, text=True, timeout=500)
    code, megabytes = done.stdout.split()[-2:]
    assert code == "0", done.stdout + done.stderr
    return int(megabytes)


def large(root, count, size):
    red, truth = (np.resize(part, size) for part in frame(0))
    for k in range(count):
        save(root / f"images/validation{k:04}.jpg", np.stack([red] * 3, 2))
        save(root / f"labels_masks/validation{k:04}_labels_semantic.png", truth)
    return root


def test_a_frame_of_two_megapixels_in_under_1500_megabytes(tmp_path):
    assert peak(large(tmp_path, 1, (1024, 2048))) < 1500


def test_memory_does_not_grow_with_the_number_of_frames(model, tmp_path):
    few, many = (peak(large(tmp_path / str(n), n, (400, 600)), model) for n in (10, 40))
    assert many - few < 40  # the scores of thirty frames alone are 29 megabytes, the images as many
