#!/usr/bin/env python3

"""Give `bundler verify` bundles that a stranger has changed, and say of each whether it held.

    python tests/attacks/hostile_bundles.py [BUNDLE] [--target x86] [--only NAME]

Without BUNDLE a small one is built first. No engine is used: that is the case in which the device program would be executed
as a process of this host. Each line says: held or not, exit code, seconds, peak memory of all processes, and what went wrong.

It held where the exit code is one of those expected, nothing outside the bundle's folder was changed or executed, no control
character reached the output, no failure was "not foreseen", and it ended within a minute and 1.5 GiB. A bundle that is
refused must also have stayed as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

REFUSED, INCOMPLETE = 11, 3
MOST_SECONDS, MOST_MIB = 60, 1536
PRIVATE = "what only the owner of this machine may read"
ESC = "\x1b]0;owned\x07\x1b[31mred\u202e\u0085\x00"

MARKUP = "<script>x</script>`[a](http://b)|"

Json = dict[str, Any]


# ---- what a stranger does


def reseal(bundle: Path) -> None:
    """Write new checksums, where a file has them."""
    path = bundle / "runner.json"
    try:
        runner = json.loads(path.read_text())
        runner["files"] = {name: digest_of(bundle / name) or old for name, old in runner["files"].items()}
        path.write_text(json.dumps(runner, indent=2) + "\n")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    names = sorted(
        path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file() and path.name != "SHA256SUMS"
    )
    lines = [f"{digest_of(bundle / name)}  {name}\n" for name in names]
    (bundle / "SHA256SUMS").write_text("".join(lines), errors="surrogateescape")


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def edit(bundle: Path, name: str, change: Callable[[Json], object]) -> None:
    document = json.loads((bundle / name).read_text())
    change(document)
    (bundle / name).write_text(json.dumps(document, indent=2) + "\n")


def make_stale(bundle: Path) -> None:
    """Set all evidence to `not_run`, so that verify finds something better and rewrites the bundle."""

    def unproved(manifest: Json) -> None:
        for mode in manifest["modes"]:
            mode["supported"] = False
            for item in mode["evidence"]:
                item.update(verdict="not_run", reason="no time")

    edit(bundle, "manifest.json", unproved)


def manifest(change: Callable[[Json], object]) -> Callable[[Path, Path], None]:
    return lambda bundle, _outside: edit(bundle, "manifest.json", change)


def runner(change: Callable[[Json], object]) -> Callable[[Path, Path], None]:
    return lambda bundle, _outside: edit(bundle, "runner.json", change)


def put(*keys: Any, value: Any) -> Callable[[Json], None]:
    """Return what sets `document[key][key]… = value`."""

    def change(document: Json) -> None:
        place: Any = document
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def with_image(**changes: object) -> Callable[[Path, Path], None]:
    record = {"reference": "resnet18:x86-fbgemm", "digest": f"sha256:{'a' * 64}", "size": 1, "base": "debian:bookworm"}
    return manifest(put("image", value={**record, "wheels": [], **changes}))


def text(name: str, content: str) -> Callable[[Path, Path], None]:
    def change(bundle: Path, _outside: Path) -> None:
        (bundle / name).write_text(content)

    return change


def folder_with(file: str, folder: str) -> Callable[[Path, Path], None]:
    """Return what makes a folder in the bundle, with an empty file in it."""

    def change(bundle: Path, _outside: Path) -> None:
        (bundle / folder).mkdir()
        (bundle / folder / file).write_text("")

    return change


def replace(name: str, old: str, new: str) -> Callable[[Path, Path], None]:
    def change(bundle: Path, _outside: Path) -> None:
        content = (bundle / name).read_text()
        assert old in content, (name, old)
        (bundle / name).write_text(content.replace(old, new, 1))

    return change


def hostile_program(bundle: Path, outside: Path) -> None:
    """Put a line before everything that the device program does."""
    path = bundle / "device.pyz"
    with zipfile.ZipFile(path) as archive:
        sources = {name: archive.read(name) for name in archive.namelist()}
    code = f"import pathlib, os\npathlib.Path({str(outside)!r}, 'executed').write_text(str(dict(os.environ)))\n"
    sources["__main__.py"] = code.encode() + sources["__main__.py"]
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in sources.items():
            archive.writestr(name, source)


def module_in_the_program(bundle: Path, outside: Path) -> None:
    with zipfile.ZipFile(bundle / "device.pyz", "a") as archive:
        archive.writestr("numpy.py", f"import pathlib\npathlib.Path({str(outside)!r}, 'executed').touch()\n")


def script_as_program(bundle: Path, outside: Path) -> None:
    (bundle / "device.pyz").write_text(f"import pathlib\npathlib.Path({str(outside)!r}, 'executed').touch()\n")


def package_beside(bundle: Path, outside: Path) -> None:
    (bundle / "device").mkdir()
    (bundle / "device/__init__.py").write_text(f"import pathlib\npathlib.Path({str(outside)!r}, 'executed').touch()\n")


def module_beside(bundle: Path, outside: Path) -> None:
    (bundle / "numpy.py").write_text(f"import pathlib\npathlib.Path({str(outside)!r}, 'executed').touch()\n")


def hard_link(bundle: Path, outside: Path) -> None:
    (bundle / "requirements.txt").unlink()
    os.link(outside / "secret", bundle / "requirements.txt")


def linked(name: str, target: str) -> Callable[[Path, Path], None]:
    def link(bundle: Path, outside: Path) -> None:
        path = bundle / name
        if path.is_dir():
            shutil.move(path, outside / "moved")
        else:
            path.unlink(missing_ok=True)
        path.symlink_to(target.format(outside=outside))

    return link


def fifo(name: str) -> Callable[[Path, Path], None]:
    def make(bundle: Path, _outside: Path) -> None:
        (bundle / name).unlink(missing_ok=True)
        os.mkfifo(bundle / name)

    return make


def unix_socket(bundle: Path, _outside: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(bundle)  # the path of a socket is short
        try:
            one.bind("models/s.onnx")
        finally:
            os.chdir(here)


def sparse(name: str, size: int) -> Callable[[Path, Path], None]:
    def make(bundle: Path, _outside: Path) -> None:
        with (bundle / name).open("ab") as file:
            file.truncate(size)

    return make


def sums(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def make(bundle: Path) -> None:
        path = bundle / "SHA256SUMS"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return make


def huge_array(bundle: Path, _outside: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (20000000000,), }"
    header += b" " * (64 - (10 + len(header) + 1) % 64) + b"\n"
    (bundle / "golden/inputs.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def object_array(bundle: Path, _outside: Path) -> None:
    content = (bundle / "golden/inputs.npy").read_bytes()
    (bundle / "golden/inputs.npy").write_bytes(content.replace(b"'<f4'", b"'|O' ", 1))


def many_files(bundle: Path, _outside: Path) -> None:
    for number in range(5000):
        (bundle / f"golden/{number}.npy").write_text("")


def non_utf8_name(bundle: Path, _outside: Path) -> None:
    Path(os.fsdecode(os.fsencode(bundle) + b"/golden/\xff\xfe.npy")).write_text("")


@dataclass(frozen=True)
class Attack:
    """One change; `after` is done behind the new checksums, and `codes` are the exit codes of a refusal or of holding."""

    name: str
    change: Callable[[Path, Path], object] | None
    codes: tuple[int, ...] = (REFUSED,)
    after: Callable[[Path], object] | None = None
    refused: bool = True
    reader: bool = True  # it is refused when the bundle is read, before its target and options are known


ESCAPED = (0, INCOMPLETE)
SHOWN = (*ESCAPED, REFUSED)  # it may also be refused, as long as it is escaped

ATTACKS = (
    Attack("bundle is an absolute path", lambda b, o: edit(b, "manifest.json", put("bundle", value=f"{o}/NAME"))),
    Attack("bundle is ../NAME", manifest(put("bundle", value="../NAME"))),
    Attack("bundle is another name", manifest(put("bundle", value="other-x86-fbgemm"))),
    Attack("bundle is 300 letters", manifest(put("bundle", value="a" * 300))),
    Attack("bundle has a line break", manifest(put("bundle", value="resnet18-x86-fbgemm\nExecStart=/bin/sh"))),
    Attack("model name with ..", manifest(put("model", "name", value="../../resnet18"))),
    Attack("model path outside", manifest(put("modes", 0, "onnx", "path", value="../../secret"))),
    Attack("device.pyz changed", hostile_program, (INCOMPLETE,), refused=False),
    Attack("device.pyz with a module more", module_in_the_program, (INCOMPLETE,), refused=False),
    Attack("device.pyz is a script", script_as_program, (INCOMPLETE,), refused=False),
    Attack("numpy.py beside the device program", module_beside),
    Attack("a folder of the program's package", package_beside),
    Attack("device.pyz is a symlink", linked("device.pyz", "{outside}/secret")),
    Attack("device.pyz is missing", lambda b, _o: (b / "device.pyz").unlink()),
    Attack("__pycache__ in it", folder_with("json.pyc", "__pycache__")),
    Attack("runner.json: host file in files", lambda b, o: edit(b, "runner.json", put("files", f"{o}/secret", value="0" * 64))),
    Attack("runner.json: ../ in files", runner(put("files", "models/../../secret", value="0" * 64))),
    Attack("runner.json: golden outside", runner(put("golden", "inputs", value="../../secret"))),
    Attack("runner.json: model outside", lambda b, o: edit(b, "runner.json", put("modes", 0, "model", value=f"{o}/secret"))),
    Attack("runner.json: file without checksum", runner(lambda d: d["files"].pop("golden/inputs.npy"))),
    Attack("runner.json: unknown key", runner(put("hook", value="touch x"))),
    Attack("runner.json: 10**9 samples", runner(put("modes", 0, "samples", value=10**9))),
    Attack("runner.json: a mode twice", runner(lambda d: d["modes"].append(d["modes"][0]))),
    Attack("runner.json: of another bundle", runner(put("bundle", value="other-x86-fbgemm"))),
    Attack("runner.json: a list", text("runner.json", "[]")),
    Attack("runner.json: an earlier schema", runner(put("schema", value="edge-bundler/runner/1"))),
    Attack("runner.json: a schema with ESC", runner(put("schema", value=ESC))),
    Attack("folder symlink extra -> elsewhere", linked("extra", "{outside}")),
    Attack("models is a symlink", linked("models", "{outside}/moved")),
    Attack("file symlink", linked("README.md", "{outside}/secret")),
    Attack("runner.json is a symlink to itself", linked("runner.json", "runner.json")),
    Attack("dangling symlink", linked("golden/gone.npy", "/nonexistent")),
    Attack("hard link to outside", hard_link),
    Attack("FIFO as manifest.json", fifo("manifest.json")),
    Attack("FIFO as SHA256SUMS", None, after=lambda b: fifo("SHA256SUMS")(b, b)),
    Attack("FIFO in golden", fifo("golden/inputs.npy")),
    Attack("socket in models", unix_socket),
    Attack("empty folder", lambda b, _o: (b / "empty").mkdir()),
    Attack("unexpected folder with a file", folder_with("x", "hooks")),
    Attack("folder in models", folder_with("x.onnx", "models/deep")),
    Attack("5000 files", many_files),
    Attack("name with ESC", lambda b, _o: (b / "golden/\x1b[31mred.npy").write_text("")),
    Attack("name that is not UTF-8", non_utf8_name),
    Attack("name with a line break", lambda b, _o: (b / "golden/a\nb.npy").write_text("")),
    Attack("names equal but for case", lambda b, _o: (b / "readme.MD").write_text("")),
    Attack("a file of 3 GiB", sparse("models/fp32.onnx", 3 * 2**30), after=lambda _b: None),
    Attack("manifest.json of 1 GiB", sparse("manifest.json", 2**30)),
    Attack("SHA256SUMS of 1 GiB", None, after=lambda b: sparse("SHA256SUMS", 2**30)(b, b)),
    Attack("SHA256SUMS with a name twice", None, after=sums(lambda lines: [f"{'0' * 64}{lines[0][64:]}", *lines])),
    Attack("SHA256SUMS in upper case", None, after=sums(lambda lines: [lines[0][:64].upper() + lines[0][64:], *lines[1:]])),
    Attack("SHA256SUMS with ../", None, after=sums(lambda lines: [*lines, f"{'0' * 64}  ../secret\n"])),
    Attack("SHA256SUMS lacks a file", None, after=sums(lambda lines: lines[1:])),
    Attack("manifest.json: 100,000 levels", text("manifest.json", "[" * 100_000 + "]" * 100_000)),
    Attack("manifest.json: 40 levels", replace("manifest.json", "{", '{"x": ' + "[" * 40 + "]" * 40 + ", ")),
    Attack("manifest.json: a key twice", replace("manifest.json", '"bundle":', '"bundle": "other", "bundle":')),
    Attack("manifest.json: NaN", replace("manifest.json", '"torch_equal_share": ', '"torch_equal_share": NaN, "x": ')),
    Attack("manifest.json: 1e999", replace("manifest.json", '"torch_equal_share": ', '"torch_equal_share": 1e999, "x": ')),
    Attack("manifest.json: 4,000 digits", manifest(put("model", "num_classes", value=10**4000))),
    Attack("manifest.json: not UTF-8", lambda b, _o: (b / "manifest.json").write_bytes(b'{"a": "\xff"}')),
    Attack("manifest.json: lone surrogate", replace("manifest.json", '"source": "', '"source": "\\ud800')),
    Attack("image.reference of another image", with_image(reference="victim:latest"), ESCAPED, refused=False),
    Attack("image.base of a registry", with_image(base="localhost:1/evil"), reader=False),
    Attack("image.base is an option", with_image(base="--privileged")),
    Attack("ESC in weights.source", manifest(put("model", "weights", "source", value=ESC)), SHOWN, refused=False),
    Attack("ESC in model.row", manifest(put("model", "row", value=ESC)), SHOWN, refused=False),
    Attack("ESC in a reason", manifest(put("modes", 0, "reason", value=ESC)), SHOWN, refused=False),
    Attack("ESC in versions", manifest(put("versions", ESC, value=ESC)), SHOWN, refused=False),
    Attack(
        "ESC in a layer's name",
        manifest(put("modes", 1, "quantization", "layers", 0, "name", value=ESC)),
        SHOWN,
        refused=False,
    ),
    Attack("ESC in the CPU's name", manifest(put("modes", 0, "evidence", 0, "cpu", value=ESC))),
    Attack("ESC in the target's name", manifest(put("target", "name", value=ESC))),
    Attack("HTML and Markdown in a source", manifest(put("model", "weights", "source", value=MARKUP)), ESCAPED, refused=False),
    Attack("array that claims 80 GB", huge_array),
    Attack("array of objects", object_array),
    Attack("a graph that is no graph", lambda b, _o: grow_model(b), (8, INCOMPLETE, REFUSED), refused=False),
)


def grow_model(bundle: Path) -> None:
    (bundle / "models/int8-ptq.onnx").write_bytes(b"\xff" * 1000)
    record = {"sha256": digest_of(bundle / "models/int8-ptq.onnx"), "bytes": 1000}
    edit(bundle, "manifest.json", lambda document: document["modes"][1]["onnx"].update(record))


# ---- what the product does


@dataclass(frozen=True)
class Outcome:
    code: int
    seconds: float
    mib: float
    output: str


def run_bundler(arguments: list[str], home: Path) -> Outcome:
    """Run the command line in a fork of this process, which has imported it: that takes a tenth of the time."""
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = os.fork()
        if process == 0:
            become_bundler(arguments, home, output.fileno())
        ended, seconds = 0, 0.0
        while not ended and seconds < MOST_SECONDS:
            time.sleep(0.02)
            ended, status, usage = os.wait4(process, os.WNOHANG)
            seconds = time.monotonic() - started
        if not ended:
            os.killpg(process, signal.SIGKILL)
            _, status, usage = os.wait4(process, 0)
        output.seek(0)
        text = output.read().decode(errors="surrogateescape")
    return Outcome(code=os.waitstatus_to_exitcode(status), seconds=seconds, mib=usage.ru_maxrss / 1024, output=text)


def become_bundler(arguments: list[str], home: Path, output: int) -> NoReturn:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(DOCKER_HOST="unix:///nonexistent", HOME=str(home), PRIVATE="yes")
    sys.argv = ["bundler", *arguments]
    code = 70
    try:
        importlib.import_module("bundler.cli").main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def snapshot(folder: Path) -> Mapping[str, str]:
    """Return what lies in a folder: kind, size, mode and time of change; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path)] = f"{status.st_mode} {status.st_size} {status.st_mtime_ns} {status.st_ino}"
    return found


def problems_of(attack: Attack, outcome: Outcome, *, changed: bool, rewritten: bool) -> list[str]:
    found = []
    if outcome.code not in attack.codes:
        found.append(f"exit code {outcome.code}: {(outcome.output.splitlines() or [''])[-1][:120]!r}")
    if re.search(r"[^\n\x20-\x7e\xa0-\u1fff\u2010-\u2027\u2030-\u205e\u2070-\ud7ff\ue000-\ufeff]", outcome.output):
        found.append("control characters in the output")
    if "Traceback" in outcome.output or "not foreseen" in outcome.output:
        found.append("not foreseen")
    if changed:
        found.append("something outside of the bundle changed")
    if attack.refused and rewritten:
        found.append("the bundle was rewritten")
    if outcome.seconds > MOST_SECONDS or outcome.mib > MOST_MIB:
        found.append("too long or too large")
    return found


def carry_out(attack: Attack, bundle: Path, outside: Path) -> None:
    """Change a bundle as the attack does, and give it new checksums."""
    if attack.change is not None:
        attack.change(bundle, outside)
    if not attack.name.startswith(("a file of", "manifest.json of")):  # their digests would take too long
        reseal(bundle)
    if attack.after is not None:
        attack.after(bundle)


def attempt(attack: Attack, good: Path, target: str, folder: Path) -> tuple[Outcome, list[str]]:
    outside, shelf, home = folder / "outside", folder / "dist", folder / "home"
    for path in (outside, shelf, home):
        path.mkdir(parents=True)
    (outside / "secret").write_text(PRIVATE)
    bundle = Path(shutil.copytree(good, shelf / "resnet18"))
    make_stale(bundle)
    carry_out(attack, bundle, outside)
    before, inside = snapshot(outside), snapshot(bundle)
    outcome = run_bundler(["verify", "--target", target, str(bundle)], home)
    left = [path.name for path in shelf.iterdir() if path.name not in ("resnet18", "resnet18.tar.gz")]
    changed = snapshot(outside) != before or bool(left) or PRIVATE in outcome.output
    problems = problems_of(attack, outcome, changed=changed, rewritten=snapshot(bundle) != inside)
    if not attack.refused and not problems and bundle.is_dir():
        problems = rendered_problems(bundle)
    return outcome, problems


def rendered_problems(bundle: Path) -> list[str]:
    """Say what of a stranger's text is still Markdown, HTML or a control character in the rewritten papers."""
    found = []
    for name in ("README.md", "report.html", "compose.yaml", "Dockerfile", "resnet18-x86-fbgemm.service"):
        content = (bundle / name).read_text(errors="surrogateescape")
        forbidden = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]|<script|victim"
        if re.search(forbidden, content) or (name == "README.md" and "[a](" in content):
            found.append(f"unescaped text in {name}")
    return found


def build(folder: Path, target: str) -> Path:
    options = "--weights random --input-size 64 --num-classes 10 --calibration-images 8 --output"
    print("building a small bundle ...", flush=True)
    command = [sys.executable, "-P", "-c", "from bundler.cli import main; main()", "bundle", "resnet18", "--target", target]
    environment = {**os.environ, "DOCKER_HOST": "unix:///nonexistent", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([*command, *options.split(), str(folder)], check=False, env=environment, capture_output=True)
    (manifest_path,) = folder.glob("*/resnet18/manifest.json")
    return manifest_path.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, help="a good bundle of resnet18")
    parser.add_argument("--target", default="x86")
    parser.add_argument("--only", default="", metavar="TEXT", help="only attacks with this in their name")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[2]))
    importlib.import_module("bundler.cli.verify")  # with everything that it needs, before processes are forked
    held = tried = 0
    with tempfile.TemporaryDirectory(prefix="hostile-bundles-") as temporary:
        good = arguments.bundle or build(Path(temporary, "good"), arguments.target)
        print(f"{'attack':38}  held  code  seconds    MiB")
        for number, attack in enumerate(attack for attack in ATTACKS if arguments.only in attack.name):
            folder = Path(temporary, str(number))
            outcome, problems = attempt(attack, good, arguments.target, folder)
            tried, held = tried + 1, held + (not problems)
            figures = f"{outcome.code:4}  {outcome.seconds:7.1f}  {outcome.mib:5.0f}"
            print(f"{attack.name:38}  {'NO ' if problems else 'yes'}   {figures}  {'; '.join(problems)}".rstrip(), flush=True)
            shutil.rmtree(folder)
    print(f"{tried} tried, {held} held")
    return 0 if held == tried else 1


if __name__ == "__main__":
    sys.exit(main())
