"""`bundler verify` and `inspect` on bundles that are intact, damaged, made by others, or verified on other machines."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bundler.files.sha256 import sha256_of
from bundler.manifest import judge_mode, read_manifest, write_manifest
from bundler.packaging.checksums import write_checksums
from tests.command_line import BUNDLER, NOWHERE, Run


@pytest.fixture
def bundle(built: dict[str, Path], tmp_path: Path) -> Path:
    """A copy for arm64 that a test may damage."""
    return Path(shutil.copytree(built["arm64"], tmp_path / "arm64-qnnpack" / "resnet18"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["models/int8-ptq.onnx", "golden/inputs.npy", "device.pyz", "runner.json", "README.md", "Dockerfile"]
)
@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_changed_byte_is_found_and_named(bundle: Path, run: Run, name: str, command: str) -> None:
    flip(bundle / name)
    arguments = ("--target", "arm64", str(bundle)) if command == "verify" else (str(bundle),)
    assert f"{name} has changed" in run(command, *arguments, code=11).stderr


def test_a_changed_manifest_is_found(bundle: Path, run: Run) -> None:
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"trained": false', '"trained": true'))
    assert "manifest.json has changed" in run("verify", "--target", "arm64", str(bundle), code=11).stderr


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda bundle: (bundle / "golden" / "inputs.npy").unlink(), "golden/inputs.npy is missing"),
        (lambda bundle: (bundle / "extra.txt").write_text("new"), "extra.txt is not in SHA256SUMS"),
        (lambda bundle: (bundle / "SHA256SUMS").unlink(), "SHA256SUMS cannot be read"),
        (lambda bundle: (bundle / "SHA256SUMS").write_bytes(b"\xff\xfe"), "SHA256SUMS cannot be read"),
        (lambda bundle: (bundle / "manifest.json").write_text("{}"), "is not a manifest"),
        (lambda bundle: (bundle / "manifest.json").unlink(), "is not a manifest"),
    ],
    ids=["missing", "added", "no sums", "unreadable sums", "empty manifest", "no manifest"],
)
def test_other_damage_is_named(bundle: Path, run: Run, damage: Callable[[Path], object], words: str) -> None:
    damage(bundle)
    assert words in run("verify", "--target", "arm64", str(bundle), code=11).stderr


def test_a_good_record_is_never_replaced_with_a_worse_one(bundle: Path, run: Run) -> None:
    manifest = read_manifest(bundle)
    proved = []
    for mode in manifest.modes:
        evidence = tuple(item.model_copy(update={"verdict": "passed", "reason": ""}) for item in mode.evidence)
        supported, reason = judge_mode(evidence)
        proved.append(mode.model_copy(update={"supported": supported, "reason": reason, "evidence": evidence}))
    write_manifest(manifest.model_copy(update={"modes": tuple(proved)}), bundle / "manifest.json")
    write_checksums(bundle)
    record = sha256_of(bundle / "manifest.json")
    process = run("verify", "--target", "arm64", str(bundle), "--json", code=3)
    (document,) = json.loads(process.stdout)
    assert document["verdict"] == "not_run"
    assert sha256_of(bundle / "manifest.json") == record
    assert all(mode.supported for mode in read_manifest(bundle).modes)


def test_a_better_record_replaces_what_was_not_run(built: dict[str, Path], run: Run, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(built["x86"], tmp_path / "x86-fbgemm" / "resnet18"))
    manifest = read_manifest(bundle)
    unproved = tuple(
        mode.model_copy(
            update={
                "supported": False,
                "evidence": tuple(
                    item.model_copy(update={"verdict": "not_run", "reason": "no time"}) for item in mode.evidence
                ),
            }
        )
        for mode in manifest.modes
    )
    write_manifest(manifest.model_copy(update={"modes": unproved}), bundle / "manifest.json")
    write_checksums(bundle)
    before = read_manifest(built["x86"])
    run("verify", "--target", "x86", str(bundle), code=0 if before.verdict == "passed" else 3)
    after = read_manifest(bundle)
    assert [mode.supported for mode in after.modes] == [True, True]
    assert after.modes[0].evidence[0].verdict == "passed"
    run("inspect", str(bundle))  # its checksums were renewed with it
    assert bundle.with_name("resnet18.tar.gz").is_file()


def test_a_bundle_of_another_target_is_refused(bundle: Path, run: Run) -> None:
    assert "--target arm64-qnnpack" in run("verify", "--target", "x86", str(bundle), code=11).stderr


def test_no_bundle_at_all_says_how_to_build_one(run: Run, tmp_path: Path) -> None:
    assert "bundler bundle" in run("verify", "--target", "x86", "--output", str(tmp_path), code=11).stderr


def test_inspect_prints_a_summary_and_json(built: dict[str, Path], run: Run) -> None:
    text = run("inspect", str(built["x86"])).stdout
    assert "NOT TRAINED" in text
    assert "native" in text
    document = json.loads(run("inspect", str(built["x86"]), "--json").stdout)
    assert document == json.loads((built["x86"] / "manifest.json").read_text())


# ---- bundles of others


def reseal(bundle: Path) -> None:
    """Write new checksums into a bundle that was changed, as a stranger would."""
    document = json.loads((bundle / "runner.json").read_text())
    document["files"] = {name: sha256_of(bundle / name) for name in document["files"]}
    (bundle / "runner.json").write_text(json.dumps(document))
    write_checksums(bundle)


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((bundle / "manifest.json").read_text())
    change(document)
    (bundle / "manifest.json").write_text(json.dumps(document))


@pytest.fixture
def native(tmp_path: Path) -> str:
    """The x86 profile with one CPU and no other targets, for tests of what is executed at all."""
    text = (Path(__file__).parents[2] / "targets" / "x86-fbgemm.toml").read_text(encoding="utf-8")
    text = re.sub(
        r"^also_verify_on = .*$",
        "also_verify_on = []",
        text.partition('[[verification.cpus]]\nname = "Haswell"')[0],
        flags=re.MULTILINE,
    )
    (tmp_path / "native.toml").write_text(text, encoding="utf-8")
    return str(tmp_path / "native.toml")


@pytest.fixture
def foreign(built: dict[str, Path], tmp_path: Path) -> Path:
    """A bundle for this machine whose device program leaves a file where it was executed."""
    bundle = Path(shutil.copytree(built["x86"], tmp_path / "x86-fbgemm" / "resnet18"))
    with zipfile.ZipFile(bundle / "device.pyz") as archive:
        sources = {name: archive.read(name) for name in archive.namelist()}
    mark = f"import os\nopen({str(tmp_path / 'executed')!r}, 'w').write(' '.join(os.environ))\n"
    sources["__main__.py"] = mark.encode() + sources["__main__.py"]
    with zipfile.ZipFile(bundle / "device.pyz", "w") as archive:
        for name, source in sources.items():
            archive.writestr(name, source)
    reseal(bundle)
    return bundle


def test_a_foreign_device_program_is_not_executed_on_this_host_unless_it_is_trusted(
    foreign: Path, run: Run, native: str, tmp_path: Path
) -> None:
    process = run("verify", "--target", native, str(foreign), "--json", code=3)
    assert not (tmp_path / "executed").exists()
    (document,) = json.loads(process.stdout)
    reasons = {item["reason"] for items in document["evidence"].values() for item in items}
    assert len(reasons) == 1
    assert "--trust-bundle" in reasons.pop()
    run("verify", "--target", native, "--trust-bundle", str(foreign), PRIVATE="yes")
    assert "PRIVATE" not in (tmp_path / "executed").read_text().split()


def test_the_base_image_that_a_bundle_names_is_not_pulled(bundle: Path, run: Run) -> None:
    record = {"reference": "x:y", "digest": f"sha256:{'a' * 64}", "size": 1, "base": "localhost:1/evil", "wheels": []}
    edit(bundle, lambda document: document.update(image=record))
    reseal(bundle)
    process = run("verify", "--target", "arm64", str(bundle), code=11)
    assert "was built on localhost:1/evil" in process.stderr
    assert "--base-image localhost:1/evil" in process.stderr
    run("verify", "--target", "arm64", "--base-image", "localhost:1/evil", str(bundle), code=3)


def with_base(bundle: Path, base: str, **source: str) -> None:
    record = {"reference": "x:y", "digest": f"sha256:{'a' * 64}", "size": 1, "base": base, **source, "wheels": []}
    edit(bundle, lambda document: document.update(image=record))
    reseal(bundle)


@pytest.mark.parametrize("source", [{"base_source": "packages"}, {}], ids=["recorded", "of an earlier version"])
def test_a_base_of_packages_stays_one_when_the_profile_moves_to_another_suite(
    bundle: Path, run: Run, tmp_path: Path, source: dict[str, str]
) -> None:
    text = (Path(__file__).parents[2] / "targets" / "arm64-qnnpack.toml").read_text(encoding="utf-8")
    later = re.sub(r"^also_verify_on = .*$", "also_verify_on = []", text, flags=re.MULTILINE).replace('"bookworm"', '"trixie"')
    assert '"trixie"' in later
    (tmp_path / "later.toml").write_text(later, encoding="utf-8")
    with_base(bundle, "debian:bookworm", **source)
    assert "--base-image" not in run("verify", "--target", str(tmp_path / "later.toml"), str(bundle), code=3).stderr


def test_a_base_image_of_the_user_is_not_taken_for_packages_by_its_name(bundle: Path, run: Run) -> None:
    with_base(bundle, "debian:bookworm", base_source="image")
    assert "--base-image debian:bookworm" in run("verify", "--target", "arm64", str(bundle), code=11).stderr


def test_a_bundle_is_verified_from_within_its_folder(bundle: Path) -> None:
    process = subprocess.run(
        [BUNDLER, "verify", "--target", "arm64", "."],
        cwd=bundle,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**os.environ, "DOCKER_HOST": NOWHERE},
    )
    assert process.returncode == 3, process.stderr
    assert "resnet18-arm64-qnnpack" in process.stderr


def test_a_bundle_writes_nowhere_but_into_its_folder(bundle: Path, run: Run, tmp_path: Path) -> None:
    edit(bundle, lambda document: document.update(bundle=str(tmp_path / "outside")))
    reseal(bundle)
    before = sorted(tmp_path.rglob("*"))
    assert "is not a manifest: bundle: " in run("verify", "--target", "arm64", str(bundle), code=11).stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["verify", "inspect"])
def test_a_fifo_and_a_link_are_named_without_waiting(bundle: Path, run: Run, command: str) -> None:
    (bundle / "manifest.json").unlink()
    os.mkfifo(bundle / "manifest.json")
    (bundle / "extra").symlink_to("/etc")
    arguments = ("--target", "arm64", str(bundle)) if command == "verify" else (str(bundle),)
    stderr = run(command, *arguments, code=11).stderr
    assert "manifest.json is a FIFO" in stderr
    assert "extra is a symbolic link" in stderr


@pytest.mark.parametrize("options", [(), ("--json",), ("--layers",)])
def test_inspect_shows_control_characters_and_does_not_send_them(bundle: Path, run: Run, options: tuple[str, ...]) -> None:
    text = "\x1b]0;owned\x07\u202e[red]"
    edit(bundle, lambda document: document["model"]["weights"].update(source=text))
    edit(bundle, lambda document: document["modes"][1]["quantization"]["layers"][0].update(name=text))
    edit(bundle, lambda document: document["modes"][0]["evidence"][0].update(reason=text))
    reseal(bundle)
    process = run("inspect", str(bundle), *options)
    assert all(line.isprintable() for line in (process.stdout + process.stderr).split("\n"))
    if options == ("--json",):
        assert json.loads(process.stdout)["model"]["weights"]["source"] == text
    else:
        assert r"\x1b]0;owned\x07\u202e[red]" in process.stdout
