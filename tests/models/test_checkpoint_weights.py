"""Which weights of a checkpoint are a network's: files as training scripts write them, of a small network."""

from __future__ import annotations

import copy
import gzip
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import convert, get_default_qat_qconfig, get_default_qconfig, prepare, prepare_qat

from bundler.errors import CheckpointError
from bundler.models.checkpoint_file import CheckpointFile
from bundler.models.checkpoint_weights import Network, NetworkWeights, network_of, weights_in
from bundler.models.other_names import other_namings
from bundler.models.registry import find_model, load_parser
from bundler.quantization import fuse_modules
from bundler.quantization.weight_names import shapes_of

StateDict = dict[str, Tensor]


class Small(nn.Module):
    """Two convolutions, one of them with a residual, and a classifier."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        pooled: Tensor = self.fc((x + self.block(x)).mean((2, 3)))
        return pooled

    def fuse_model(self, is_qat: bool | None = None) -> None:
        fuse_modules(self, [["conv1", "bn1", "relu"], ["block.0", "block.1"]], is_qat)


@pytest.fixture
def model() -> Small:
    model = Small(5)
    for value in model.state_dict().values():
        value.copy_(torch.rand(value.shape) + 0.5 if value.is_floating_point() else torch.tensor(3))
    return model


@pytest.fixture
def weights(model: Small) -> StateDict:
    return dict(model.state_dict())


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., NetworkWeights]:
    def read(
        payload: object, *, key: str | None = None, classes: int | None = None, file: Path | None = None
    ) -> NetworkWeights:
        path = tmp_path / "mine.pth" if file is None else file
        if file is None:
            torch.save(payload, path)
        with CheckpointFile(path, model_bytes=small(classes).bytes) as opened:
            return weights_in(opened, small(classes), key=key)

    return read


def small(classes: int | None = None) -> Network:
    return network_of("small", Small, num_classes=classes or 1000, asked_classes=classes, is_ours=True)


def assert_same(loaded: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[key], expected[key]) for key in expected)


def under(prefix: str, weights: Mapping[str, Tensor]) -> StateDict:
    return {prefix + key: value for key, value in weights.items()}


def other(weights: StateDict) -> StateDict:
    return {key: value * 2 for key, value in weights.items()}


Found = Callable[..., NetworkWeights]


# Prefixes and wrappers


@pytest.mark.parametrize(
    "prefix", ["model.", "net.", "module.", "_orig_mod.", "module._orig_mod.", "student.", "ema_model.module.", "a.b.c.d."]
)
def test_prefixes(prefix: str, weights: StateDict, found: Found) -> None:
    loaded = found({"state_dict": under(prefix, weights)})
    assert_same(loaded.tensors, weights)
    assert loaded.num_classes == 5
    assert f"weights: state_dict of the file, prefix '{prefix}' removed from {len(weights)} keys" in loaded.notes


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda weights: {"net": weights, "epoch": 1}, id="net"),
        pytest.param(lambda weights: {"ema": weights}, id="ema"),
        pytest.param(lambda weights: {"params": weights, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, id="params"),
        pytest.param(lambda weights: {"run": {"models": {"generator": weights}}}, id="deep"),
        pytest.param(lambda weights: {"models": [{"x": 1}, weights]}, id="list"),
        pytest.param(
            lambda weights: {"state_dict": under("model.", weights), "hyper_parameters": {"folder": Path("/d")}}, id="Lightning"
        ),
        pytest.param(lambda weights: {"n_averaged": torch.tensor(3), **under("module.", weights)}, id="AveragedModel"),
        pytest.param(lambda weights: {key: nn.Parameter(value.float()) for key, value in weights.items()}, id="parameters"),
        pytest.param(lambda weights: {"model": weights, "ema": copy.deepcopy(weights)}, id="the same twice"),
    ],
)
def test_wrappers(wrap: Callable[[StateDict], Any], weights: StateDict, found: Found) -> None:
    assert_same(found(wrap(weights)).tensors, weights)


def test_parts_with_other_prefixes(weights: StateDict, found: Found) -> None:
    split = {("head." if key.startswith("fc.") else "backbone.") + key: value for key, value in weights.items()}
    loaded = found(split)
    assert_same(loaded.tensors, weights)
    assert "fc from 'head.fc'" in loaded.notes[0]
    renamed = {key.replace("fc.", "classifier.1."): value for key, value in weights.items()}
    loaded = found(renamed)
    assert_same(loaded.tensors, weights)
    assert "fc.weight from 'classifier.1.weight'" in loaded.notes[0]
    body = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    head = {key: value for key, value in weights.items() if key.startswith("fc.")}
    assert_same(found({"backbone": body, "head": head}).tensors, weights)


def test_modules(model: Small, weights: StateDict, found: Found) -> None:
    assert_same(found(model).tensors, weights)
    assert_same(found({"model": nn.DataParallel(model)}).tensors, weights)
    average = copy.deepcopy(model)
    average.fc.weight.data *= 2
    assert_same(found({"model": model, "ema": average}).tensors, average.state_dict())


def test_other_precisions_are_said(weights: StateDict, found: Found) -> None:
    loaded = found({key: value.to(torch.bfloat16) if value.ndim == 4 else value for key, value in weights.items()})
    assert "converted to float32: 2 tensors of bfloat16" in loaded.notes


# Several, and what is left out


@pytest.mark.parametrize(
    ("payload", "names"),
    [
        (lambda a, b: {"state_dict": a, "state_dict_ema": b}, ("state_dict", "state_dict_ema")),
        (lambda a, b: under("student.", a) | under("teacher.", b), ("student", "teacher")),
        (lambda a, b: {"state_dict": under("model.", a) | under("ema_model.module.", b)}, ("model", "ema_model.module")),
    ],
)
def test_several_with_other_values_are_asked_about(
    payload: Callable[[StateDict, StateDict], Any], names: tuple[str, str], weights: StateDict, found: Found
) -> None:
    both = payload(weights, other(weights))
    with pytest.raises(CheckpointError, match="2 times, with different values") as refusal:
        found(both)
    assert all(name in refusal.value.message for name in names)
    assert "--weights-key" in refusal.value.next_step
    assert_same(found(both, key=names[0]).tensors, weights)
    assert_same(found(both, key=names[1]).tensors, other(weights))
    with pytest.raises(CheckpointError, match="no weights of this network under the key 'nothing'"):
        found(both, key="nothing")


def test_what_is_not_the_networks_is_left_out_and_named(weights: StateDict, found: Found) -> None:
    extra = {"criterion.weight": torch.ones(5), "metric.confusion": torch.ones(5, 5), "n_averaged": torch.tensor(1)}
    loaded = found({**under("model.", weights), **extra})
    assert_same(loaded.tensors, weights)
    assert "ignored: 3 tensors that are not of this network (criterion.weight, metric.confusion, n_averaged)" in loaded.notes
    teacher = {"teacher.stem.weight": torch.ones(8, 3, 7, 7), "teacher.body.weight": torch.ones(8, 8, 3, 3)}
    assert_same(found({**under("student.", weights), **teacher}).tensors, weights)


def test_layers_behind_the_network_are_asked_about(weights: StateDict, found: Found) -> None:
    second = {**under("backbone.", weights), "head.weight": torch.ones(3, 5), "head.bias": torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"2 of layers beside it \(head\.weight, head\.bias\)") as refusal:
        found(second)
    assert "--weights-key backbone" in refusal.value.next_step
    assert_same(found(second, key="backbone").tensors, weights)


def test_layers_inside_the_network_are_another_network(weights: StateDict, found: Found) -> None:
    with pytest.raises(CheckpointError, match=r"another network.*1 more in its modules \(block\.attention\.weight\)"):
        found({**weights, "block.attention.weight": torch.ones(4, 4)})


@pytest.mark.parametrize("key", ["conv1.weight", "block.1.running_var", "fc.bias"])
def test_each_key_is_needed(key: str, weights: StateDict, found: Found) -> None:
    del weights[key]
    with pytest.raises(CheckpointError, match=rf"1 missing \({key}\)".replace(".", r"\.")):
        found({"model": under("net.", weights)})


def test_counters_may_be_missing(weights: StateDict, found: Found) -> None:
    older = {key: value for key, value in weights.items() if "num_batches" not in key}
    assert_same(found(older).tensors, older)


def test_another_number_of_classes_than_asked_for(weights: StateDict, found: Found) -> None:
    assert found(weights, classes=5).notes == ()
    with pytest.raises(CheckpointError, match=r"has 5 classes, but --num-classes is 7: fc\.weight is \[5, 4\]"):
        found(weights, classes=7)


def test_another_shape(weights: StateDict, found: Found) -> None:
    with pytest.raises(CheckpointError, match=r"conv1\.weight is \[4, 1, 3, 3\] in the checkpoint and \[4, 3, 3, 3\]"):
        found({**weights, "conv1.weight": torch.ones(4, 1, 3, 3)})


# Pickled networks that compute something else


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: setattr(model, "relu", nn.LeakyReLU(0.1)), "the network has the activation LeakyReLU, not ReLU"),
        (lambda model: setattr(model.conv1, "stride", (1, 1)), r"conv1 has stride \(1, 1\), not \(2, 2\)"),
        (lambda model: setattr(model.bn1, "eps", 1e-3), "bn1 has eps 0.001, not 1e-05"),
    ],
)
def test_pickled_networks_are_compared(change: Callable[[Small], None], said: str, model: Small, found: Found) -> None:
    change(model)
    with pytest.raises(CheckpointError, match=f"computes something else: {said}"):
        found({"model": model})


# Quantization-aware training


@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
def test_float_weights_of_a_model_in_training_for_int8(model: Small, weights: StateDict, found: Found) -> None:
    model.train()
    model.fuse_model(is_qat=True)
    assert_same(found({"net": model.state_dict()}).tensors, weights)
    model.qconfig = get_default_qat_qconfig("x86")
    prepare_qat(model, inplace=True)
    unused = model.state_dict()
    assert any(not value.isfinite().all() for value in unused.values())  # observers that never ran
    assert_same(found({"net": unused}).tensors, weights)


@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
def test_a_model_prepared_for_calibration(model: Small, found: Found) -> None:
    model.eval()
    model.fuse_model(is_qat=False)
    fused = dict(model.state_dict())
    model.qconfig = get_default_qconfig("x86")
    prepare(model, inplace=True)
    assert_same(found(model.state_dict()).tensors, fused)


@pytest.mark.filterwarnings("ignore:.*")
def test_a_converted_model_is_named(model: Small, found: Found, recwarn: pytest.WarningsRecorder) -> None:
    model.eval()
    model.fuse_model(is_qat=False)
    model.qconfig = get_default_qconfig("x86")
    prepare(model, inplace=True)
    convert(model, inplace=True)
    checkpoint = model.state_dict()
    recwarn.clear()
    with pytest.raises(CheckpointError, match="is of a quantized") as refusal:
        found(checkpoint)
    assert "float model" in refusal.value.next_step
    with pytest.raises(CheckpointError, match="is of a quantized"):
        found(model)


# Tensors that are none of a float network


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda value: value.to_sparse(), "is sparse"),
        (lambda value: value.to("meta"), "is on the meta device"),
        (lambda value: value.to(torch.complex64), "is complex"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is quantized"),
    ],
)
def test_other_tensors_are_named(change: Callable[[Tensor], Tensor], said: str, weights: StateDict, found: Found) -> None:
    with pytest.raises(CheckpointError, match=rf"conv1\.weight .*{said}"):
        found({**weights, "conv1.weight": change(weights["conv1.weight"])})
    assert_same(found({**under("model.", weights), "extra": change(torch.ones(2))}).tensors, weights)


# Archives


def archive(path: Path, content: Path) -> None:
    names = ("__MACOSX/._best.pt", "run/args.yaml", "README.md", ".DS_Store")
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(content, "run/weights/best.pt")
            for name in names:
                file.writestr(name, "x")
    elif path.suffix == ".gz" and ".tar" not in path.name:
        path.write_bytes(gzip.compress(content.read_bytes()))
    else:
        mode: Any = f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w"
        with tarfile.open(path, mode) as file_:
            file_.add(content, "./model.pth")
            file_.add(__file__, "code/inference.py")


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tar.xz", "a.tar.bz2", "a.pth.gz"])
def test_archives_with_one_checkpoint(name: str, weights: StateDict, found: Found, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "plain.pth")
    archive(tmp_path / name, tmp_path / "plain.pth")
    assert_same(found(None, file=tmp_path / name).tensors, weights)


def test_archives_with_several_or_none(weights: StateDict, found: Found, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in ("best.pt", "last.pt"):
            file.write(tmp_path / "plain.pth", name)
    with pytest.raises(CheckpointError, match=r"contains 2 checkpoints \(best\.pt, last\.pt\)"):
        found(None, file=tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("readme.txt", "x")
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        found(None, file=tmp_path / "a.zip")


# Names of others


def of(name: str) -> Network:
    parser = load_parser(find_model(name)[1])
    return network_of(name, lambda classes: parser(num_classes=classes), num_classes=10, asked_classes=None, is_ours=True)


def refuse(file: Path, network: Network, said: str) -> None:
    with CheckpointFile(file, model_bytes=network.bytes) as opened, pytest.raises(CheckpointError, match=said):
        weights_in(opened, network, key=None)


def test_timms_names(tmp_path: Path) -> None:
    """A few by hand; which networks are the same was measured against timm itself."""
    expected = {
        "efficientnet_b0": {
            "features.0.0.weight": "conv_stem.weight",
            "features.1.0.block.0.0.weight": "blocks.0.0.conv_dw.weight",
            "features.1.0.block.1.fc2.bias": "blocks.0.0.se.conv_expand.bias",
            "features.1.0.block.2.1.running_mean": "blocks.0.0.bn2.running_mean",
            "features.4.2.block.3.0.weight": "blocks.3.2.conv_pwl.weight",
            "features.8.1.bias": "bn2.bias",
            "classifier.1.weight": "classifier.weight",
        },
        "mobilenet_v2": {
            "features.1.conv.1.weight": "blocks.0.0.conv_pw.weight",
            "features.2.conv.0.0.weight": "blocks.1.0.conv_pw.weight",
            "features.3.conv.1.1.weight": "blocks.1.1.bn2.weight",
            "features.17.conv.3.running_var": "blocks.6.0.bn3.running_var",
            "features.18.0.weight": "conv_head.weight",
        },
    }
    for name, pairs in expected.items():
        network = of(name)
        (naming,) = other_namings(name, shapes_of(network.model.state_dict()))
        names = {key: other_ for key, (other_,) in naming.names.items()}
        assert len(set(names.values())) == len(naming.shapes)
        assert pairs.items() <= names.items()
        file = {names[key]: torch.rand(shape) for key, shape in naming.shapes.items()}
        for payload, warned in ((file, name != "mobilenet_v2"), ({"arch": name, "state_dict": file}, False)):
            torch.save(payload, tmp_path / "mine.pth")
            with CheckpointFile(tmp_path / "mine.pth", model_bytes=network.bytes) as opened:
                loaded = weights_in(opened, network, key=None)
            assert all(torch.equal(loaded.tensors[key], file[other_]) for key, other_ in names.items())
            assert bool(loaded.warnings) is warned
        torch.save({"arch": f"tf_{name}", "state_dict": file}, tmp_path / "mine.pth")
        with (
            CheckpointFile(tmp_path / "mine.pth", model_bytes=network.bytes) as opened,
            pytest.raises(CheckpointError, match="pads"),
        ):
            weights_in(opened, network, key=None)


def test_another_library_is_named(tmp_path: Path) -> None:
    network = of("mobilenet_v3_small")
    torch.save({"conv_stem.weight": torch.ones(1), "blocks.0.0.conv_dw.weight": torch.ones(1)}, tmp_path / "mine.pth")
    with (
        CheckpointFile(tmp_path / "mine.pth", model_bytes=network.bytes) as opened,
        pytest.raises(CheckpointError, match="timm"),
    ):
        weights_in(opened, network, key=None)
