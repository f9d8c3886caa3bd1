"""The documents of a bundle: each template is rendered, and what it shows is executed."""

from __future__ import annotations

import copy
import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import jinja2
import numpy as np
import pytest
from PIL import Image

from bundler.data.image_files import read_image
from bundler.data.preprocessing import Channels, Fit, Interpolation, Preprocessing
from bundler.device import command_line

TEMPLATES = Path(__file__).parents[2] / "templates"

CONTEXT: dict[str, Any] = {
    "bundle": "mobilenet_v2-arm64-qnnpack",
    "model": {"name": "mobilenet_v2", "task": "classification"},
    "target": {"name": "arm64-qnnpack", "platform": "linux/arm64"},
    "minimum": {"numpy": "1.24", "onnxruntime": "1.16.0"},
    "image": {"reference": "mobilenet_v2:arm64-qnnpack", "user": "10001:10001", "bundle_sha256": "0123456789abcdef" * 4},
    "runtime": {"python": "3.11", "requirements": ["numpy==2.4.6", "onnxruntime==1.32.0"]},
    "timeout_seconds": 1800,
    "suspicions": [],
    "modes": [
        {
            "name": "int8-ptq",
            "supported": True,
            "accuracy": None,
            "reason": "",
            "path": "models/int8-ptq.onnx",
            "bytes": 3_712_345,
            "exact": True,
            "exact_reason": "on cortex-a53, Haswell; not run on cortex-a76",
            "quantization": {"engine": "qnnpack"},
            "bits": "c" * 64,
            "fleet": [
                {
                    "target": "x86-fbgemm",
                    "evidence": [
                        {
                            "cpu": "Haswell",
                            "machine": "x86_64",
                            "verdict": "passed",
                            "reason": "",
                            "sqnr_db": 21.26,
                            "boxes_agreement": None,
                            "max_steps": 0,
                            "outputs_sha256": "c" * 64,
                        }
                    ],
                }
            ],
            "evidence": [
                {
                    "cpu": "cortex-a53",
                    "machine": "aarch64",
                    "verdict": "passed",
                    "reason": "",
                    "sqnr_db": 21.26,
                    "boxes_agreement": 0.9375,
                    "max_steps": 0,
                },
                {
                    "cpu": "cortex-a76",
                    "machine": None,
                    "verdict": "not_run",
                    "reason": "no engine",
                    "sqnr_db": None,
                    "boxes_agreement": None,
                    "max_steps": None,
                },
            ],
        },
        {
            "name": "int8-qat",
            "supported": False,
            "accuracy": None,
            "reason": "not built",
            "path": None,
            "bytes": None,
            "evidence": [],
            "exact": False,
            "exact_reason": "it was not executed",
            "quantization": None,
            "bits": None,
            "fleet": [],
        },
    ],
    "input": {"name": "image", "shape": [3, 224, 224], "dtype": "float32"},
    "output": {"name": "logits", "classes": 1000},
    "preprocessing": {
        "fit": "crop",
        "resize": 232,
        "crop": 224,
        "interpolation": "bilinear",
        "channels": "rgb",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "weights": {"source": "torchvision MobileNet_V2_Weights.IMAGENET1K_V2", "trained": True},
    "calibration": {"source": "pictures", "count": 96},
    "training": None,
}

DETECTOR: dict[str, Any] = {
    "model": {"name": "yolov5s", "task": "detection"},
    "input": {"name": "image", "shape": [3, 64, 64], "dtype": "float32"},
    "output": {"name": "detections", "classes": 80},
    "preprocessing": {
        "fit": "letterbox",
        "resize": 64,
        "crop": 64,
        "interpolation": "bicubic",
        "channels": "rgb",
        "mean": [0.0, 0.0, 0.0],
        "std": [1.0, 1.0, 1.0],
    },
}


def render(name: str, **changes: Any) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  plain text, not HTML
    )
    return environment.get_template(name).render({**copy.deepcopy(CONTEXT), **changes})


@pytest.mark.parametrize("changes", [{}, DETECTOR, {"model": DETECTOR["model"]}, {"preprocessing": DETECTOR["preprocessing"]}])
@pytest.mark.parametrize("name", sorted(path.name for path in TEMPLATES.glob("*.j2") if path.name != "report.html.j2"))
def test_every_template_renders_tidily(name: str, changes: dict[str, Any]) -> None:
    """All but the report, which takes a whole manifest: tests/packaging/test_documents.py renders it."""
    text = render(name, **changes)
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert not re.search(r"[ \t]+$|\n\n\n\n|\{\{|\{%", text, re.MULTILINE)


# ---- README.md


def test_the_readme_names_modes_with_their_evidence() -> None:
    text = render("README.md.j2")
    assert "\n| cortex-a53 | aarch64 | passed | 21.3 dB | 0 |\n" in text
    assert "\n| cortex-a76 | - | not_run: no engine | - | - |\n" in text
    assert "\n### int8-qat\n\nNot supported: not built.\n" in text
    assert "not trained" not in text


def test_the_readme_states_untrained_weights_and_synthetic_images() -> None:
    text = render(
        "README.md.j2",
        weights={"source": "seeded random", "trained": False},
        calibration={"source": "synthetic", "count": 32},
    )
    assert "**The weights are not trained** (source: seeded random)." in text
    assert "Synthetic images are no substitute" in text


def test_the_readme_of_a_detector_describes_its_output() -> None:
    text = render("README.md.j2", **DETECTOR)
    assert "This directory holds the object detector `yolov5s`" in text
    assert "\n## Detect objects in an image\n" in text
    assert "The output `detections` has shape [N, boxes, 85]." in text
    assert "\n| CPU | machine | verdict | SQNR | boxes as FP32 |\n" in text
    assert "\n| cortex-a53 | aarch64 | passed | 21.3 dB | 94% |\n| cortex-a76 | - | not_run: no engine | - | - |\n" in text
    assert "\n- 5 to 84: the probability of each class" in text
    for words in ("`--confidence SCORE` (default 0.25)", "`--iou SHARE` (default 0.45;", "`(x - left) / scale`"):
        assert words in text
    for words in ("one score per class", "Classify", "classifier", "ax. steps"):
        assert words not in text


def test_the_readme_of_a_classifier_does_not_mention_boxes() -> None:
    text = render("README.md.j2")
    assert "This directory holds the image classifier `mobilenet_v2`" in text
    assert "\n## Classify an image\n" in text
    assert not re.search("detect|box|--confidence|--iou|letterbox|in_image", text)


def test_the_readme_is_a_table_that_markdown_can_read() -> None:
    rows = [line for line in render("README.md.j2").splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {6, 4}


def test_the_exit_codes_of_the_readme_are_those_of_the_device_program() -> None:
    documented = set(re.findall(r"^\| (\d) ", render("README.md.j2"), re.MULTILINE))
    told = set(re.findall(r"^  (\d)  ", str(command_line.__doc__), re.MULTILINE))
    assert documented == told == {"0", "1", "2", "3", "4"}


def write_snippet(path: Path, **changes: Any) -> None:
    found = re.search(r"```python\n(.*?)```", render("README.md.j2", **changes), re.DOTALL)
    assert found
    path.write_text(found[1])


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (1023, 301), (97, 64)])
@pytest.mark.parametrize(("resize", "crop"), [(232, 224), (64, 64)])
def test_the_snippet_of_the_readme_prepares_images_as_for_calibration(
    tmp_path: Path, size: tuple[int, int], resize: int, crop: int
) -> None:
    preprocessing = {**CONTEXT["preprocessing"], "resize": resize, "crop": crop}
    write_snippet(tmp_path / "prepare.py", preprocessing=preprocessing)
    noise = np.random.default_rng(5).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    command = [sys.executable, str(tmp_path / "prepare.py"), str(tmp_path / "image.png"), str(tmp_path / "image.npy")]
    subprocess.run(command, check=True)
    prepared = np.load(tmp_path / "image.npy")
    with Image.open(tmp_path / "image.png") as image:
        expected = Preprocessing(resize=resize, crop=crop, interpolation="bilinear")(image)
    assert prepared.dtype == np.float32
    assert prepared.shape == (3, crop, crop)
    np.testing.assert_array_equal(prepared, expected)


@pytest.mark.parametrize("kind", ["upright", "turned", "mirrored", "16 bits", "float", "32 bits", "PGM"])
def test_the_snippet_opens_files_as_calibration_does(tmp_path: Path, kind: str) -> None:
    write_snippet(tmp_path / "prepare.py")
    path = tmp_path / {"16 bits": "image.png", "float": "image.tif", "32 bits": "image.tif", "PGM": "image.pgm"}.get(
        kind, "image.jpg"
    )
    noise = np.random.default_rng(5).integers(0, 256, size=(6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((320, 240), Image.Resampling.BICUBIC)
    if kind == "16 bits":
        grey = np.asarray(image.convert("L")).astype(np.uint16)
        Image.fromarray(grey * 200 + 77).save(path)
    elif kind == "float":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255).save(path)
    elif kind == "32 bits":
        Image.fromarray(np.asarray(image.convert("L")).astype(np.int32)).save(path)
    elif kind == "PGM":  # which Pillow opens in mode I, as its older releases open a PNG of 16 bits
        grey = np.asarray(image.convert("L")).astype(">u2") * 200 + 77
        path.write_bytes(b"P5 320 240 65535\n" + grey.astype(">u2").tobytes())
    else:
        exif = Image.Exif()
        exif[0x0112] = {"upright": 1, "turned": 6, "mirrored": 5}[kind]
        image.save(path, exif=exif, quality=95)
    prepared = runpy.run_path(str(tmp_path / "prepare.py"))["prepare"](path)
    expected = Preprocessing(**CONTEXT["preprocessing"])(read_image(path))
    assert np.ptp(expected) > 1
    np.testing.assert_array_equal(prepared, expected, strict=True)


def test_the_snippet_refuses_numbers_of_an_unknown_range(tmp_path: Path) -> None:
    write_snippet(tmp_path / "prepare.py")
    Image.fromarray(np.linspace(-5, 900, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "image.tif")
    with pytest.raises(ValueError, match="unknown range"):
        runpy.run_path(str(tmp_path / "prepare.py"))["prepare"](tmp_path / "image.tif")


SIZES: list[tuple[Fit, Any, Any]] = [  # fit, resize, crop
    ("crop", 40, 32),
    ("crop", (64, 96), (64, 96)),
    ("crop", (48, 40), (33, 40)),
    ("squash", 48, 48),
    ("squash", (64, 40), (64, 40)),
    ("squash", (70, 50), (64, 41)),
    ("letterbox", 64, 64),
    ("letterbox", (64, 96), (64, 96)),
]


@pytest.mark.parametrize(("fit", "resize", "crop"), SIZES)
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_the_snippet_is_bit_exact_with_the_build(
    tmp_path: Path, fit: Fit, resize: Any, crop: Any, channels: Channels, interpolation: Interpolation
) -> None:
    preprocessing = Preprocessing(
        resize=resize,
        crop=crop,
        fit=fit,
        channels=channels,
        interpolation=interpolation,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 1 / 255),
    )
    write_snippet(
        tmp_path / "prepare.py",
        model=DETECTOR["model"],
        preprocessing=asdict(preprocessing),
        input={"name": "image", "shape": [3, *preprocessing.input_size], "dtype": "float32"},
    )
    snippet = runpy.run_path(str(tmp_path / "prepare.py"))
    for size in ((160, 120), (90, 200), (50, 31), (96, 128)):
        noise = np.random.default_rng(5).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "image.png")
        prepared = snippet["prepare"](tmp_path / "image.png")
        np.testing.assert_array_equal(prepared, preprocessing(Image.fromarray(noise)), strict=True)
        left, top, width, height = preprocessing.frame(*size)
        whole = snippet["in_image"]([left, top, left + width, top + height], *size)
        pixel = max(size[0] / width, size[1] / height)  # of the input, in the image
        assert whole == pytest.approx([0, 0, *size], abs=0.51 * pixel)


LETTERBOXES = [  # width and height, and where the image is put: left, top, right, bottom
    ((500, 375), (0, 8, 64, 56)),
    ((375, 500), (8, 0, 56, 64)),
    ((64, 64), (0, 0, 64, 64)),
    ((30, 20), (0, 10, 64, 53)),  # enlarged; 42.7 pixels become 43, of 21 left over 10 are above
    ((1023, 301), (0, 22, 64, 41)),
    ((37, 250), (27, 0, 36, 64)),
]


@pytest.mark.parametrize(("size", "place"), [*LETTERBOXES, ((1, 300), (31, 0, 32, 64))])
def test_the_snippet_of_a_detector_letterboxes_images(
    tmp_path: Path, size: tuple[int, int], place: tuple[int, int, int, int]
) -> None:
    write_snippet(tmp_path / "prepare.py", **DETECTOR)
    noise = np.random.default_rng(5).integers(0, 256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "image.png")
    command = [sys.executable, str(tmp_path / "prepare.py"), str(tmp_path / "image.png"), str(tmp_path / "image.npy")]
    subprocess.run(command, check=True)
    left, top, right, bottom = place
    expected = np.full((64, 64, 3), 114, np.uint8)
    resized = Image.fromarray(noise).resize((right - left, bottom - top), Image.Resampling.BICUBIC)
    expected[top:bottom, left:right] = np.asarray(resized)
    prepared = np.load(tmp_path / "image.npy")
    assert (prepared.dtype, prepared.shape) == (np.float32, (3, 64, 64))
    np.testing.assert_array_equal(prepared, expected.transpose(2, 0, 1).astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(prepared, Preprocessing(**DETECTOR["preprocessing"])(Image.fromarray(noise)))


def test_the_letterbox_is_normalised(tmp_path: Path) -> None:
    write_snippet(tmp_path / "prepare.py", **{**DETECTOR, "preprocessing": {**CONTEXT["preprocessing"], "fit": "letterbox"}})
    Image.new("RGB", (10, 5), (255, 0, 51)).save(tmp_path / "image.png")
    prepared = runpy.run_path(str(tmp_path / "prepare.py"))["prepare"](tmp_path / "image.png")
    grey = [(114 / 255 - mean) / std for mean, std in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)]
    assert prepared[:, 0, 0] == pytest.approx(grey)
    assert prepared[:, 32, 32] == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225])


@pytest.mark.parametrize(("size", "place"), LETTERBOXES)
def test_the_snippet_of_a_detector_maps_boxes_back(
    tmp_path: Path, size: tuple[int, int], place: tuple[int, int, int, int]
) -> None:
    write_snippet(tmp_path / "prepare.py", **DETECTOR)
    box = runpy.run_path(str(tmp_path / "prepare.py"))["in_image"](place, *size)
    pixel = max(size) / 64  # of the network's input, in the image
    assert box == pytest.approx([0, 0, *size], abs=0.51 * pixel)
    assert box[:2] == [0, 0]


# ---- the rest


def test_the_requirements_are_pinned() -> None:
    assert render("requirements.txt.j2", minimum=None) == "numpy==2.4.6\nonnxruntime==1.32.0\n"


def test_the_requirements_name_the_oldest_releases_and_what_was_verified() -> None:
    text = render("requirements.txt.j2")
    assert text.splitlines()[2:] == ["numpy>=1.24", "onnxruntime>=1.16.0"]
    assert "numpy==2.4.6, onnxruntime==1.32.0" in text


def test_the_dockerfile_ends_as_the_assembled_image_does() -> None:
    lines = render("Dockerfile.j2").splitlines()
    assert lines[1:3] == ["ARG BASE_IMAGE=python:3.11-slim-bookworm", "FROM ${BASE_IMAGE}"]
    assert 'ENTRYPOINT ["python3", "/opt/bundle/device.pyz"]' in lines
    assert 'CMD ["selftest"]' in lines
    assert [line for line in lines if line.startswith("USER")][-1] == "USER 10001:10001"


def test_compose_isolates_the_selftest() -> None:
    text = render("compose.yaml.j2")
    for line in ("network_mode: none", "read_only: true", "cap_drop: [ALL]", 'security_opt: ["no-new-privileges:true"]'):
        assert f"    {line}\n" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "mobilenet_v2-arm64-qnnpack.service"
    text = render("systemd.service.j2")
    assert "Type=oneshot\nRemainAfterExit=yes\nTimeoutStartSec=1800\n" in text
    unit.write_text(text.replace("/usr/bin/docker", "/bin/true").replace("docker.service", "basic.target"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if unit.name in line]) == (0, [])
