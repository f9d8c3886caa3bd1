"""Consistency of a bundle: its documents agree with each other and with its files, and its arrays are valid."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator, Mapping

import numpy as np

from bundler.device.runner_json import RunnerDocument
from bundler.manifest import Manifest
from bundler.packaging.plain_tree import open_file

__all__ = ["array_problem", "array_problems", "disagreements"]

HEAD = 2**14  # bytes at the beginning of a .npy file; its header is shorter


def disagreements(
    manifest: Manifest, runner: RunnerDocument, digests: Mapping[str, str], sizes: Mapping[str, int]
) -> list[str]:
    """Return a message for each fact in which manifest.json, runner.json, SHA256SUMS and the files disagree."""
    model = manifest.model
    pairs = (
        ("the bundle's name in manifest.json", manifest.bundle, f"{model.name}-{manifest.target.name}"),
        ("the bundle's name in runner.json", runner.bundle, manifest.bundle),
        ("the task in runner.json", runner.task, model.task),
        ("the input in runner.json", runner.input, model.input.name),
        ("the output in runner.json", runner.output, model.output.name),
        (
            "the modes in runner.json",
            ", ".join(sorted(mode.name for mode in runner.modes)),
            ", ".join(sorted(mode.name for mode in manifest.modes)),
        ),
    )
    found = [f"{what} is {one}, not {other}" for what, one, other in pairs if one != other]
    found += _of_models(manifest, runner, digests, sizes)
    found += [
        f"runner.json has another checksum of {name} than SHA256SUMS"
        for name, digest in runner.files.items()
        if digests.get(name) != digest
    ]
    unit = f"{manifest.bundle}.service"
    found += [f"{name} should be called {unit}" for name in sizes if name.endswith(".service") and name != unit]
    return found


def _of_models(
    manifest: Manifest, runner: RunnerDocument, digests: Mapping[str, str], sizes: Mapping[str, int]
) -> Iterator[str]:
    for mode in runner.modes:
        if mode.model != f"models/{mode.name}.onnx":
            yield f"the model of {mode.name} in runner.json is {mode.model}, not models/{mode.name}.onnx"
    for record in manifest.modes:
        path = f"models/{record.name}.onnx"
        if (record.onnx.path, record.onnx.sha256, record.onnx.bytes) != (path, digests.get(path), sizes.get(path)):
            yield f"manifest.json has another path, checksum or size of {path} than SHA256SUMS"


def array_problems(root: int, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield a message for each .npy file that is not an array of numbers, or whose size does not match its header."""
    for name in sorted(sizes):
        if name.endswith(".npy"):
            with open_file(root, name) as file:
                problem = array_problem(file.read(HEAD), sizes[name])
            if problem:
                yield f"{name} {problem}"


def array_problem(head: bytes, size: int) -> str:
    """Return what is wrong with the header in `head`, the beginning of a .npy file of `size` bytes; empty if it is valid."""
    stream = io.BytesIO(head)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # numpy warns when it repairs the header of an old file
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):
                return f"has version {version} of numpy's format, not (1, 0)"
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError, Warning) as error:
        return f"is not a numpy array: {error}"
    if dtype.kind not in "fiu":
        return f"contains {dtype}, not numbers"
    if stream.tell() + math.prod(shape) * dtype.itemsize != size:
        return f"has {size} bytes, which does not match {dtype} of shape {list(shape)}"
    return ""
