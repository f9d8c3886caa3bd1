"""Darknet's cfg: what it changes, held against an interpreter of cfg and weights, and what is refused."""

from __future__ import annotations

import re
import runpy
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import CheckpointError
from bundler.models import yolov3, yolov4
from bundler.models.checkpoints import LoadedWeights, load_weights
from bundler.models.darknet_networks import DarknetNetwork, read_cfg
from bundler.models.registry import find_model, load_parser

PLAIN = runpy.run_path(str(Path(__file__).parent / "plain_darknet.py"))
TEXTS: dict[str, str] = {"yolov3": PLAIN["yolov3"](), "yolov4": PLAIN["yolov4"]()}
HEADER = struct.pack("<iiiq", 0, 2, 5, 32)


def read(text: str, model: str = "yolov4") -> DarknetNetwork:
    return read_cfg(text.encode(), model, source="mine.cfg")


def load(weights: Path, model: str, *, cfg: Path | None = None, num_classes: int | None = None) -> LoadedWeights:
    _, variant = find_model(model)
    return load_weights(
        str(weights),
        variant,
        parser=load_parser(variant),
        num_classes=num_classes,
        pictures=lambda: pytest.fail("only random weights need pictures"),
        seed=0,
        cfg=cfg,
    )


OWN = ", ".join(str(number) for number in range(7, 25))  # anchors


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("yolov4", lambda text: text.replace("=mish", "=leaky")),
        ("yolov3", lambda text: text.replace("=leaky", "=swish", 40).replace("scale_x_y = 1.0", "scale_x_y = 1.4", 1)),
    ],
)
def test_a_cfg_and_its_weights_compute_what_an_interpreter_of_them_does(
    model: str, change: Callable[[str], str], tmp_path: Path
) -> None:
    text = change(PLAIN[model](classes=2, anchors=OWN))
    numbers = PLAIN["random_weights"](text)
    (tmp_path / "mine.cfg").write_text(text)
    (tmp_path / "mine.weights").write_bytes(HEADER + numbers.tobytes())
    loaded = load(tmp_path / "mine.weights", model, cfg=tmp_path / "mine.cfg")
    (tmp_path / "mine.weights").unlink()
    assert loaded.num_classes == 2
    assert loaded.network is not None
    assert "settings of mine.cfg: " in loaded.network
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = PLAIN["run"](text, numbers, picture)
        del numbers
        network = load_parser(find_model(model)[1])(num_classes=2, **loaded.options, weights=loaded.state_dict)
        torch.testing.assert_close(network.eval()(picture)[0], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(("model", "module"), [("yolov3", yolov3), ("yolov4", yolov4)])
def test_the_published_cfg_says_what_is_built_without_one(model: str, module: Any) -> None:
    found = read(TEXTS[model], model)
    assert found.architecture.anchors == module.ANCHORS
    assert found.architecture.xy_scales == module.DEFAULT.xy_scales
    assert found.num_classes == 80
    assert found.size == ((416, 416) if model == "yolov3" else (608, 608))
    with torch.device("meta"):
        usual = load_parser(find_model(model)[1])()
        told = load_parser(find_model(model)[1])(architecture=found.architecture)
    assert [repr(block.act) for block in usual.blocks().values()] == [repr(block.act) for block in told.blocks().values()]


def test_blanks_comments_aliases_and_other_line_ends_change_nothing() -> None:
    text = TEXTS["yolov4"].replace("[convolutional]", " [ conv ]").replace("[maxpool]", "[max] ; pool")
    text = text.replace("filters=32\n", "filters = 3 2 # of the stem\n\n;comment\n").replace("\n", "\r\n")
    assert read(f"\ufeff{text}") == read(TEXTS["yolov4"])


def test_what_is_set_twice_for_training_and_testing_does_not_matter() -> None:
    assert read(TEXTS["yolov4"].replace("batch=64", "batch=1\nbatch=64")) == read(TEXTS["yolov4"])


def test_more_or_fewer_anchors_of_each_scale() -> None:
    text = TEXTS["yolov3"].replace("filters=255", "filters=170")
    for before, after in (("6,7,8", "4,5"), ("3,4,5", "2,3"), ("0,1,2", "0,1")):
        text = text.replace(f"mask = {before}", f"mask = {after}")
    anchors = read(text, "yolov3").architecture.anchors
    assert anchors == (((10, 13), (16, 30)), ((33, 23), (30, 61)), ((62, 45), (59, 119)))
    with torch.device("meta"):
        model = load_parser(find_model("yolov3")[1])(architecture=read(text, "yolov3").architecture)
    assert {layer.out_channels for layer in model.prediction_layers()} == {170}


# What is refused, each by its line


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("activation=mish", "activation=gelu", r"line 14: activation=gelu of layer 0 \[convolutional\] is not supported"),
        ("activation=mish\n", "", r"line 8: activation=logistic of layer 0"),
        ("filters=32", "filters=16", r"line 10: filters of layer 0 \[convolutional\] is 16, not 32 as in yolov4"),
        ("size=3", "size=5", "size of layer 0 .* is 5, not 3 as in yolov4"),
        ("stride=2", "stride=1", "stride of layer 1 .* is 1, not 2 as in yolov4"),
        ("pad=1", "pad=0", "padding of the convolution is 0; only 1 is supported"),
        ("batch_normalize=1\n", "", "batch_normalize of layer 0 .* is 0, not 1 as in yolov4"),
        ("filters=32", "filters=32\ngroups=2", "groups of the convolution is 2"),
        ("filters=32", "filters=32\ndilation=2", "dilation of the convolution is 2"),
        ("filters=32", "filters=32\nantialiasing=1", "antialiasing=1 in layer 0 is not supported"),
        ("filters=32", "filters=32\nshare_index=0", "shares its weights"),
        ("filters=32", "filters=32\nfilters=64", "filters is 32 here and 64 in line 11"),
        ("from=-3", "from=-2", r"from of layer 7 \[shortcut\] is 5, not 4 as in yolov4"),
        ("from=-3", "from=-9", "names a layer that does not come before it"),
        ("from=-3", "from=-3\nweights_type=per_feature", "weights_type=per_feature is not supported"),
        ("from=-3\nactivation=linear", "from=-3\nactivation=leaky", r"activation=leaky of layer 7 \[shortcut\]"),
        ("layers = -2", "layers = -1", "layers of layer 3 .* is 2, not 1 as in yolov4"),
        ("layers = -2", "layers = -2,-3", r"layer 3 \[route\] reads 2 layers, not 1 as in yolov4"),
        ("layers = -2", "layers = -2\ngroups=2", "groups=2 in layer 3 is not supported"),
        ("size=13", "size=11", r"size of layer 112 \[maxpool\] is 11, not 13 as in yolov4"),
        ("[upsample]\nstride=2", "[upsample]\nstride=4", r"stride of layer 118 \[upsample\] is 4"),
        ("[upsample]", "[reorg]", r"layer 118 is \[reorg\], not \[upsample\] as in yolov4"),
        ("classes=80", "classes=80\nnew_coords=1", "new_coords=1 in layer 139 is not supported"),
        ("classes=80", "classes=79", r"filters=255 before a \[yolo\] section, but 3 masks x \(5 \+ 79 classes\) are 252"),
        ("classes=80", "classes=999999999", "classes=999999999 is not between 1 and 10000"),
        ("mask = 0,1,2", "mask = 0" + ",0" * 16, "does not select from num=9"),
        ("num=9", "num=8", "anchors must be 16 positive numbers"),
        ("mask = 0,1,2", "mask = 0,1,9", "mask=0,1,9 does not select from num=9"),
        ("scale_x_y = 1.2", "scale_x_y = nan", "scale_x_y=nan is not a number"),
        ("scale_x_y = 1.2", "scale_x_y = -1", "scale_x_y=-1 is not between 0 and 10"),
        ("12, 16,", "12, -16,", "positive numbers"),
        ("channels=3", "channels=1", "input has 1 channels"),
        ("filters=32", "filters=many", "filters=many is not an integer"),
        ("filters=32", f"filters={'9' * 5000}", "is not an integer"),
        ("filters=32", "filters", "filters is not key=value"),
        ("[net]", "batch=1\n[net]", "line 1: batch=1 precedes the first section"),
        ("[net]", "[net", r"line 1: \[net has no closing bracket"),
        ("[net]", "[yolo]", r"does not begin with the section \[net\]"),
    ],
)
def test_another_network_is_refused_by_its_line(before: str, after: str, message: str) -> None:
    text = TEXTS["yolov4"]
    assert before in text
    with pytest.raises(CheckpointError, match=message) as refusal:
        read(text.replace(before, after, 1))
    assert refusal.value.message.startswith("mine.cfg")
    assert len(refusal.value.message) < 300
    assert refusal.value.next_step


@pytest.mark.parametrize("count", [0, 1, 50, 161])
def test_a_cfg_that_was_cut_off_is_refused(count: int) -> None:
    sections = re.split(r"(?m)^(?=\[)", TEXTS["yolov4"])[1:]
    with pytest.raises(CheckpointError, match=f"the cfg has {count} layers, yolov4 has 162"):
        read("".join(sections[: count + 1]))


def test_a_relative_is_named() -> None:
    spp = "[net]\n" + "[convolutional]\nfilters=16\n" * 13 + "[yolo]\n" * 2
    with pytest.raises(CheckpointError, match=r"has 13 convolutions and 2 \[yolo\] sections, like yolov3-tiny"):
        read(spp, "yolov3")
    with pytest.raises(CheckpointError, match="not 32 as in yolov3"):
        read(TEXTS["yolov4"], "yolov3")


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe[\x00n\x00", bytes(500), b"PK\x03\x04" * 9, b"[net]\n" + b"a=1\n" * 300_000]
)
def test_what_is_no_cfg_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"^mine\.cfg"):
        read_cfg(content, "yolov3", source="mine.cfg")


@given(st.text(max_size=200), st.sampled_from(["", "[net]\n", "[net]\n[yolo]\n", "[net]\n[route]\nlayers="]))
def test_any_text_is_a_cfg_or_refused(text: str, start: str) -> None:
    with pytest.raises(CheckpointError):
        read_cfg((start + text).encode("utf-8", "surrogatepass"), "yolov3", source="mine.cfg")


# Weights beside a cfg


def weights_of(tmp_path: Path, numbers: int) -> Path:
    """Return a file of a few small numbers again and again."""
    path = tmp_path / "mine.weights"
    some = np.random.default_rng(0).uniform(0.1, 1, 4099).astype("<f4")
    path.write_bytes(HEADER + np.resize(some, numbers).tobytes())
    return path


def test_the_number_of_classes_follows_from_the_length_and_what_is_assumed_is_said(tmp_path: Path) -> None:
    path = weights_of(tmp_path, 61_570_957 + 3 * 5385)
    loaded = load(path, "yolov3")
    assert loaded.num_classes == 3
    assert loaded.network is not None
    assert "those of the published yolov3.cfg are assumed; pass --cfg FILE.cfg" in loaded.network
    with pytest.raises(CheckpointError, match="fits 3 classes, not 80") as refusal:
        load(path, "yolov3", num_classes=80)
    assert "--num-classes 3" in refusal.value.next_step


def test_a_cfg_with_another_number_of_classes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.cfg").write_text(PLAIN["yolov3"](classes=4))
    path = weights_of(tmp_path, 61_570_957 + 3 * 5385)
    with pytest.raises(CheckpointError, match="fits 3 classes, not 4") as refusal:
        load(path, "yolov3", cfg=tmp_path / "mine.cfg")
    assert refusal.value.next_step == "Pass the cfg with which these weights were trained: it has classes=3."
    with pytest.raises(CheckpointError, match=r"mine\.cfg has classes=4, but --num-classes is 3"):
        load(path, "yolov3", cfg=tmp_path / "mine.cfg", num_classes=3)
    with pytest.raises(CheckpointError, match=r"nothing\.cfg cannot be read: No such file"):
        load(path, "yolov3", cfg=tmp_path / "nothing.cfg")


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (8_858_734, "the number of a yolov3-tiny with 80 classes"),
        (6_062_814 - 77 * 2310, "the number of a yolov4-tiny with 3 classes"),
        (63_052_381, "the number of a yolov3-spp with 80 classes"),
        (64_429_405, "the number of a yolov4 with 80 classes"),
        (42_509_664, r"of yolov4\.conv\.137, the backbone of yolov4"),
    ],
)
def test_the_weights_of_another_network_are_named_by_their_length(numbers: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(weights_of(tmp_path, numbers), "yolov3")
