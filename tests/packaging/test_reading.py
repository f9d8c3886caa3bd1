"""A bundle is checked as a whole before anything of it is used: tests/attacks/hostile_bundles.py in short, and what holds."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import ModuleType

import pytest

from bundler.errors import BundleDamagedError
from bundler.packaging.reading import check_bundle
from bundler.visible import visible


def _attack_module() -> ModuleType:
    path = Path(__file__).parents[1] / "attacks" / "hostile_bundles.py"
    spec = importlib.util.spec_from_file_location("hostile_bundles", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hostile_bundles"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


attacks = _attack_module()
REFUSED = [attack for attack in attacks.ATTACKS if attack.refused and attack.reader]
SHOWN = [attack for attack in attacks.ATTACKS if not attack.refused]


def snapshot(folder: Path) -> dict[str, tuple[int, int, int]]:
    return {
        str(path): (status.st_mode, status.st_size, status.st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        for status in [path.lstat()]
    }


def test_a_whole_bundle_is_read(bundle: Path) -> None:
    checked = check_bundle(bundle)
    assert checked.manifest.bundle == checked.runner.bundle == "mobilenet_v2-arm64-qnnpack"
    assert checked.digests.keys() == {
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file() and path.name != "SHA256SUMS"
    }
    assert set(checked.image_files) <= checked.digests.keys()


def test_the_copy_is_what_was_checked_with_the_modes_of_a_build(bundle: Path, tmp_path: Path) -> None:
    for path in bundle.rglob("*"):
        path.chmod(0o700)
    check_bundle(bundle).copy_to(tmp_path / "copy")
    copied = {path.relative_to(tmp_path / "copy"): path for path in (tmp_path / "copy").rglob("*")}
    assert copied.keys() == {path.relative_to(bundle) for path in bundle.rglob("*")}
    for name, path in copied.items():
        if path.is_file():
            assert path.read_bytes() == (bundle / name).read_bytes()
            assert path.stat().st_mode & 0o777 == 0o644
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=tmp_path / "copy", check=True)


def test_a_bundle_may_be_reached_through_a_link(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle)
    assert check_bundle(tmp_path / "link").digests == check_bundle(bundle).digests


@pytest.mark.parametrize("attack", REFUSED, ids=[attack.name for attack in REFUSED])
def test_what_a_stranger_changes_is_refused_and_nothing_is_written(attack: object, bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text(attacks.PRIVATE)
    attacks.carry_out(attack, bundle, outside)
    before = snapshot(tmp_path)
    tracemalloc.start()
    with pytest.raises(BundleDamagedError) as refusal:
        check_bundle(bundle)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert snapshot(tmp_path) == before
    assert peak < 100 * 2**20
    assert refusal.value.exit_code == 11
    assert refusal.value.next_step
    assert visible(refusal.value.message).isprintable()
    assert attacks.PRIVATE not in refusal.value.message


@pytest.mark.parametrize("attack", SHOWN, ids=[attack.name for attack in SHOWN])
def test_what_is_only_text_is_read_as_it_is(attack: object, bundle: Path, tmp_path: Path) -> None:
    attacks.carry_out(attack, bundle, tmp_path)
    check_bundle(bundle)


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("folder symlink extra -> elsewhere", "extra is a symbolic link"),
        ("models is a symlink", "models is a symbolic link"),
        ("hard link to outside", "requirements.txt is a hard link: the file has 2 names"),
        ("FIFO as manifest.json", "manifest.json is a FIFO, not a regular file"),
        ("socket in models", "models/s.onnx is a socket"),
        ("empty folder", "empty is a folder that does not belong to a bundle"),
        ("dangling symlink", "golden/gone.npy is a symbolic link"),
        ("SHA256SUMS with a name twice", "Dockerfile occurs twice"),
        ("names equal but for case", "README.md and readme.MD differ only in case"),
        ("numpy.py beside the device program", "numpy.py does not belong to a bundle"),
        ("a folder of the program's package", "device is a folder that does not belong to a bundle"),
        ("device.pyz is a symlink", "device.pyz is a symbolic link"),
        ("runner.json: an earlier schema", "its schema is 'edge-bundler/runner/1', not 'edge-bundler/runner/2'"),
        ("runner.json: file without checksum", "no checksum of golden/inputs.npy"),
        ("manifest.json: a key twice", "the key 'bundle' occurs twice"),
        ("manifest.json: NaN", "NaN is not a number in JSON"),
        ("manifest.json: 40 levels", "more than 32 levels"),
        ("array that claims 80 GB", "golden/inputs.npy has "),
        ("array of objects", "golden/inputs.npy contains object, not numbers"),
        ("manifest.json of 1 GiB", "manifest.json is larger than 8,388,608 bytes"),
        ("bundle is another name", "the bundle's name in manifest.json is other-x86-fbgemm"),
    ],
)
def test_the_path_and_what_it_is_are_named(attack: str, words: str, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (chosen,) = [item for item in attacks.ATTACKS if item.name == attack]
    attacks.carry_out(chosen, bundle, tmp_path)
    with pytest.raises(BundleDamagedError) as refusal:
        check_bundle(bundle)
    assert words in refusal.value.message


def test_what_changes_after_the_check_is_not_copied(bundle: Path, tmp_path: Path) -> None:
    checked = check_bundle(bundle)
    (bundle / "golden" / "inputs.npy").write_bytes(b"other")
    with pytest.raises(BundleDamagedError, match=r"golden/inputs\.npy has changed while it was read"):
        checked.copy_to(tmp_path / "one")
    (bundle / "golden" / "inputs.npy").unlink()
    os.mkfifo(bundle / "golden" / "inputs.npy")
    with pytest.raises(BundleDamagedError, match="has changed while it was read"):
        checked.copy_to(tmp_path / "two")


def test_a_file_in_its_place_is_named_and_an_archive_has_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "net.tar.gz").write_text("")
    with pytest.raises(BundleDamagedError, match="is not a folder") as refusal:
        check_bundle(tmp_path / "net.tar.gz")
    assert "tar -xf" in refusal.value.next_step
    with pytest.raises(BundleDamagedError, match="No such file"):
        check_bundle(tmp_path / "nothing")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(BundleDamagedError, match="is not a folder"):
        check_bundle(tmp_path / "fifo")


def test_every_folder_of_a_build_may_be_there(bundle: Path) -> None:
    (bundle / "ledger").mkdir()
    (bundle / "ledger" / "int8-ptq.npz").write_bytes(b"")
    attacks.reseal(bundle)
    assert "ledger/int8-ptq.npz" in check_bundle(bundle).digests


def test_a_mode_that_one_document_lacks_is_found(bundle: Path) -> None:
    attacks.edit(bundle, "runner.json", lambda document: document["modes"].pop())
    attacks.reseal(bundle)
    with pytest.raises(BundleDamagedError, match=r"the modes in runner\.json is fp32, not fp32, int8-ptq"):
        check_bundle(bundle)


def test_json_with_a_comment_or_trailing_text_is_refused(bundle: Path) -> None:
    path = bundle / "runner.json"
    path.write_text(json.dumps(json.loads(path.read_text())) + "{}")
    attacks.reseal(bundle)
    with pytest.raises(BundleDamagedError, match=r"runner\.json is not usable"):
        check_bundle(bundle)


def test_a_bundle_of_an_earlier_version_is_named_as_such(bundle: Path) -> None:
    (bundle / "device.pyz").rename(bundle / "runner.py")
    attacks.edit(bundle, "runner.json", lambda document: document.update(schema="edge-bundler/runner/1"))
    attacks.reseal(bundle)
    with pytest.raises(
        BundleDamagedError, match=r"was built by an earlier version: its device program is runner\.py"
    ) as refusal:
        check_bundle(bundle)
    assert refusal.value.next_step.startswith("Build it again with this version")


def test_no_file_stays_open(bundle: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        check_bundle(bundle)
    shutil.rmtree(bundle / "models")
    with pytest.raises(BundleDamagedError):
        check_bundle(bundle)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
