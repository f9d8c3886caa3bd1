"""What a file is, by its content."""

from __future__ import annotations

import io
import pickle  # noqa: TID251  only dumped
import re
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bundler.models.file_kinds import identify, looks_like_checkpoint


def saved(payload: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(payload, file, **options)
    return file.getvalue()


def zipped(*names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def arrays() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones(2))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (saved({"a": 1}), "torch zip"),
        (saved({"a": 1}, _use_new_zipfile_serialization=False), "torch legacy"),
        (saved({"a": 1}, _use_new_zipfile_serialization=False, pickle_protocol=4), "torch legacy"),
        (b"\x02\0\0\0\0\0\0\0{}", "safetensors"),
        (b"\x08\0\0\0\0\0\0\0{}      ", "safetensors"),
        (zipped("a.txt"), "zip"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (bytes(257) + b"ustar\0" + bytes(249), "tar"),
        (bytes(5000), "zeros"),
        (b"\0\0\0\0\2\0\0\0\5\0\0\0" + bytes(8), "unknown"),  # Darknet's files have no mark of their own
        (bytes(range(128, 256)), "unknown"),
    ],
)
def test_what_can_be_read(content: bytes, kind: str) -> None:
    found = identify(io.BytesIO(content), len(content))
    assert (found.name, found.refusal) == (kind, "")


@pytest.mark.parametrize(
    ("content", "said", "next_step"),
    [
        (b"", "is empty", "Download"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", "is a Git LFS pointer", "git lfs pull"),
        (b"<html>404</html>", "is a web page", "browser"),
        (b"\xef\xbb\xbf\n<!DOCTYPE HTML>", "is a web page", "browser"),
        (b'<?xml version="1.0"?><net name="x">', "is an OpenVINO graph", ""),
        (b'{"message": "Not Found"}', "is a JSON text", "Download"),
        (b'{"metadata": {}, "weight_map": {}}', "split into several files", "Load all parts"),
        (b"accuracy 0.93\n", "is a text file that begins with 'accuracy 0.93'", "Download"),
        (b"[net]\nwidth=416\n", "is a Darknet cfg", ".weights"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file, as Keras and TensorFlow write it", "torch.save"),
        (b"\x08\x0a\x12\x07pytorch\x1a\x052.13" + bytes(100), "is an ONNX model", "torch.save"),
        (b"\x1c\0\0\0TFL3" + bytes(100), "is a TensorFlow Lite model", "torch.save"),
        (b"\x93NUMPY\x01\0", "is a NumPy array", "torch.save"),
        (arrays(), r"contains NumPy arrays \(.npz\)", "torch.save"),
        (pickle.dumps({"a": [1.0]}), "is a plain pickle", "torch.save"),
        (b"\x28\xb5\x2f\xfd" + bytes(10), "is compressed with zstd", "Unpack"),
        (zipped("model/saved_model.pb"), "is a TensorFlow SavedModel", "torch.save"),
        (zipped("config.json", "model.weights.h5"), "is a Keras model", "torch.save"),
        (zipped("m/archive_format", "m/models/model.json"), "is a program of torch.export", "torch.save"),
    ],
)
def test_what_is_named(content: bytes, said: str, next_step: str) -> None:
    found = identify(io.BytesIO(content), len(content))
    assert re.search(said, found.refusal), found
    assert next_step in found.next_step


@pytest.mark.filterwarnings("ignore:.*jit.*:DeprecationWarning")
def test_torchscript() -> None:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)
    found = identify(file, len(file.getvalue()))
    assert "is a TorchScript program" in found.refusal
    assert "torch.jit.load" in found.next_step


def test_checkpoints_in_archives() -> None:
    checkpoint = saved({"a": torch.ones(1)})
    assert looks_like_checkpoint("run/best.pt", checkpoint[:4096])
    assert looks_like_checkpoint("model", saved({}, _use_new_zipfile_serialization=False))
    assert looks_like_checkpoint("x/yolov4.weights", bytes(100))
    assert not looks_like_checkpoint("__MACOSX/run/best.pt", checkpoint[:4096])
    assert not looks_like_checkpoint("run/._best.pt", checkpoint[:4096])
    assert not looks_like_checkpoint("pictures.zip", zipped("a.jpg"))
    assert not looks_like_checkpoint("args.yaml", b"lr: 0.1\n")
