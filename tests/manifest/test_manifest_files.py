"""Reading and writing `manifest.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundler.errors import BundleDamagedError
from bundler.manifest import WeightsRecord, read_manifest, write_manifest

DATA = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def document() -> dict[str, Any]:
    """A manifest as this version writes it: INT8 passed on two CPUs of three, FP32 failed on one."""
    loaded: dict[str, Any] = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def test_a_written_manifest_stays_readable_byte_for_byte(tmp_path: Path) -> None:
    write_manifest(read_manifest(DATA), tmp_path / "manifest.json")
    assert (tmp_path / "manifest.json").read_bytes() == (DATA / "manifest.json").read_bytes()


def test_a_manifest_from_before_other_preprocessing_is_read(tmp_path: Path, document: dict[str, Any]) -> None:
    del document["model"]["suspicions"]
    del document["model"]["preprocessing"]["channels"]
    (tmp_path / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    model = read_manifest(tmp_path).model
    assert (model.suspicions, model.preprocessing.channels) == ((), "rgb")


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe", b'{"schema": "edge-bundler/manifest/3"}', b"[1, 2]"])
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleDamagedError, match=r"manifest\.json is not a manifest"):
        read_manifest(tmp_path)


def test_the_name_of_a_file_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    manifest = read_manifest(DATA)
    weights = WeightsRecord(source="m\udcff\udce4.pth", sha256="a" * 64, trained=True)
    model = manifest.model.model_copy(update={"weights": weights})
    write_manifest(manifest.model_copy(update={"model": model}), tmp_path / "manifest.json")
    assert read_manifest(tmp_path).model.weights.source == r"m\udcff\udce4.pth"
