"""Where weights come from, and what is refused: every file here is a real one."""

from __future__ import annotations

import hashlib
import os
import re
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from bundler.errors import CheckpointError
from bundler.models.checkpoints import LoadedWeights, load_weights
from bundler.models.mobilenet_v3 import mobilenet_v3_small
from bundler.models.registry import find_model, load_parser
from bundler.models.yolov3 import yolov3
from bundler.models.yolov5 import yolov5n

import torchvision
from torchvision.models import MobileNet_V3_Small_Weights, get_model_weights

_, VARIANT = find_model("mobilenet_v3_small")
PUBLISHED = MobileNet_V3_Small_Weights.DEFAULT


class RunsCode:
    """Pickled, it asks whoever unpickles it to make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.fixture
def state_dict(weights_of: Callable[[str], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return dict(weights_of("mobilenet_v3_small"))


@pytest.fixture
def load(calibration: Tensor) -> Callable[..., LoadedWeights]:
    def load_request(request: str | Path, num_classes: int | None = 10) -> LoadedWeights:
        def pictures() -> NDArray[np.float32]:
            return calibration.numpy()

        return load_weights(
            str(request), VARIANT, parser=mobilenet_v3_small, num_classes=num_classes, pictures=pictures, seed=5
        )

    return load_request


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for torch.hub, and a network in which every connection is refused, on any machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib reads the proxies once
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def assert_same(loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def assert_builds(loaded: LoadedWeights) -> None:
    mobilenet_v3_small(weights=loaded.state_dict, num_classes=loaded.num_classes)


# Files


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state_dict: state_dict, id="bare"),
        pytest.param(lambda state_dict: {"epoch": 3, "state_dict": state_dict, "best": 0.9}, id="state_dict"),
        pytest.param(lambda state_dict: {"model_state_dict": state_dict}, id="model_state_dict"),
        pytest.param(lambda state_dict: {"model": state_dict, "args": {"lr": 0.1}}, id="model"),
        pytest.param(lambda state_dict: {f"module.{key}": value for key, value in state_dict.items()}, id="DataParallel"),
        pytest.param(
            lambda state_dict: {"state_dict": {f"module.{key}": value for key, value in state_dict.items()}},
            id="state_dict of DataParallel",
        ),
    ],
)
def test_checkpoints_of_training_scripts(
    wrap: Callable[[Any], Any], state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path
) -> None:
    file = tmp_path / "mine.pth"
    torch.save(wrap(state_dict), file)
    loaded = load(file)
    assert_same(loaded.state_dict, state_dict)
    assert (loaded.source, loaded.trained, loaded.num_classes) == ("mine.pth", True, 10)
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert_builds(loaded)


def test_safetensors(state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path) -> None:
    save_file(state_dict, tmp_path / "mine.safetensors")
    loaded = load(tmp_path / "mine.safetensors").state_dict
    assert_same(dict(sorted(loaded.items())), dict(sorted(state_dict.items())))  # the format sorts by size


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float64])
def test_another_precision_becomes_single(
    precision: torch.dtype, state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path
) -> None:
    given = {key: value.to(precision) if value.is_floating_point() else value for key, value in state_dict.items()}
    torch.save(given, tmp_path / "mine.pth")
    loaded = load(tmp_path / "mine.pth")
    assert {value.dtype for value in loaded.state_dict.values()} == {torch.float32, torch.int64}
    assert_same(loaded.state_dict, {key: value.to(state_dict[key].dtype) for key, value in given.items()})
    assert_builds(loaded)


def truncated(file: Path, state_dict: dict[str, Tensor]) -> None:
    torch.save(state_dict, file)
    file.write_bytes(file.read_bytes()[:-1000])


def truncated_safetensors(file: Path, state_dict: dict[str, Tensor]) -> None:
    save_file(state_dict, file)
    file.write_bytes(file.read_bytes()[:1000])


DAMAGED: dict[str, tuple[str, Callable[[Path, dict[str, Tensor]], Any], str]] = {
    "empty": ("mine.pth", lambda file, _: file.touch(), "is empty"),
    "text": ("mine.pth", lambda file, _: file.write_text("no such file\n"), "is a text file that begins with 'no such file'"),
    "zeros": ("mine.pth", lambda file, _: file.write_bytes(bytes(4096)), "begins with zeros"),
    "truncated": ("mine.pth", truncated, "truncated"),
    "empty safetensors": ("mine.safetensors", lambda file, _: file.touch(), "is empty"),
    "truncated safetensors": ("mine.safetensors", truncated_safetensors, "truncated"),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_is_refused_by_name(
    damage: str, state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path
) -> None:
    name, write, reason = DAMAGED[damage]
    write(tmp_path / name, state_dict)
    with pytest.raises(CheckpointError, match=reason) as refusal:
        load(tmp_path / name)
    assert str(tmp_path / name) in refusal.value.message
    assert refusal.value.message.isprintable()
    assert refusal.value.exit_code == 6


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors", "mine.weights", "mine"])
@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_file_is_decides_and_not_its_name(
    name: str, legacy: bool, state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path
) -> None:
    payload = {"model": state_dict, "args": Namespace(lr=0.1, folder=Path("/data")), "epoch": 1}
    torch.save(payload, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert_same(load(tmp_path / name).state_dict, state_dict)
    model = mobilenet_v3_small(num_classes=10)
    plain = torchvision.models.mobilenet_v3_small(num_classes=10)
    plain.load_state_dict(state_dict)
    torch.save(plain, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    assert_same(load(tmp_path / name).state_dict, state_dict)
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_safetensors_file_of_any_name(
    state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path
) -> None:
    save_file(state_dict, tmp_path / "mine.pth")
    assert_same(dict(sorted(load(tmp_path / "mine.pth").state_dict.items())), dict(sorted(state_dict.items())))


def test_the_number_of_classes_comes_from_the_file(
    state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path
) -> None:
    torch.save(state_dict, tmp_path / "mine.pth")
    loaded = load(tmp_path / "mine.pth", None)
    assert loaded.num_classes == 10
    assert "10 classes, from the checkpoint's last layer" in loaded.notes
    assert_builds(loaded)
    with pytest.raises(CheckpointError, match=r"has 10 classes, but --num-classes is 7: classifier\.3\.weight") as refusal:
        load(tmp_path / "mine.pth", 7)
    assert "--num-classes 10" in refusal.value.next_step


def test_a_pickle_that_would_run_code_does_not(load: Callable[..., LoadedWeights], tmp_path: Path) -> None:
    file, marker = tmp_path / "mine.pth", tmp_path / "marker"
    torch.save({"state_dict": RunsCode(marker)}, file)
    with pytest.raises(CheckpointError, match="contains no state dict"):
        load(file)
    assert not marker.exists()
    torch.load(file, weights_only=False)  # it is a pickle that runs code
    assert marker.exists()


@pytest.mark.parametrize("payload", [[1, 2], {}, {"epoch": 3}, {"state_dict": {"weight": [1.0]}}, torch.ones(3), 7])
def test_a_file_without_a_state_dict_is_refused(payload: object, load: Callable[..., LoadedWeights], tmp_path: Path) -> None:
    torch.save(payload, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match="contains no state dict"):
        load(tmp_path / "mine.pth")


def test_what_is_no_regular_file_is_not_opened(load: Callable[..., LoadedWeights], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.pth")  # to open it would wait for a writer
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(tmp_path / "mine.pth")


@pytest.mark.parametrize("name", ["mine.pth", "mine.safetensors", "mine.weights"])
def test_a_huge_file_is_not_read(name: str, load: Callable[..., LoadedWeights], tmp_path: Path) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(40 * 2**30)
    with pytest.raises(CheckpointError, match=r"begins with zeros|is a Darknet file|the limit for this model"):
        load(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(
    value: float, state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights], tmp_path: Path
) -> None:
    spoilt = state_dict["features.3.block.0.0.weight"].clone()
    spoilt.view(-1)[7] = value
    torch.save({**state_dict, "features.3.block.0.0.weight": spoilt}, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=r"NaN or infinite values, first in features\.3\.block\.0\.0\.weight"):
        load(tmp_path / "mine.pth")


def test_a_file_that_is_not_there_and_a_folder(load: Callable[..., LoadedWeights], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pth cannot be read: No such file"):
        load(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="cannot be read: it is a folder, not a regular file"):
        load(tmp_path)


# Random weights


def test_random_weights_say_so_and_repeat(load: Callable[..., LoadedWeights]) -> None:
    first, again = load("random"), load("random")
    assert (first.source, first.trained, first.num_classes) == ("random:5", False, 10)
    assert first.sha256 == again.sha256
    assert_same(first.state_dict, again.state_dict)
    assert_builds(first)


# Published weights


@pytest.mark.usefixtures("hub")
def test_without_network_auto_is_random_and_loud(
    load: Callable[..., LoadedWeights], capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load("auto", None)
    assert (loaded.source, loaded.trained, loaded.num_classes) == ("random:5", False, 1000)
    assert_builds(loaded)
    captured = capsys.readouterr()
    said = " ".join(captured.err.split())
    assert "the published weights of mobilenet_v3_small cannot be downloaded" in said
    assert "using random weights: predictions are meaningless; pass --weights FILE" in said
    assert captured.out == ""


def test_auto_with_another_number_of_classes_is_random_and_loud(
    load: Callable[..., LoadedWeights], capsys: pytest.CaptureFixture[str]
) -> None:
    assert load("auto", 10).source == "random:5"
    said = " ".join(capsys.readouterr().err.split())
    assert "have 1000 classes, not 10" in said
    assert "using random weights: predictions are meaningless; pass --weights FILE" in said


def test_without_network_pretrained_is_refused_with_where_to_put_the_file(
    hub: Path, load: Callable[..., LoadedWeights]
) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(https://download\.pytorch\.org/") as refusal:
        load("pretrained", None)
    assert str(hub) in refusal.value.next_step
    assert list(hub.iterdir()) == []


def test_pretrained_with_another_number_of_classes_is_refused(load: Callable[..., LoadedWeights]) -> None:
    with pytest.raises(CheckpointError, match="have 1000 classes, not 10"):
        load("pretrained", 10)


@pytest.mark.parametrize("request_", ["pretrained", "auto"])
def test_a_file_in_the_cache_needs_no_network(request_: str, hub: Path, load: Callable[..., LoadedWeights]) -> None:
    """torch.hub checks a digest only of what it downloads; a file that lies there under the published name is taken."""
    file = hub / Path(PUBLISHED.url).name
    state_dict = mobilenet_v3_small().state_dict()
    torch.save(state_dict, file)
    loaded = load(request_, None)
    assert_same(loaded.state_dict, state_dict)
    assert (loaded.source, loaded.trained, loaded.num_classes) == (f"pretrained:{PUBLISHED}", True, 1000)
    assert loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert_builds(loaded)


@pytest.mark.parametrize("damage", ["empty", "text", "zeros", "truncated"])
def test_a_damaged_file_in_the_cache_is_refused_with_what_to_delete(
    damage: str, hub: Path, state_dict: dict[str, Tensor], load: Callable[..., LoadedWeights]
) -> None:
    file = hub / Path(PUBLISHED.url).name
    DAMAGED[damage][1](file, state_dict)
    with pytest.raises(CheckpointError, match="published weights of mobilenet_v3_small are damaged") as refusal:
        load("pretrained", None)
    assert f"Delete {file}" in refusal.value.next_step


def test_code_in_the_cache_does_not_run(hub: Path, load: Callable[..., LoadedWeights], tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save(RunsCode(marker), hub / Path(PUBLISHED.url).name)
    with pytest.raises(CheckpointError, match="are damaged"):
        load("pretrained", None)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):  # torch names no type of its own
        mobilenet_v3_small(weights=PUBLISHED)
    assert not marker.exists()


def test_a_parser_takes_published_weights_from_the_cache(hub: Path) -> None:
    state_dict = mobilenet_v3_small().state_dict()
    torch.save(state_dict, hub / Path(PUBLISHED.url).name)
    assert_same(mobilenet_v3_small(weights=PUBLISHED, progress=False).state_dict(), state_dict)
    with pytest.raises(ValueError, match="has 1000 classes, not 10"):
        mobilenet_v3_small(weights=PUBLISHED, num_classes=10)


@pytest.mark.parametrize(
    "name", ["resnet18", "wide_resnet50_2", "resnext50_32x4d", "densenet121", "efficientnet_b0", "mobilenet_v2"]
)
def test_each_family_takes_its_published_checkpoint_from_the_cache_with_exact_keys(name: str, hub: Path) -> None:
    """As torchvision's plain model saves it; DenseNet's have the names of an older torch (`norm.1` for `norm1`)."""
    published = get_model_weights(name).DEFAULT
    plain = getattr(torchvision.models, name)()
    expected = plain.state_dict()
    file = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key): value for key, value in expected.items()}
    assert (file.keys() != expected.keys()) == name.startswith("densenet")
    torch.save(file, hub / Path(published.url).name)
    parser = load_parser(find_model(name)[1])
    assert_same(parser(weights=published, progress=False).state_dict(), expected)


@pytest.mark.usefixtures("hub")
def test_a_parser_without_network_says_what_failed() -> None:
    with pytest.raises(OSError, match="Connection refused"):
        mobilenet_v3_small(weights=PUBLISHED, progress=False)


# Darknet's files, and whole models


def test_a_darknet_file_fits_the_parser(tmp_path: Path) -> None:
    model = yolov3(num_classes=3)
    stored = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    numbers = {key: torch.rand(value.shape, generator=generator) for key, value in stored.items() if value.is_floating_point()}
    with (tmp_path / "yolov3.weights").open("wb") as file:
        np.array([0, 2, 0, 0, 0], np.int32).tofile(file)  # version 0.2.0, and 64 bits of images seen
        for layer in model.darknet_layers():
            parts = [f"{layer.norm}.{name}" for name in ("bias", "weight", "running_mean", "running_var")] if layer.norm else []
            for key in [*parts, *([] if layer.norm else [f"{layer.convolution}.bias"]), f"{layer.convolution}.weight"]:
                numbers[key].numpy().tofile(file)
    loaded = from_file(tmp_path / "yolov3.weights", "yolov3", num_classes=3)
    assert (loaded.source, loaded.trained, loaded.num_classes) == ("yolov3.weights", True, 3)
    built = yolov3(weights=loaded.state_dict, num_classes=3).state_dict()
    assert all(torch.equal(built[key], value) for key, value in numbers.items())
    with pytest.raises(CheckpointError, match=r"values more than the model|ends within the layer"):
        from_file(tmp_path / "yolov3.weights", "yolov3", num_classes=4)
    backbone = 20 + 4 * sum(value.numel() for key, value in numbers.items() if key.startswith("backbone."))
    (tmp_path / "darknet53.conv.74").write_bytes((tmp_path / "yolov3.weights").read_bytes()[:backbone])  # as published
    with pytest.raises(CheckpointError, match="contains the first 52 of 75 convolutions"):
        from_file(tmp_path / "darknet53.conv.74", "yolov3", num_classes=3)
    with pytest.raises(CheckpointError, match="not a Darknet network"):
        from_file(tmp_path / "yolov3.weights", "yolov5n", num_classes=3)


def test_a_pt_file_with_a_whole_model_is_read_and_not_executed(tmp_path: Path) -> None:
    """As the published YOLOv5 files: a dict with a model object in half precision, beside what training left there."""
    model = yolov5n(num_classes=3)
    marker = tmp_path / "marker"
    plain = nn.Module()
    plain.add_module("model", model.model)
    torch.save({"model": plain.half(), "ema": None, "epoch": -1, "date": RunsCode(marker)}, tmp_path / "yolov5n.pt")
    expected = {key: value.float() if value.is_floating_point() else value for key, value in plain.state_dict().items()}
    loaded = from_file(tmp_path / "yolov5n.pt", "yolov5n", num_classes=3)
    assert not marker.exists()
    assert_same(loaded.state_dict, expected)
    assert_same(yolov5n(weights=loaded.state_dict, num_classes=3).state_dict(), expected)


def test_a_pt_file_with_a_state_dict(tmp_path: Path) -> None:
    expected = yolov5n(num_classes=3).state_dict()
    torch.save({"model": expected}, tmp_path / "mine.pt")
    assert_same(from_file(tmp_path / "mine.pt", "yolov5n", num_classes=3).state_dict, expected)


def from_file(path: Path, model: str, *, num_classes: int) -> LoadedWeights:
    def pictures() -> NDArray[np.float32]:
        raise AssertionError("only random weights need pictures")

    _, variant = find_model(model)
    return load_weights(str(path), variant, parser=load_parser(variant), num_classes=num_classes, pictures=pictures, seed=0)


@pytest.mark.parametrize("model", ["yolov3", "yolov5n", "mobilenet_v2"])
@pytest.mark.parametrize(
    ("keys", "what"),
    [
        (("conv1.weight", "bn1.num_batches_tracked", "layer4.0.conv1.weight"), "of a ResNet, ResNeXt or Wide ResNet"),
        (("features.conv0.weight", "features.denseblock1.denselayer1.norm1.num_batches_tracked"), "of a DenseNet"),
        (("features.0.0.weight", "features.4.0.block.0.0.weight"), "of an EfficientNet"),
        (("features.0.0.weight", "features.4.block.0.0.weight"), "of a MobileNetV3"),
        (("features.0.weight", "classifier.6.weight"), "of a VGG, an AlexNet or a SqueezeNet"),
    ],
)
def test_weights_of_another_network_are_named_for_what_they_are(
    model: str, keys: tuple[str, ...], what: str, tmp_path: Path
) -> None:
    counter = torch.tensor(1)
    weights = {key: counter if key.endswith("tracked") else torch.ones(4, 3, 1, 1) for key in keys}
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=f"is not of {model} but {what}$"):
        from_file(tmp_path / "mine.pth", model, num_classes=3)
