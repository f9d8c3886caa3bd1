"""`run`: classes and detections of prepared images, and what is refused."""

from __future__ import annotations

import json
import re
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from .conftest import ROWS, TinyBundle, other_model, outputs_of, save_detector

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def test_run_gives_the_five_strongest_classes(bundle: TinyBundle, tmp_path: Path) -> None:
    pictures = np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "two.npy", pictures)
    np.save(tmp_path / "one.npy", pictures[1])
    done = bundle.run("run", "--json", "--mode", "fp32", str(tmp_path / "two.npy"), str(tmp_path / "one.npy"))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(Path(one["file"]).name, one["picture"]) for one in results] == [("two.npy", 0), ("two.npy", 1), ("one.npy", 0)]
    logits = outputs_of(bundle.root / "models/fp32.onnx", pictures).astype(float)
    for one, scores in zip(results, [logits[0], logits[1], logits[1]], strict=True):
        shares = np.exp(scores) / np.exp(scores).sum()
        assert [row["class"] for row in one["top5"]] == list(np.argsort(scores)[::-1][:5])
        assert [row["probability"] for row in one["top5"]] == pytest.approx(sorted(shares)[::-1][:5])
        assert one["top5"][0]["logit"] == pytest.approx(scores.max())
    assert "probability" in bundle.run("run", "--mode", "fp32", str(tmp_path / "one.npy")).stdout


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((3, 8, 8)), "float64 of shape [3, 8, 8]"),
        (np.zeros((8, 8, 3), np.float32), "float32 of shape [8, 8, 3]"),
        (np.zeros((1, 1, 3, 8, 8), np.float32), "float32 of shape [1, 1, 3, 8, 8]"),
        (np.zeros((0, 3, 8, 8), np.float32), "float32 of shape [0, 3, 8, 8]"),
        (np.full((3, 8, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_run_refuses_what_the_model_does_not_take(bundle: TinyBundle, tmp_path: Path, array: np.ndarray, what: str) -> None:
    np.save(tmp_path / "odd.npy", array)
    done = bundle.run("run", "--mode", "fp32", str(tmp_path / "odd.npy"))
    assert done.returncode == 2
    assert str(tmp_path / "odd.npy") in done.stderr
    assert what in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"\xff\xd8\xff\xe0 a picture", b"\x93NUMPY"])
def test_run_refuses_what_is_no_array(bundle: TinyBundle, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "odd.npy").write_bytes(content)
    done = bundle.run("run", "--mode", "fp32", str(tmp_path / "odd.npy"))
    assert done.returncode == 2
    assert f"{tmp_path / 'odd.npy'} cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_refuses_to_show_outputs_that_are_not_finite(bundle: TinyBundle, tmp_path: Path) -> None:
    other_model(bundle, "fp32", change=float("inf"), step=None)
    np.save(tmp_path / "one.npy", np.zeros((3, 8, 8), np.float32))
    done = bundle.run("run", "--json", "--mode", "fp32", str(tmp_path / "one.npy"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "the outputs of fp32 are not finite" in done.stderr


@pytest.mark.parametrize("options", [("--confidence", "0"), ("--iou", "0.5"), ("--confidence", "0.3", "--iou", "0")])
def test_run_takes_no_options_of_detectors_for_a_classifier(
    bundle: TinyBundle, tmp_path: Path, options: tuple[str, ...]
) -> None:
    np.save(tmp_path / "one.npy", np.zeros((3, 8, 8), np.float32))
    done = bundle.run("run", "--mode", "fp32", *options, str(tmp_path / "one.npy"))
    assert done.returncode == 2
    assert f"error: only a detector takes {', '.join(options[::2])}, and this bundle holds none\n" in done.stderr


# ---- detectors


ONE = [
    {"class": 0, "score": 0.75, "box": [0.0, 0.0, 4.0, 4.0]},
    {"class": 1, "score": 0.625, "box": [0.5, 0.0, 4.5, 4.0]},
    {"class": 1, "score": 0.46875, "box": [5.0, 5.0, 8.0, 8.0]},
]
SECOND = (0, 0.375)  # of the last box, its class that is not the best


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """Two pictures, in the first of which is everything and in the second nothing."""
    batch = np.zeros((2, 3, 8, 8), np.float32)
    batch[0, 0, 0, 0] = 1
    np.save(tmp_path / "two.npy", batch)
    return str(tmp_path / "two.npy")


def test_run_gives_detections(detector: TinyBundle, pictures: str) -> None:
    done = detector.run("run", "--json", "--mode", "fp32", pictures)
    assert (done.returncode, done.stderr) == (0, "fp32: image 1 of 2\nfp32: image 2 of 2\n")
    assert json.loads(done.stdout) == {
        "schema": "edge-bundler/run/1",
        "bundle": "tiny-x86-fbgemm",
        "mode": "fp32",
        "results": [
            {"file": pictures, "picture": 0, "detections": ONE},
            {"file": pictures, "picture": 1, "detections": []},
        ],
    }


def test_run_gives_people_a_table_of_detections(detector: TinyBundle, pictures: str) -> None:
    lines = detector.run("run", "--mode", "fp32", pictures).stdout.splitlines()
    assert [line.removeprefix(pictures).split() for line in lines] == [
        ["file", "image", "class", "score", "left", "top", "right", "bottom"],
        ["0", "0", "0.7500", "0.0", "0.0", "4.0", "4.0"],
        ["0", "1", "0.6250", "0.5", "0.0", "4.5", "4.0"],
        ["0", "1", "0.4688", "5.0", "5.0", "8.0", "8.0"],
        ["1", "nothing", "above", "0.25"],
    ]


def test_run_takes_a_confidence_and_an_overlap(detector: TinyBundle, pictures: str) -> None:
    def found(*options: str) -> list[Any]:
        done = detector.run("run", "--json", "--mode", "fp32", *options, pictures)
        return [(one["class"], one["score"]) for one in json.loads(done.stdout)["results"][0]["detections"]]

    best, *others = [(one["class"], one["score"]) for one in ONE]
    assert found("--confidence", "0.7") == [best]
    assert found("--confidence", "1") == []
    assert found("--confidence", "0.2") == [best, *others, (0, 0.25)]
    assert found("--iou", "0.8") == [best, others[0], (0, 0.5), *others[1:]]
    assert found("--iou", "0") == [best, *others]
    assert found("--multi-label") == [best, *others, SECOND]
    assert found("--multi-label", "--classes", "0") == [best, SECOND]
    assert found("--classes", "1,0") == [best, *others]
    assert found("--classes", "1") == others
    assert found("--agnostic") == [best, others[1]]
    assert "nothing above 0.9\n" in detector.run("run", "--mode", "fp32", "--confidence", "0.9", pictures).stdout


@pytest.mark.parametrize("option", ["--confidence", "--iou"])
@pytest.mark.parametrize("value", ["-0.1", "1.01", "nan", "inf", "much", ""])
def test_a_threshold_that_is_no_share_is_refused(detector: TinyBundle, pictures: str, option: str, value: str) -> None:
    done = detector.run("run", "--mode", "fp32", option, value, pictures)
    assert done.returncode == 2
    assert f"argument {option}: {value!r} is not a number from 0 to 1\n" in done.stderr


@pytest.mark.parametrize("value", ["", "a", "1,", "-1", "1.5", "1 2"])
def test_classes_that_are_no_numbers_are_refused(detector: TinyBundle, pictures: str, value: str) -> None:
    done = detector.run("run", "--mode", "fp32", f"--classes={value}", pictures)
    assert done.returncode == 2
    assert f"argument --classes: {value!r} is not a list of class numbers, such as 0,2,5\n" in done.stderr


def test_a_class_that_the_detector_does_not_have_is_refused(detector: TinyBundle, pictures: str) -> None:
    done = detector.run("run", "--mode", "fp32", "--classes", "0,2", pictures)
    assert done.returncode == 2
    assert "error: --classes has 2, and this detector has classes 0 to 1\n" in done.stderr


def test_run_refuses_a_detector_of_another_form(detector: TinyBundle, pictures: str) -> None:
    save_detector(detector.root / "models/fp32.onnx", ROWS[:, :5])
    detector.seal()
    done = detector.run("run", "--mode", "fp32", pictures)
    assert done.returncode == 2
    assert "error: the output has shape [1, 6, 5], not [N, boxes, 5 + classes]\n" in done.stderr


def test_run_says_that_a_classifier_gave_boxes(detector: TinyBundle, pictures: str) -> None:
    detector.configure({**detector.config, "task": "classification"})
    done = detector.run("run", "--mode", "fp32", pictures)
    assert done.returncode == 2
    assert "error: the output has shape [1, 6, 7], not one score per class\n" in done.stderr


def test_the_help_of_run_is_for_both_tasks(detector: TinyBundle) -> None:
    text = detector.run("run", "--help").stdout
    assert "run images that are resized and normalised already" in text
    assert re.search(r"--confidence SCORE\s.*\(default:\s+0\.25\)\s+--iou SHARE\s.*\(default:\s+0\.45\)", text, re.DOTALL)


def test_info_tells_the_task(detector: TinyBundle) -> None:
    assert detector.run("info").stdout.startswith("tiny-x86-fbgemm: detection, image -> detections, ")
    assert json.loads(detector.run("info", "--json").stdout)["task"] == "detection"
