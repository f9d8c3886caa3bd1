"""Accuracy fallback: the profile's steps regain accuracy, and the manifest records them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bundler.data.preprocessing import Preprocessing
from bundler.manifest import AccuracyRecord, ModeRecord, read_manifest
from bundler.models.registry import find_model, load_parser
from bundler.quantization.equalization import equalization_groups
from tests.command_line import Run

PICTURES = 60
CLASSES = 10


@pytest.fixture(scope="module")
def ill_scaled(weights_of: Callable[[str], Mapping[str, Tensor]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet18 whose channels differ by factors up to 400, which float does not notice."""
    model = load_parser(find_model("resnet18")[1])(weights=weights_of("resnet18"), num_classes=CLASSES)
    generator = torch.Generator().manual_seed(0)
    for stream in equalization_groups(model, torch.zeros(1, 3, 64, 64)):
        if len(stream.writers) == len(stream.readers) == 1:
            stream.divide(torch.exp(torch.empty(len(stream.writers[0].weight)).uniform_(-3, 3, generator=generator)))
    path = tmp_path_factory.mktemp("weights") / "ill.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def labelled(ill_scaled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """Pictures in the folders of the classes that FP32 sees in them, and the number of those classes that it sees at all."""
    parser = load_parser(find_model("resnet18")[1])
    model = parser(weights=torch.load(ill_scaled, weights_only=True), num_classes=CLASSES)
    spec = find_model("resnet18")[1]
    prepare = Preprocessing(resize=64, crop=64, interpolation=spec.interpolation, mean=spec.mean, std=spec.std)
    folder, generator = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    pictures = []
    for _ in range(PICTURES):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        pictures.append(coarse.resize((64, 64), Image.Resampling.BICUBIC))
    with torch.inference_mode():
        seen = model(torch.from_numpy(np.stack([prepare(picture) for picture in pictures]))).argmax(1).tolist()
    for index in range(CLASSES):
        (folder / f"class{index}").mkdir()
    for index, picture in enumerate(pictures):
        picture.save(folder / f"class{seen[index]}" / f"{index}.png")
    for index in range(CLASSES):  # a class that FP32 never sees needs a picture too; FP32 is wrong there
        if index not in seen:
            pictures[0].save(folder / f"class{index}" / "other.png")
    return folder, len(set(seen))


Build = Callable[..., ModeRecord]


@pytest.fixture
def build(run: Run, ill_scaled: Path, labelled: tuple[Path, int], unproved: Path, tmp_path: Path) -> Build:
    """Build with torch's default qconfig and some fallback steps; return the INT8 mode's record."""

    def with_recovery(*steps: str, max_drop: float) -> ModeRecord:
        text = unproved.read_text(encoding="utf-8")
        for key, items in (("options", ()), ("fallback", steps)):
            listed = ", ".join(f'"{item}"' for item in items)
            text = re.sub(rf"^{key} = \[.*?^\]$", f"{key} = [{listed}]", text, flags=re.DOTALL | re.MULTILINE)
        profile = tmp_path / "recovering.toml"
        profile.write_text(text, encoding="utf-8")
        options = ["--weights", str(ill_scaled), "--num-classes", str(CLASSES), "--input-size", "64"]
        options += ["--calibration", str(labelled[0]), "--calibration-images", "16", "--data", str(labelled[0])]
        options += ["--mode", "int8-ptq", "--max-drop", str(max_drop), "--output", str(tmp_path / "dist")]
        run("bundle", "resnet18", "--target", str(profile), *options, code=3)
        (mode,) = read_manifest(tmp_path / "dist" / "arm64-qnnpack" / "resnet18").modes
        return mode

    return with_recovery


def test_steps_that_gain_accuracy_are_kept_and_recorded(build: Build, labelled: tuple[Path, int]) -> None:
    assert labelled[1] >= 3  # FP32 tells pictures apart
    steps = (
        "more-calibration-images",
        "minmax-ranges",
        "cross-layer-equalization",
        "per-channel-weights",
        "bias-correction",
        "mixed-precision",
    )
    # 89 points are lost at first, 11.5 when equalized, 3.3 with corrected biases; 1.6 are a picture.
    mode = build(*steps, max_drop=10)
    assert mode.quantization is not None
    assert isinstance(mode.accuracy, AccuracyRecord)
    assert mode.accuracy.drop is not None
    recovery = mode.quantization.recovery
    assert [record.step for record in recovery] == list(steps[: len(recovery)])
    assert "cross-layer-equalization" in [record.step for record in recovery if record.kept]  # they were ill scaled
    assert mode.quantization.refinements == tuple(
        record.step for record in recovery if record.kept and record.step not in ("more-calibration-images", "mixed-precision")
    )
    won = [record.won_points for record in recovery if record.kept and record.won_points is not None]
    assert all(points > 0 for points in won)
    last = next(record.score for record in reversed(recovery) if record.kept)
    assert mode.accuracy.top1 == last
    assert 100 * mode.accuracy.drop <= 10
    assert 100 * mode.accuracy.drop + sum(won) > 20  # points that were lost at first


def test_layers_that_stay_in_float_are_named_and_the_mode_is_not_called_exact(build: Build) -> None:
    # Equalized, it loses 11.5 points, of 1.6 for each picture; with a layer or two in float, half of them and less.
    mode = build("cross-layer-equalization", "mixed-precision", max_drop=8)
    assert mode.quantization is not None
    kept = [record for record in mode.quantization.recovery if record.kept]
    assert kept[-1].step == "mixed-precision"
    assert re.fullmatch(r"layer\d\.\d(, layer\d\.\d)*", kept[-1].detail)
    assert mode.quantization.float_operators["Conv"] >= 2
    assert not mode.exact
    assert "computed in float: " in mode.exact_reason


def test_no_step_is_tried_within_the_limit(build: Build) -> None:
    mode = build("cross-layer-equalization", "mixed-precision", max_drop=100)
    assert mode.quantization is not None
    assert mode.quantization.recovery == ()
