from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest

from bundler.errors import ImageError
from bundler.images.base_image import base_layer
from bundler.targets import TargetProfile

Program = Callable[[str, str], Path]


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """Write a tar like that of mmdebstrap: directories, a symbolic and a hard link, a device, and files to exclude."""
    path = tmp_path / "unpacked.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, *, content: bytes = b"", link: str = "", mode: int = 0o644) -> None:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.size, entry.mode, entry.mtime = kind, link, len(content), mode, 1_700_000_000
            tar.addfile(entry, BytesIO(content))

        add("./", tarfile.DIRTYPE, mode=0o755)
        add("./tmp/", tarfile.DIRTYPE, mode=0o1777)
        add("./dev/console", tarfile.CHRTYPE)
        add("./usr/bin/", tarfile.DIRTYPE, mode=0o755)
        add("./usr/bin/python3.11", content=b"program", mode=0o755)
        add("./usr/bin/python3", tarfile.SYMTYPE, link="python3.11")
        add("./usr/bin/dpkg", content=b"dpkg", mode=0o755)
        add("./usr/share/doc/x/changelog.gz", content=b"long")
        add("./usr/share/doc/x/copyright", content=b"licence")
        add("./usr/lib/python3.11/a.py", content=b"pass")
        add("./usr/lib/python3.11/b.py", tarfile.LNKTYPE, link="./usr/lib/python3.11/a.py")
    return path


def test_the_layer_has_the_files_that_are_not_excluded(
    cache: Path, unpacked: Path, program: Program, arm64: TargetProfile
) -> None:
    program("mmdebstrap", f'for last in "$@"; do :; done; echo "$@" >"{cache.parent}/asked"; cp "{unpacked}" "$last"')
    layer = base_layer(arm64)
    with tarfile.open(layer.path) as tar:
        names = tar.getnames()
        assert tar.getmember("tmp").mode == 0o1777
        assert tar.getmember("usr/bin/python3").linkname == "python3.11"
        assert {entry.mtime for entry in tar} == {0}
        hard_link = tar.extractfile("usr/lib/python3.11/b.py")
        assert hard_link is not None
        assert hard_link.read() == b"pass"
    assert "usr/share/doc/x/copyright" in names
    assert not {"usr/bin/dpkg", "usr/share/doc/x/changelog.gz", "dev/console"} & set(names)
    asked = (cache.parent / "asked").read_text()
    assert "--architectures=arm64 --variant=extract" in asked
    assert all(package in asked for package in arm64.image.packages)
    assert " bookworm " in asked


def test_the_second_call_uses_the_cache(cache: Path, unpacked: Path, program: Program, arm64: TargetProfile) -> None:
    program("mmdebstrap", f'for last in "$@"; do :; done; cp "{unpacked}" "$last"')
    first = base_layer(arm64)
    program("mmdebstrap", "exit 1")
    assert base_layer(arm64) == first
    assert first.path.is_relative_to(cache)


def test_each_target_and_package_list_has_its_own_layer(
    cache: Path, unpacked: Path, program: Program, arm64: TargetProfile, amd64: TargetProfile
) -> None:
    program("mmdebstrap", f'for last in "$@"; do :; done; cp "{unpacked}" "$last"')
    longer = arm64.model_copy(
        update={"image": arm64.image.model_copy(update={"packages": (*arm64.image.packages, "libgomp1")})}
    )
    assert len({base_layer(profile).path for profile in (arm64, amd64, longer)}) == 3
    assert len(list(cache.iterdir())) == 3


@pytest.mark.usefixtures("program")
def test_the_error_for_missing_mmdebstrap_names_the_package(cache: Path, arm64: TargetProfile) -> None:
    with pytest.raises(ImageError, match="mmdebstrap") as caught:
        base_layer(arm64)
    assert "--base-image" in caught.value.next_step
    assert list(cache.iterdir()) == []


def test_the_error_of_mmdebstrap_is_quoted(cache: Path, program: Program, arm64: TargetProfile) -> None:
    program("mmdebstrap", 'echo "I: running" >&2; echo "E: Unable to locate package python3" >&2; exit 100')
    with pytest.raises(ImageError, match="E: Unable to locate package python3"):
        base_layer(arm64)
    assert list(cache.iterdir()) == []
