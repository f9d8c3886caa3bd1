"""The documents and arrays of one bundle agree; each disagreement is named."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundler.device.runner_json import RunnerDocument
from bundler.manifest import Manifest, parse_manifest
from bundler.packaging.checksums import CHECKSUMS, parse_checksums
from bundler.packaging.consistency import array_problem, array_problems, disagreements
from bundler.packaging.plain_tree import open_bundle
from bundler.packaging.runner_document import read_runner_document

Documents = tuple[Manifest, RunnerDocument, dict[str, str], dict[str, int]]


@pytest.fixture(scope="module")
def documents(whole_bundle: Path) -> Documents:
    manifest, runner = whole_bundle / "manifest.json", whole_bundle / "runner.json"
    return (
        parse_manifest(manifest.read_bytes(), manifest),
        read_runner_document(runner.read_bytes(), runner),
        dict(parse_checksums((whole_bundle / CHECKSUMS).read_bytes())),
        {path.relative_to(whole_bundle).as_posix(): path.stat().st_size for path in whole_bundle.rglob("*") if path.is_file()},
    )


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_the_documents_of_a_build_agree(documents: Documents) -> None:
    assert disagreements(*documents) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "detection"}, "the task in runner.json is detection, not classification"),
        ({"bundle": "resnet18-x"}, "the bundle's name in runner.json is resnet18-x, not mobilenet_v2-arm64-qnnpack"),
        ({"input": "other"}, "the input in runner.json is other, not image"),
    ],
)
def test_a_runner_document_of_another_bundle_is_named(documents: Documents, changes: dict[str, Any], message: str) -> None:
    manifest, runner, digests, sizes = documents
    assert disagreements(manifest, replace(runner, **changes), digests, sizes) == [message]


def test_a_missing_mode_is_named(documents: Documents) -> None:
    manifest, runner, digests, sizes = documents
    (message,) = disagreements(manifest, replace(runner, modes=runner.modes[:1]), digests, sizes)
    assert message.startswith(f"the modes in runner.json is {runner.modes[0].name}, not ")


def test_a_model_with_another_checksum_or_size_is_named(documents: Documents) -> None:
    manifest, runner, digests, sizes = documents
    path = manifest.modes[0].onnx.path
    assert disagreements(manifest, runner, digests, sizes | {path: 1}) == [
        f"manifest.json has another path, checksum or size of {path} than {CHECKSUMS}"
    ]
    assert disagreements(manifest, runner, digests | {path: "0" * 64}, sizes) == [
        f"manifest.json has another path, checksum or size of {path} than {CHECKSUMS}",
        f"runner.json has another checksum of {path} than {CHECKSUMS}",
    ]


def test_a_unit_with_another_name_is_named(documents: Documents) -> None:
    manifest, runner, digests, sizes = documents
    assert disagreements(manifest, runner, digests, sizes | {"sshd.service": 1}) == [
        "sshd.service should be called mobilenet_v2-arm64-qnnpack.service"
    ]


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8", "int64", ">f4"])
def test_an_array_of_numbers_is_valid(dtype: str) -> None:
    content = npy(np.zeros((2, 3), np.dtype(dtype)))
    assert array_problem(content, len(content)) == ""


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (npy(np.array(["x"])), "contains <U1, not numbers"),
        (npy(np.zeros(3, np.complex64)), "contains complex64, not numbers"),
        (npy(np.zeros(3))[:-1], "has 151 bytes, which does not match float64 of shape [3]"),
        (b"\x93NUMPY\x03\x00" + npy(np.zeros(3))[8:], "has version (3, 0) of numpy's format"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(x,)"), "is not a numpy array"),
        (b"", "is not a numpy array"),
    ],
)
def test_another_array_is_refused_with_the_reason(content: bytes, problem: str) -> None:
    assert array_problem(content, len(content)).startswith(problem)


def test_the_arrays_of_a_bundle_are_checked_by_name(bundle: Path) -> None:
    (bundle / "golden" / "inputs.npy").write_bytes(npy(np.array([{}], object)))
    sizes = {path.relative_to(bundle).as_posix(): path.stat().st_size for path in bundle.rglob("*") if path.is_file()}
    with open_bundle(bundle) as root:
        assert list(array_problems(root, sizes)) == ["golden/inputs.npy contains object, not numbers"]
