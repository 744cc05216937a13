"""From a detector to scores of photographs: thresholds, tiles, the exported file, and a folder full of faults."""
import errno
import io
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import lines
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from densegen.dense.dense_hybrid import DenseHybrid
from densegen.dense.detector_file import load_detector, save_detector
from densegen.dense.photo_folder import find_images, score_files
from densegen.dense.photograph import read_photo
from densegen.dense.segmentation import Ladder
from densegen.dense.your_model import Calibration, calibrate, heat_map, score_images, tile_axis
from densegen.workbench import run as runs
from densegen.workbench.pictures import BadFile


class Near(nn.Module):
    "Sees `reach` pixels around each pixel."

    def __init__(self, reach=3):
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 1, 2 * reach + 1, padding=reach)
        self.register_buffer("light", torch.full((3, 1, 1), 255.0))

    @torch.no_grad()
    def anomaly_score(self, images):
        return self.conv(images.float() / self.light)[:, 0]


def noise(*size, seed=0):
    return torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------------------------- thresholds


@given(
    st.lists(st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=60),
    st.floats(0, 1, exclude_max=True),
)
def test_the_rate_is_kept_and_the_threshold_is_the_lowest_that_keeps_it(scores, rate):
    found = calibrate(torch.tensor(scores), rate)
    n = len(scores)
    over = sum(s > found.threshold for s in scores)
    assert over / n <= rate and found.rate == over / n and found.pixels == n
    assert sum(s >= found.threshold for s in scores) / n > rate
    assert found.centre == sorted(scores)[(n - 1) // 2]


@pytest.mark.parametrize("n, rate, over", [(100, 0.29, 29), (10, 0.1, 1), (3, 1 / 3, 1), (1000, 0.001, 1), (7, 0.0, 0)])
def test_rounding_of_the_rate_costs_no_pixel(n, rate, over):
    assert calibrate(torch.arange(n).float(), rate).rate == over / n


def test_scores_that_float32_cannot_tell_apart_are_not_ties():
    scores = 1 + 1e-9 * torch.arange(1000, dtype=torch.float64)
    found = calibrate(scores, 0.9)
    assert found.rate == 0.9 and (scores > found.threshold).double().mean() == 0.9
    assert calibrate(torch.arange(2**24, 2**24 + 10), 0.5).rate == 0.5


def test_only_ordinary_pixels_are_counted():
    scores, anomaly = torch.arange(10.0), torch.tensor([0] * 5 + [1, 255] * 2 + [0])
    assert calibrate(scores, 0.2, anomaly) == Calibration(4.0, 1 / 6, 2.0, 6)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((torch.ones(3), 1.0), "0 <= rate < 1; got 1.0"),
        ((torch.ones(3), -0.1), "rate"),
        ((torch.tensor([1.0, float("nan")]), 0.1), "no NaN"),
        ((torch.ones(3), 0.1, torch.ones(3)), "got 0 pixels"),
        ((torch.ones(3), 0.1, torch.ones(4)), r"expected \[3\]"),
    ],
)
def test_nothing_to_calibrate_on(arguments, message):
    with pytest.raises(ValueError, match=message):
        calibrate(*arguments)


# --------------------------------------------------------------------------------------------------------------- tiles


@given(st.integers(16, 70), st.data())
def test_weights_sum_to_one_and_tiles_share_the_overlap(tile, data):
    size, overlap = data.draw(st.integers(tile, 400)), data.draw(st.integers(0, tile - 1))
    axis, total = tile_axis(size, tile, overlap), torch.zeros(size)
    for a, w in axis:
        total[a : a + tile] += w
        assert (w >= 0).all()
    assert (total - 1).abs().max() < 1e-6
    starts = [a for a, _ in axis]
    assert starts[0] == 0 and starts[-1] == size - tile
    assert all(0 < b - a <= tile - overlap for a, b in zip(starts, starts[1:]))


@settings(max_examples=30, deadline=None)
@given(st.integers(32, 150), st.integers(48, 150), st.integers(1, 9))
def test_tiles_give_the_whole_image_if_the_model_sees_no_further_than_their_margin(height, width, batch):
    model, image = Near(3), noise(height, width)
    (tiled,) = score_images(model.anomaly_score, [image], (32, 48), 12, batch)
    whole = model.anomaly_score(image[None])[0]
    assert tiled.dtype == torch.float32 and (tiled - whole).abs().max() < 1e-5


def test_without_overlap_the_seams_show():
    model, image = Near(3), noise(100, 130)
    (tiled,) = score_images(model.anomaly_score, [image], (32, 48), 0)
    assert (tiled - model.anomaly_score(image[None])[0]).abs().max() > 0.01


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=7), st.integers(1, 9))
def test_images_of_any_size_come_back_in_order_and_batches_are_full(sizes, batch):
    images, seen = [noise(*size, seed=k) for k, size in enumerate(sizes)], []
    score = lambda x: seen.append(x.shape) or x.float().mean(1)
    results = list(score_images(score, images, (24, 20), 6, batch))
    assert len(results) == len(images)
    for image, result in zip(images, results):
        assert torch.allclose(result, image.float().mean(0), atol=1e-3)
    assert all(s[0] == batch for s in seen[:-1]) and {s[1:] for s in seen} <= {(3, 24, 20)}


def test_scores_come_while_images_are_still_read():
    read = []
    images = (read.append(k) or noise(20, 20, seed=k) for k in range(100))
    next(score_images(lambda x: x.float().mean(1), images, (20, 20), 4, 8))
    assert len(read) == 8


@pytest.mark.parametrize("overlap, batch", [(20, 1), (-1, 1), (0, 0)])
def test_senseless_tiles(overlap, batch):
    with pytest.raises(ValueError, match="overlap, batch"):
        list(score_images(lambda x: x, [], (20, 30), overlap, batch))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save_detector(Near(3), tmp_path_factory.mktemp("model") / "near.onnx", (32, 48), Calibration(0.2, 0.1, 0.0, 9), 12)


@pytest.fixture(scope="module")
def saved(file):
    return load_detector(file)


def test_dense_hybrid_survives_the_export_with_trained_statistics(tmp_path):
    torch.manual_seed(0)
    detector = DenseHybrid(Ladder(5, (4, 8, 8, 12, 12), (8, 8, 6)), 6).train()
    x = torch.stack([noise(48, 64, seed=k) for k in range(3)])
    detector.anomaly_score(x)  # batch statistics move
    path = save_detector(detector, tmp_path / "d.onnx", (48, 64))
    assert detector.training
    loaded = load_detector(path)
    assert (loaded.score(x) - detector.eval().anomaly_score(x)).abs().max() < 1e-4
    assert loaded.calibration is None and loaded.overlap == 12


def test_heat_maps_mean_the_same_on_every_image():
    image, known = np.full((8, 8, 3), 100, np.uint8), Calibration(2.0, 0.1, 1.0, 9)
    cold, warm = (heat_map(image, np.full((8, 8), s), known) for s in (1.0, 3.0))
    assert (cold == 75).all() and (warm[:, :, 0] == 255).all() and warm.dtype == np.uint8
    half = np.where(np.arange(8) < 4, 0.0, 5.0) * np.ones((8, 1))
    assert (heat_map(image, half, known)[:, 4] == (0, 255, 255)).all()
    assert heat_map(image, half).shape == (8, 8, 3)


# -------------------------------------------------------------------------------------------------------------- folders


def picture(path, height=40, width=60, seed=0, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(height, width, seed=seed).permute(1, 2, 0).numpy()).convert(mode).save(path)
    return path


@pytest.fixture
def faults(tmp_path):
    "A folder with three good images and many bad ones; how many."
    photos = tmp_path / "photos"
    picture(photos / "good.png")
    picture(photos / "deep" / "er" / "good.jpg", 20, 200, 1)
    picture(photos / "grey.webp", mode="L")
    picture(photos / "tiny.png", 3, 300)
    picture(photos / "good.bmp", seed=2)  # the same name as good.png
    Image.fromarray(np.zeros((40, 40), np.int32)).save(photos / "whole_numbers.tif")
    Image.fromarray(np.zeros((40, 40), np.float32)).save(photos / "real_numbers.tif")
    whole = picture(photos / "half.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.jpeg").write_text("no image")
    (photos / "readme.txt").write_text("not looked at")
    (photos / ".hidden.png").write_text("neither")
    (photos / "folder.png").mkdir()
    return photos


BAD = ("tiny.png", "good.png", "whole_numbers.tif", "real_numbers.tif", "half.jpg", "empty.png", "text.jpeg")


def test_each_fault_costs_one_line_and_the_rest_is_scored(shell, faults, file, saved, tmp_path):
    result = shell(faults, tmp_path / "gone.png", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "Traceback" not in result.output
    told = lines(result)
    assert len(told) == len(BAD) + 1 and "3 scored, 0 kept, 8 failed" in result.stdout
    for name in (*BAD, "gone.png"):
        assert sum(f"{name}: " in line for line in told) == 1 or name == "good.png", name
    made = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    names = ("deep/er/good", "good", "grey")
    assert made == sorted(f"{name}{ending}" for name in names for ending in (".npz", "_heat.png"))
    with np.load(tmp_path / "out/deep/er/good.npz", allow_pickle=False) as data:
        image = torch.from_numpy(np.array(Image.open(faults / "deep/er/good.jpg"))).permute(2, 0, 1)
        (expected,) = score_images(saved.score, [image], saved.tile, saved.overlap)
        assert data["score"].dtype == np.float32 and np.allclose(data["score"], expected, atol=1e-6)
    assert Image.open(tmp_path / "out/good_heat.png").size == (60, 40)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_bad_files_and_nothing_else(data, tmp_path_factory):
    kind = data.draw(st.sampled_from(["png", "jpeg", "webp", "bmp", "tiff"]))
    buffer = io.BytesIO()
    Image.fromarray(noise(24, 24).permute(1, 2, 0).numpy()).save(buffer, kind)
    raw = bytearray(buffer.getvalue()[: data.draw(st.integers(0, len(buffer.getvalue())))])
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=4)):
        if place < len(raw):
            raw[place] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind}"
    path.write_bytes(raw)
    try:
        photo = read_photo(path)
        assert photo.pixels.dtype == np.uint8 and photo.pixels.ndim == 3
    except BadFile as error:
        assert "expected" in str(error)


def test_masks_are_matched_judged_and_their_faults_told(shell, file, tmp_path):
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    truth, scores = [], []
    for k, ending in enumerate((".png", "_mask.png", "_labels_semantic.png")):
        picture(photos / "a" / f"{k}.jpg", seed=k)
        mask = np.random.default_rng(k).choice([0, 1, 255], (40, 60)).astype(np.uint8)
        (masks / "a").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(masks / "a" / f"{k}{ending}")
        truth.append(mask)
    for k, bad in {"size": np.zeros((30, 60), np.uint8), "values": np.full((40, 60), 7, np.uint8),
                   "mode": np.zeros((40, 60, 3), np.uint8)}.items():
        picture(photos / f"{k}.png")
        Image.fromarray(bad).save(masks / f"{k}.png")
    picture(photos / "none.png")
    result = shell(photos, "--model", file, "--out", tmp_path / "out", "--masks", masks)
    assert result.exit_code == 1 and len(lines(result)) == 3 and "4 scored, 0 kept, 3 failed" in result.stdout
    assert "1 of 7 images have no mask" in result.stderr and "all pixels of 3 images" in result.stdout
    scores = [np.load(tmp_path / "out" / "a" / f"{k}.npz")["score"] for k in range(3)]
    from sklearn.metrics import average_precision_score, roc_auc_score

    s, y = np.stack(scores).ravel(), np.stack(truth).ravel()
    expected = [f(y[y != 255], s[y != 255]) for f in (average_precision_score, roc_auc_score)]
    shown = [float(word) for word in result.stdout.split() if word.replace(".", "").isdigit() and "." in word]
    assert [round(100 * v, 2) for v in expected] == pytest.approx(shown[-3:-1], abs=0.011)
    again = shell(photos, "--model", file, "--out", tmp_path / "out", "--masks", masks)
    assert "0 scored, 4 kept" in again.stdout and result.stdout.splitlines()[-2:] == again.stdout.splitlines()[-2:]


def test_masks_beside_the_images_are_no_images(tmp_path):
    for name in ("a", "b"):
        picture(tmp_path / f"{name}.jpg")
        picture(tmp_path / f"{name}_mask.png", mode="L")
    jobs, errors, skipped = find_images([tmp_path], tmp_path)
    assert not errors and not skipped and [(j.name, j.mask.name) for j in jobs] == [("a", "a_mask.png"), ("b", "b_mask.png")]


def test_results_among_the_images_are_no_images(shell, file, tmp_path):
    picture(tmp_path / "a.png")
    for expected in ("1 scored, 0 kept", "0 scored, 1 kept"):
        result = shell(tmp_path, "--model", file, "--out", tmp_path)
        assert result.exit_code == 0 and expected in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "a.png", "a_heat.png"]


def test_an_image_named_twice_is_scored_once(tmp_path):
    path = picture(tmp_path / "a.png")
    found = find_images([tmp_path, path, path])
    assert len(found.jobs) == 1 and not found.errors


def test_unreadable_folders_are_told(shell, file, tmp_path, monkeypatch):
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "locked").mkdir()
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "1 scored, 0 kept, 1 failed" in result.stdout
    assert "locked: expected a readable folder; Permission denied" in lines(result)[0]


@pytest.mark.parametrize("model", ["gone.onnx", "text.onnx", "."])
def test_senseless_requests_end_with_2_and_write_nothing(shell, tmp_path, model):
    picture(tmp_path / "photos" / "a.png")
    (tmp_path / "text.onnx").write_text("no model")
    result = shell(tmp_path / "photos", "--model", tmp_path / model, "--out", tmp_path / "out")
    assert result.exit_code == 2 and len(lines(result)) == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["--device", "quantum"], ["--device", "cuda"], ["--masks", "/nowhere"], ["--batch", "0"]])
def test_senseless_options_end_with_2(shell, file, tmp_path, words):
    if words == ["--device", "cuda"] and torch.cuda.is_available():
        pytest.skip("cuda makes sense here")
    picture(tmp_path / "photos" / "a.png")
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out", *words)
    assert result.exit_code == 2 and "Traceback" not in result.output and not (tmp_path / "out").exists()
    assert "written by" not in result.output  # the model is not to blame


def test_no_images_ends_with_2(shell, file, tmp_path):
    (tmp_path / "empty").mkdir()
    result = shell(tmp_path / "empty", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "no images found" in result.output


def test_changed_images_changed_models_and_broken_results_are_scored_again(shell, file, tmp_path):
    for name in "abc":
        picture(tmp_path / "photos" / f"{name}.png")
    words = [tmp_path / "photos", "--model", file, "--out", tmp_path / "out"]
    shell(*words)
    picture(tmp_path / "photos" / "a.png", seed=5)
    (tmp_path / "out" / "b.npz").write_bytes((tmp_path / "out" / "b.npz").read_bytes()[:100])
    assert "2 scored, 1 kept" in shell(*words).stdout
    assert "3 scored, 0 kept" in shell(*words, "--fresh").stdout
    save_detector(Near(2), tmp_path / "other.onnx", (32, 48))
    assert "3 scored" in shell(tmp_path / "photos", "--model", tmp_path / "other.onnx", "--out", tmp_path / "out").stdout


def test_another_threshold_draws_again_without_scoring(shell, file, tmp_path):
    picture(tmp_path / "photos" / "a.png")
    words = [tmp_path / "photos", "--model", file, "--out", tmp_path / "out"]
    assert "1 scored" in shell(*words, "--no-overlay").stdout and not (tmp_path / "out/a_heat.png").exists()
    assert "1 kept" in shell(*words).stdout
    first = (tmp_path / "out/a_heat.png").read_bytes()
    assert "1 kept" in shell(*words, "--threshold", "0.7").stdout
    assert (tmp_path / "out/a_heat.png").read_bytes() != first


def test_scores_that_are_no_numbers_are_a_failure(saved, tmp_path):
    jobs = find_images([picture(tmp_path / "a.png")]).jobs
    broken = saved._replace(score=lambda x: saved.score(x) * float("nan"))
    (outcome,) = score_files(broken, jobs, tmp_path / "out")
    assert outcome.state == "failed" and "finite" in outcome.error and not (tmp_path / "out").exists()


def test_a_full_disk_ends_the_run_with_one_line_and_no_half_file(shell, file, tmp_path, monkeypatch):
    for name in "abc":
        picture(tmp_path / "photos" / f"{name}.png")
    room = [30_000]

    class Full:
        def __init__(self, file):
            self.file, self.flush, self.fileno = file, file.flush, file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            room[0] -= len(data)
            self.file.write(bytes(data)[: max(0, len(data) + min(0, room[0]))])
            if room[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")

    words = [tmp_path / "photos", "--model", file, "--out", tmp_path / "out", "--no-overlay"]
    with monkeypatch.context() as patch:
        patch.setattr(runs, "open", lambda path, mode: Full(open(path, mode)), raising=False)
        result = shell(*words)
    assert result.exit_code == 1 and len(lines(result)) == 1 and "No space left on device" in result.stderr
    assert not list((tmp_path / "out").glob("*.tmp"))
    for path in (tmp_path / "out").glob("*.npz"):
        np.load(path, allow_pickle=False)["score"]
    done = len(list((tmp_path / "out").glob("*.npz")))
    assert 0 < done < 3 and f"{3 - done} scored, {done} kept" in shell(*words).stdout


def test_a_folder_in_the_way_costs_one_file(shell, file, tmp_path):
    for name in "ab":
        picture(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "out" / "a.npz" / "x").mkdir(parents=True)
    result = shell(tmp_path / "photos", "--model", file, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "1 scored, 0 kept, 1 failed" in result.stdout and len(lines(result)) == 1


def test_killed_in_the_middle_a_second_run_finishes_and_leaves_no_half_file(shell, file, tmp_path):
    for k in range(60):
        picture(tmp_path / "photos" / f"{k:03}.png", 120, 160, k)
    out = tmp_path / "out"
    words = ["score", tmp_path / "photos", "--model", file, "--out", out]
    call = [sys.executable, "-c", "from densegen.course.cli import main; main()", *map(str, words)]
    process = subprocess.Popen(call, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("*.npz"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list(out.glob("*.npz")))
    assert 3 <= done < 60
    for path in out.glob("*.npz"):
        assert np.load(path, allow_pickle=False)["score"].shape == (120, 160)
    (out / "059.npz.abcd1234.tmp").write_bytes(b"half of a result")
    second = shell(*words[1:])
    assert second.exit_code == 0 and f"{60 - done} scored, {done} kept, 0 failed" in second.stdout
    assert sorted(p.suffix for p in out.iterdir()) == [".npz"] * 60 + [".png"] * 60


def test_an_image_smaller_than_a_tile_goes_on_in_its_mirror():
    "The pixel at the border is repeated: columns 0 1 2 are continued as 2 1 0."
    seen, image = [], noise(5, 3)
    (result,) = score_images(lambda x: seen.append(x) or x.float().mean(1), [image], (5, 7), 0)
    assert torch.equal(seen[0][0], image[:, :, [0, 1, 2, 2, 1, 0, 0]]) and result.shape == (5, 3)
