from __future__ import annotations

from pathlib import Path

import pytest

from bundler.images.excluded_files import ExcludeList
from bundler.resources import resource


def test_the_last_matching_line_decides(tmp_path: Path) -> None:
    (tmp_path / "excluded.txt").write_text(
        "# a list\nusr/share/doc/*   # manuals\n!usr/share/doc/*/copyright # licences\n\n*.pyi\n"
    )
    exclude_list = ExcludeList.read(tmp_path / "excluded.txt")
    assert exclude_list.excludes("usr/share/doc/python3/changelog.gz")
    assert not exclude_list.excludes("usr/share/doc/python3/copyright")
    assert exclude_list.excludes("numpy/linalg/_linalg.pyi")
    assert not exclude_list.excludes("numpy/linalg/_linalg.py")
    assert exclude_list.patterns == ("usr/share/doc/*", "!usr/share/doc/*/copyright", "*.pyi")


@pytest.mark.parametrize("layer", ["base", "runtime"])
def test_every_pattern_has_a_reason(layer: str) -> None:
    for line in resource("docker", layer, "excluded-files.txt").read_text().splitlines():
        pattern, hash_sign, reason = line.partition("#")
        assert not pattern or (hash_sign and reason.strip()), line


@pytest.mark.parametrize(
    "path",
    ["usr/bin/python3.11", "lib/aarch64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/libstdc++.so.6", "etc/os-release"],
)
def test_the_base_includes_what_python_needs(path: str) -> None:
    assert not ExcludeList.read(resource("docker", "base", "excluded-files.txt")).excludes(path)


@pytest.mark.parametrize(
    "path",
    [
        "numpy.libs/libscipy_openblas64_.so",
        "onnxruntime/capi/onnxruntime_pybind11_state.cpython-311-aarch64-linux-gnu.so",
        "onnxruntime/LICENSE",
    ],
)
def test_the_runtime_includes_what_models_need(path: str) -> None:
    assert not ExcludeList.read(resource("docker", "runtime", "excluded-files.txt")).excludes(path)
