"""Target profiles: complete, found by any of their names, and refused with the key at fault."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from bundler.errors import TargetProfileError, UnknownTargetError
from bundler.resources import resource
from bundler.targets import find_target, load_target, load_targets

TEXT = resource("targets", "x86-fbgemm.toml").read_text(encoding="utf-8")
KEYS = re.findall(r"^(\w+) = ", TEXT, re.MULTILINE)


def test_every_target_is_found_by_its_name_and_aliases() -> None:
    targets = load_targets()
    assert [target.name for target in targets] == ["arm64-qnnpack", "x86-fbgemm"]
    for target in targets:
        for name in (target.name, *target.aliases, target.name.upper()):
            assert find_target(name) == target


def test_a_file_is_a_target_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace('name = "x86-fbgemm"', 'name = "mine"', 1))
    assert find_target(str(path)).name == "mine"


@pytest.mark.parametrize("key", sorted(set(KEYS)))
def test_every_key_is_required(tmp_path: Path, key: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(re.sub(rf"^{key} = (?:\[\n(?: .*\n)*\]|.*)\n", "", TEXT, count=1, flags=re.MULTILINE))
    with pytest.raises(TargetProfileError, match=rf"{key}: Field required"):
        load_target(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('platform = "linux/amd64"', 'platform = "linux/sparc"', "platform"),
        ("opset = 13", "opset = 12", r"export\.opset"),
        ("opset = 13", "opset = 13\nspeed = 1", r"export\.speed: Extra inputs"),
        ('user = "10001:10001"', 'user = "0:0"', r"image\.user"),
        ('"numpy==2.4.6"', '"numpy>=2"', r"runtime\.requirements"),
        ('emulator_minimum = "10.0"', 'emulator_minimum = "new"', "emulator_minimum"),
        ("[quantization]", "[quantization", "Expected"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in TEXT
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(TargetProfileError, match=words):
        load_target(path)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UnknownTargetError) as caught:
        find_target("arm-64")
    assert "Did you mean arm64" in caught.value.next_step


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TargetProfileError, match="No such file"):
        find_target(str(tmp_path / "nothing.toml"))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('suite = "bookworm"', 'suite = "--setup-hook=touch X"', r"image\.suite"),
        ('suite = "bookworm"', 'suite = "bookworm; touch X"', r"image\.suite"),
        ('"zlib1g"', '"--setup-hook=touch X"', r"image\.packages\.4"),
        ('"zlib1g"', '"zlib1g,evil"', r"image\.packages\.4"),
        ('"zlib1g"', '"?narrow(?archive(x))"', r"image\.packages\.4"),
        ('user = "10001:10001"', 'user = "10001:10001\\n"', r"image\.user"),
        ('user = "10001:10001"', 'user = "1\u0660:1"', r"image\.user"),
        ('"numpy==2.4.6"', '"--index-url=http://evil/==1"', r"runtime\.requirements\.0"),
        ('"numpy==2.4.6"', '"numpy==2.4.6 @ http://evil"', r"runtime\.requirements\.0"),
        ('"numpy==2.4.6"', '"numpy==2.4.6\\nevil==1"', r"runtime\.requirements\.0"),
        ('"manylinux_2_28_x86_64"', '"../x"', r"runtime\.wheel_platforms\.0"),
        ('python = "3.11"', 'python = "3.1\u0661"', r"runtime\.python"),
        ('name = "Haswell"', 'name = "-plugin"', r"verification\.cpus\.1\.name"),
        ('name = "Haswell"', 'name = "Haswell /bin/sh"', r"verification\.cpus\.1\.name"),
        ('present = ["SSE42"]', 'present = ["SSE42\\u001b[31m"]', r"verification\.cpus\.2\.present\.0"),
        ('summary = "64-bit', 'summary = "\\u001b[31m64-bit', "summary: .*control characters"),
        ('summary = "64-bit', 'summary = "\\u202e64-bit', "summary: .*control characters"),
        ('name = "x86-fbgemm"', 'name = "../x86"', "name"),
        ('name = "x86-fbgemm"', f'name = "{"x" * 65}"', "name"),
        ("timeout_seconds = 1800", "timeout_seconds = 999999999999", "timeout_seconds"),
        ("memory_mib = 4096", "memory_mib = 999999999", "memory_mib"),
        ("golden_inputs = 4", "golden_inputs = 1000000", "golden_inputs"),
        ("sqnr_loss_db = 1.0", "sqnr_loss_db = inf", "sqnr_loss_db"),
        ("fp32_min_sqnr_db = 80.0 ", "fp32_min_sqnr_db = nan ", "fp32_min_sqnr_db"),
        ('emulator_minimum = "10.0"', 'emulator_minimum = "10.0\\u001b[31m"', "emulator_minimum"),
        ('fleet = ["arm64-qnnpack"]', 'fleet = ["/etc/x.toml"]', r"verification\.fleet\.0"),
        ('engine = "fbgemm"', "engine = 1979-05-27", r"quantization\.engine"),
        ("opset = 13", "opset = " + "9" * 5000, "digit"),
    ],
)  # fmt: skip
def test_every_field_has_an_alphabet_and_a_bound(tmp_path: Path, old: str, new: str, words: str) -> None:
    """Other programs get these as arguments: mmdebstrap, pip, QEMU, and the engine."""
    assert old in TEXT
    path = tmp_path / "mine.toml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(TargetProfileError, match=words):
        load_target(path)


def test_a_fifo_a_device_a_folder_and_a_large_file_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.toml")
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(2**33)
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "latin.toml").write_bytes(b"summary = '\xe9'")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    for name, words in {
        "fifo.toml": "it is a FIFO, not a regular file",
        "large.toml": "larger than 262,144 bytes",
        "folder.toml": "it is a folder, not a regular file",
        "latin.toml": r"not UTF-8 \(byte 11\)",
        "deep.toml": "nested too deeply",
    }.items():
        with pytest.raises(TargetProfileError, match=words):
            find_target(str(tmp_path / name))
    with pytest.raises(TargetProfileError, match="it is a character device"):
        find_target("/dev/zero")


def test_a_profile_may_be_reached_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(TEXT)
    (tmp_path / "link.toml").symlink_to("mine.toml")
    assert find_target(str(tmp_path / "link.toml")) == find_target(str(tmp_path / "mine.toml"))
