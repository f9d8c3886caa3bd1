"""Target profiles: complete, found by any of their names, and refused with the key at fault."""

from __future__ import annotations

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
