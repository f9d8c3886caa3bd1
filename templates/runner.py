#!/usr/bin/env python3
"""Prove, offline and on this very machine, that the models of this bundle compute what they computed when it was built.

exit codes:
  0  passed
  1  wrong results: a known answer or a mode failed; do not use it on this machine
  2  the command line or an input file is not usable
  3  a file of the bundle is missing or changed (each one is named)
  4  cannot run here: numpy or onnxruntime is missing, too old, or crashes on this CPU
  130, 143  stopped from outside
  141  nobody reads the output any more

environment:
  EDGE_BUNDLER_THREADS  threads to compute with (default: every CPU this process may use)
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SCHEMA = "edge-bundler/runner/1"
KEYS = (
    "bundle",
    "task",
    "input",
    "output",
    "graph_optimization_level",
    "golden",
    "known_answer",
    "modes",
    "tolerances",
    "files",
)
INSTALL = "Install what requirements.txt names: python3 -m pip install -r requirements.txt"
LEVELS = {"disabled": "DISABLE_ALL", "basic": "ENABLE_BASIC", "extended": "ENABLE_EXTENDED", "all": "ENABLE_ALL"}

# The columns of an output that are compared each by themselves, the scores last: pixels of boxes would drown scores up to 1.
PARTS = {"classification": (slice(None),), "detection": (slice(0, 4), slice(4, None))}
CONFIDENCE, IOU = 0.25, 0.45  # what a detection is, unless `run` is told otherwise
CANDIDATES, DETECTIONS = 30_000, 300  # of one picture: how many are looked at, and how many kept

# sha256 of what known_answers() computes. Two's complement and IEEE 754 leave one right answer for each, on every CPU.
ANSWERS = {
    "float32 add": "6aeaef32cdc224bbe16ed99a2f004a86fe40c33a20ca6b63c0d910631a46768d",
    "float32 multiply": "cf3c930b82f982e5f8e6eeb6c154034fea7899f37d9a4fe9e33b16507c8b2a93",
    "float32 divide": "83f9864517359a84e893932506d355236618db663f1e3495f039204eb4b7acea",
    "float32 square root": "e5583bd2868c1975356431da2725a36867dbcc403d2f70e66c599c5542c9fe71",
    "float32 subnormal": "912454a34f257890a3460ad1822955b696108df1eef7c854aed7b71e2fc48578",
    "float32 round": "79dfed298ee907f1f65b84b7168ad9a5f2f2a3c5362fd8d1c2170dd43444ba58",
    "float32 truncate": "1ce3c7aa78fdf80f42d0e824507fb824e34b6ce71181f6f94502e83c00cf4048",
    "float32 to float16": "3dc51eb8330c5837640c47ccbdea377049fb34f55d385aca6ab3b712d94920ee",
    "float16 to float32": "93a2568e2b5be2e89ba01e29c7f47ba1610e089770820c0dd714138b2c773ec6",
    "float64 add": "b7e962862a31e2b2857b0565f1baa3b8b58da4c62a11c9174105db23e40dc1e5",
    "float64 multiply": "1eba535310ec20224dc3290c0cca20b205cc4e9475ad896737b0ac966ab9a454",
    "float64 divide": "5e9dd3c28d137d219f5f20d50fd09a8286efd06c5131a92264c1ab1f7497733a",
    "float64 square root": "ca3231174f2b133bf87c1bd14443eedeccb1ba977bd92f6430c100e675025844",
    "uint8 int8 dot product": "b2a7df96752697d72adb663a7697b7f3ef7a1bb6b734914e6b4c154f9ea9ecb9",
    "int8 int8 dot product": "74061796e25219f9ac6fead2a7cdc49836e8ba4741bcae38da3008f067909af6",
    "int32 multiply": "45b98decc24e0c17b3c7fb5b7ba1e2f2a8a85ce196d268c8f03a8ebf98428633",
    "int32 shift": "688be7b9743302f8657e7d61616adc9b9c3d5d1c2d5f16e046d2cbca4b4301d1",
    "int32 divide": "a4beefc30c5cea797f65fb1b1c244dbfe57c04568dfd25af8f2add2422521e93",
    "sha256": "26f52a6c1199386e28099c99af58de62b8cd3da351c8e53da606119faddc2276",
    "crc32": "93fbf3a291198af11e53a856aa49cd86dde3cb0b35fd7e1da46f512601b61319",
    "zlib": "26f52a6c1199386e28099c99af58de62b8cd3da351c8e53da606119faddc2276",
}


class Refusal(Exception):  # noqa: N818  not a defect of this program
    """Something that a person can put right, with the exit code it ends in and what to do."""

    def __init__(self, exit_code: int, message: str, next_step: str) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.next_step = next_step


class Answer(NamedTuple):
    """What a command found: for programs, and for people."""

    passed: bool
    document: dict[str, Any]
    lines: list[str]


class Detections(NamedTuple):
    """What a detector sees in one picture, best first; boxes are left, top, right, bottom in pixels of the network's input."""

    classes: Any
    scores: Any
    boxes: Any


# ---- the command line -----------------------------------------------------------------------------------------------


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head`: end without a traceback
    arguments = command_line().parse_args()
    return supervised(lambda: carry_out(arguments))


def command_line() -> argparse.ArgumentParser:
    description, _, epilog = str(__doc__).partition("\n\n")
    texts: dict[str, Any] = {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="runner.py", description=description, **texts)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(work: Callable[[argparse.Namespace], Answer], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(work.__name__, help=text, description=text, **texts)
        added.add_argument("--json", action="store_true", help="print one JSON document, for a program to read")
        added.set_defaults(work=work)
        return added

    test = command(selftest, "check the files, this machine's arithmetic, and every mode against its golden outputs")
    test.add_argument("--mode", action="append", metavar="NAME", help="only this mode; may be given more than once")
    expected = "fail unless the SHA-256 of runner.json begins so: an image under that name may hold another bundle"
    test.add_argument("--expect", type=digest, metavar="SHA256", help=expected)
    command(probe, "tell what this machine is and whether it calculates correctly, without loading onnxruntime")
    use = command(run, "run pictures that are resized and normalised already (README.md shows how)")
    use.add_argument("--mode", required=True, metavar="NAME", help="the mode to run")
    above = f"detectors: show what scores above this, 0 to 1 (default: {CONFIDENCE})"
    use.add_argument("--confidence", type=share, metavar="SCORE", help=above)
    overlapping = f"detectors: of boxes of a class that overlap by more than this, 0 to 1, show the best (default: {IOU})"
    use.add_argument("--iou", type=share, metavar="SHARE", help=overlapping)
    several = "detectors: show a box for each class that scores above the confidence (default: for its best class)"
    use.add_argument("--multi-label", action="store_true", default=None, help=several)
    across = "detectors: of boxes of any class that overlap, show the best (default: of a class)"
    use.add_argument("--agnostic", action="store_true", default=None, help=across)
    only = "detectors: show these classes alone, numbers from 0 with commas between"
    use.add_argument("--classes", type=class_numbers, metavar="N,N,...", help=only)
    use.add_argument("inputs", nargs="+", metavar="INPUT.npy", help="float32 array of shape [3,H,W] or [N,3,H,W]")
    command(info, "list what this bundle holds")
    return parser


def share(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")


def digest(text: str) -> str:
    if re.fullmatch("[0-9a-f]{12,64}", text):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is not the beginning of a SHA-256: 12 to 64 of the digits 0-9a-f")


def class_numbers(text: str) -> tuple[int, ...]:
    if re.fullmatch("[0-9]{1,9}(,[0-9]{1,9})*", text):
        return tuple(map(int, text.split(",")))
    raise argparse.ArgumentTypeError(f"{text!r} is not a list of class numbers, such as 0,2,5")


def carry_out(arguments: argparse.Namespace) -> int:
    try:
        passed, document, lines = arguments.work(arguments)
    except Refusal as refusal:
        print(f"error: {refusal}\n  next: {refusal.next_step}", file=sys.stderr)
        return refusal.exit_code
    print(json.dumps(document, indent=2, allow_nan=False) if arguments.json else "\n".join(lines), flush=True)
    if not arguments.json and document.get("emulation") == "emulated":
        by = "{name} {version}".format(**document["emulator"])
        print(f"note: this CPU is emulated ({by}): times here say nothing about a device", file=sys.stderr)
    if not arguments.json and document.get("emulation") == "unknown":
        print(f"note: could not determine whether this CPU is emulated: {document['emulation_reason']}", file=sys.stderr)
    return 0 if passed else 1


def supervised(work: Callable[[], int]) -> int:
    """Do the work in a child process, so that a library that crashes is named here.

    The first process of a container is not ended by its own crash: without this one in its place the container would hang.
    """
    lifeline, held = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
        os.close(held)
        threading.Thread(target=end_with_parent, args=(lifeline,), daemon=True).start()
        return work()

    stopped: list[int] = []

    def stop(number: int, _frame: object) -> None:
        stopped.append(number)
        os.kill(child, signal.SIGKILL)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    exit_code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if stopped:
        return 128 + stopped[0]
    if exit_code == -signal.SIGPIPE:
        return 128 + signal.SIGPIPE
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        why = "out of memory?" if name == "SIGKILL" else "numpy or onnxruntime does not work on this CPU or emulator"
        print(f"error: the work ended with {name}: {why}", file=sys.stderr)
        print("  next: `runner.py probe` tells what this machine is, README.md where this bundle was proved", file=sys.stderr)
        return 4
    return exit_code


def end_with_parent(lifeline: int) -> None:
    os.read(lifeline, 1)  # returns when nobody holds the other end: the parent is gone
    os._exit(1)


# ---- the commands ---------------------------------------------------------------------------------------------------


def probe(_arguments: argparse.Namespace) -> Answer:
    found = {"schema": "edge-bundler/probe/1", **this_machine()}
    return Answer(found["known_answers"]["passed"], found, describe(found))


def selftest(arguments: argparse.Namespace) -> Answer:
    bundle = read_bundle()
    if arguments.expect and not bundle["bundle_sha256"].startswith(arguments.expect):
        reason = f"this is another bundle: the SHA-256 of its runner.json is {bundle['bundle_sha256']}, not {arguments.expect}…"
        raise Refusal(3, reason, "Run the image that README.md names, or build it again from the bundle's folder.")
    modes = [find_mode(bundle, name) for name in dict.fromkeys(arguments.mode)] if arguments.mode else bundle["modes"]
    check_files(bundle, {*bundle["files"], *files_read(bundle)})
    machine = this_machine()
    machine["onnxruntime"] = check_runtime(bundle)
    known = machine["known_answers"]
    known["checks"]["onnxruntime integers"] = model_knows_its_answer(bundle)
    known["passed"] = all(known["checks"].values())
    results = [check_mode(bundle, mode, trusted=known["passed"]) for mode in modes]
    passed = bool(results) and all(mode["verdict"] == "passed" for mode in results)
    identity = {key: bundle[key] for key in ("bundle", "bundle_sha256")}
    document = {"schema": "edge-bundler/selftest/2", **identity, **machine}
    document["graph_optimization_level"] = bundle["graph_optimization_level"]
    document.update(modes=results, verdict="passed" if passed else "failed")
    alike = "boxes" if bundle["task"] == "detection" else "top-1"
    rows = [["mode", "verdict", "pictures", "SQNR", f"{alike} as FP32", "steps off"]]
    for mode in results:
        sqnr = "exact" if mode["verdict"] == "passed" and mode["sqnr_db"] is None else figure(mode["sqnr_db"], ".1f", " dB")
        agreement = mode["boxes_agreement" if alike == "boxes" else "top1_agreement"]
        shares, steps = figure(agreement, ".0%"), figure(mode["max_steps"], "d")
        rows.append([mode["name"], mode["verdict"], str(mode["samples"]), sqnr, shares, steps])
    reasons = [f"{mode['name']}: {mode['reason']}" for mode in results if mode["reason"]]
    return Answer(passed, document, [*describe(document), *table(rows), *reasons, "PASSED" if passed else "FAILED"])


def run(arguments: argparse.Namespace) -> Answer:
    bundle = read_bundle()
    mode = find_mode(bundle, arguments.mode)
    options = detection_options(bundle, arguments)
    check_files(bundle, {"runner.py", mode["model"], bundle["golden"]["inputs"]})
    _, height, width = shape = load(bundle["golden"]["inputs"]).shape[1:]
    batches = [(name, read_input(name, shape)) for name in arguments.inputs]
    check_runtime(bundle)
    model, _ = session(bundle, mode["model"])
    detecting = bundle["task"] == "detection"
    columns = ["class", "score", "left", "top", "right", "bottom"] if detecting else ["class", "logit", "probability"]
    results, rows = [], [["file", "picture", *columns]]
    for name, batch in batches:
        for index, picture in enumerate(batch):
            progress(mode, index + 1, len(batch))
            output = output_of(bundle, mode, model, picture[None])
            if not numpy().isfinite(output).all():
                raise Refusal(1, f"the outputs of {mode['name']} are not finite", "Run `runner.py selftest` on this machine.")
            if detecting:
                refuse_unknown_classes(options, output.shape[2] - 5)
                found = clipped(detect(output[0], **options), height, width)
                results.append({"file": name, "picture": index, "detections": found})
                cells = detection_cells(found, options["confidence"])
            else:
                top5 = best_classes(output)
                results.append({"file": name, "picture": index, "top5": top5})
                cells = class_cells(top5)
            rows += [[name, str(index), *row] for row in cells]
    document = {"schema": "edge-bundler/run/1", "bundle": bundle["bundle"], "mode": mode["name"], "results": results}
    return Answer(True, document, table(rows))


def info(_arguments: argparse.Namespace) -> Answer:
    bundle = read_bundle()
    level = bundle["graph_optimization_level"]
    head = f"{bundle['bundle']}: {bundle['task']}, {bundle['input']} -> {bundle['output']}, graph optimization {level}"
    rows = [["mode", "model", "golden pictures", "SQNR on the build host"]]
    rows += [[m["name"], m["model"], str(m["samples"]), figure(m["expected_sqnr_db"], ".1f", " dB")] for m in bundle["modes"]]
    return Answer(True, {**bundle, "schema": "edge-bundler/info/1"}, [head, *table(rows)])


# ---- the machine ----------------------------------------------------------------------------------------------------


def this_machine() -> dict[str, Any]:
    emulated = emulation()
    np = numpy()
    core = getattr(np, "_core", None) or np.core  # numpy 2, numpy 1
    features = core._multiarray_umath.__cpu_features__  # noqa: SLF001  numpy has no public name for them
    checks = known_answers()
    try:
        runtime = importlib.metadata.version("onnxruntime")
    except importlib.metadata.PackageNotFoundError:
        runtime = None
    return {
        "machine": os.uname().machine,
        "cpu": {
            "model": cpu_model(emulated.asked_cpu),
            "features": sorted(name for name, enabled in features.items() if enabled),
        },
        "emulation": emulated.state,
        "emulation_reason": emulated.reason,
        "emulator": emulated.emulator,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": runtime,
        "known_answers": {"passed": all(checks.values()), "checks": checks},
    }


class Emulation(NamedTuple):
    """Whether the CPU is emulated: "none", "emulated" or "unknown", the last with a reason; by what; and as which CPU."""

    state: str
    reason: str = ""
    emulator: dict[str, Any] | None = None
    asked_cpu: str | None = None


def emulation() -> Emulation:
    """Find the user-mode emulator that runs this program, and the CPU that it was asked to be.

    QEMU shows a program a forged /proc of itself, but not of others: what really runs is read from the parent's.
    Native is claimed only when that is this Python. A program that may be executed and not read hides both from other users.
    """
    parent = Path(f"/proc/{os.getppid()}")
    try:
        python, running_program = Path(sys.executable or ""), parent / "exe"
        if running_program.samefile(python):
            return Emulation("none")
        program = running_program.read_bytes()
        words = (parent / "cmdline").read_bytes().decode(errors="replace").split("\0")
        if program == python.read_bytes():
            return Emulation("none")
    except (OSError, ValueError) as error:
        return Emulation("unknown", f"what runs this program cannot be read: {error}")
    named = re.search(rb"(qemu-[a-z0-9_]+) version ([^\n\0]+)", program)
    name, version = (part.decode() for part in named.groups()) if named else ("unknown", "unknown")
    asked = words[words.index("-cpu") + 1] if "-cpu" in words[:-1] else os.environ.get("QEMU_CPU")
    by = {"name": name, "version": version, "sha256": hashlib.sha256(program).hexdigest()}
    if not named:
        return Emulation("unknown", f"{running_program.readlink()} runs this program, which is not this Python", by, asked)
    return Emulation("emulated", "", by, asked or f"default of {name}")


def cpu_model(asked_cpu: str | None) -> str:
    """Name the CPU; on x86 an emulator leaves the host's /proc/cpuinfo, so there it is the CPU the emulator was asked to be."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines() if Path("/proc/cpuinfo").exists() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    if "CPU implementer" in facts:
        return f"implementer {facts['CPU implementer']} part {facts.get('CPU part', 'unknown')}"
    return asked_cpu or facts.get("model name", "unknown")


def known_answers() -> dict[str, bool]:
    return {name: hashlib.sha256(data).hexdigest() == ANSWERS.get(name) for name, data in calculations().items()}


def calculations() -> dict[str, bytes]:
    np = numpy()
    noise = np.arange(1, 4097, dtype=np.uint64) * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
    noise = (noise ^ (noise >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    whole = ((noise >> np.uint64(40)).astype(np.int32) - 2**23) | 1  # odd, so never zero
    a32, b32 = (half.astype(np.float32) * np.float32(2**-10) for half in np.split(whole, 2))
    a64, b64 = a32.astype(np.float64) / 3, b32.astype(np.float64) / 7
    u8 = (noise >> np.uint64(56)).astype(np.uint8).reshape(64, 64)
    s8 = (noise >> np.uint64(48)).astype(np.uint8).view(np.int8).reshape(64, 64)
    half = (a32 * np.float32(2**-4)).astype(np.float16)
    results = {
        "float32 add": a32 + b32,
        "float32 multiply": a32 * b32,
        "float32 divide": a32 / b32,
        "float32 square root": np.sqrt(np.abs(a32)),
        "float32 subnormal": a32 * np.float32(2**-140),
        "float32 round": np.rint(a32).astype(np.int32),
        "float32 truncate": a32.astype(np.int32),
        "float32 to float16": half,
        "float16 to float32": half.astype(np.float32),
        "float64 add": a64 + b64,
        "float64 multiply": a64 * b64,
        "float64 divide": a64 / b64,
        "float64 square root": np.sqrt(np.abs(a64)),
        "uint8 int8 dot product": u8.astype(np.int32) @ s8.astype(np.int32),
        "int8 int8 dot product": s8.astype(np.int32) @ s8.T.astype(np.int32),
        "int32 multiply": whole * whole[::-1],
        "int32 shift": (whole << 7) >> 13,
        "int32 divide": whole // 255,
    }
    answers = {name: np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes() for name, values in results.items()}
    text = noise.astype("<u8").tobytes()
    return {**answers, "sha256": text, "crc32": str(zlib.crc32(text)).encode(), "zlib": zlib.decompress(zlib.compress(text, 9))}


# ---- the bundle -----------------------------------------------------------------------------------------------------


def read_bundle() -> dict[str, Any]:
    path = HERE / "runner.json"
    try:
        content = path.read_bytes()
        bundle = json.loads(content)
        lacking = [key for key in KEYS if key not in bundle]
        reason = f"it lacks {', '.join(lacking)}" if lacking else ""
        if not lacking and bundle["task"] not in PARTS:
            reason = f"its task is {bundle['task']!r}, not {' or '.join(PARTS)}"
        if bundle.get("schema") != SCHEMA:
            reason = f"its schema is {bundle.get('schema')!r}, not {SCHEMA!r}"
    except (OSError, ValueError, AttributeError, TypeError) as error:
        reason = str(error)
    if reason:
        raise Refusal(3, f"{path} is not usable: {reason}", "Copy the bundle again.")
    return {**bundle, "bundle_sha256": hashlib.sha256(content).hexdigest()}


def check_files(bundle: dict[str, Any], names: set[str]) -> None:
    """Refuse a bundle in which one of these files is missing, changed, or has no checksum to tell."""
    problems = []
    for name in sorted(names):
        try:
            digest = hashlib.sha256((HERE / name).read_bytes()).hexdigest()
        except OSError as error:
            problems.append(f"{name} cannot be read ({error.strerror})")
            continue
        if digest != bundle["files"].get(name):
            problems.append(f"{name} is changed, or has no checksum")
    if problems:
        raise Refusal(3, "; ".join(problems), "Copy the bundle again; what it computes now is not what was proved.")


def find_mode(bundle: dict[str, Any], name: str) -> dict[str, Any]:
    for mode in bundle["modes"]:
        if mode["name"] == name:
            return dict(mode)
    known = ", ".join(mode["name"] for mode in bundle["modes"])
    raise Refusal(2, f"this bundle has no mode {name!r}", f"Its modes: {known}.")


def detection_options(bundle: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("confidence", "iou", "multi_label", "agnostic", "classes")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if given and bundle["task"] != "detection":
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise Refusal(2, f"only a detector takes {options}, and this bundle holds none", f"Leave out {options}.")
    return {"confidence": CONFIDENCE, "iou": IOU, **given}


def refuse_unknown_classes(options: dict[str, Any], count: int) -> None:
    unknown = [number for number in options.get("classes", ()) if number >= count]
    if unknown:
        raise Refusal(2, f"--classes has {unknown[0]}, and this detector has classes 0 to {count - 1}", "Choose among those.")


def files_read(bundle: dict[str, Any]) -> set[str]:
    of_modes = (mode[part] for mode in bundle["modes"] for part in ("model", "expected"))
    return {"runner.py", *bundle["golden"].values(), *bundle["known_answer"].values(), *of_modes}


def load(name: str) -> Any:
    return numpy().load(HERE / name, allow_pickle=False)


def read_input(name: str, shape: tuple[int, ...]) -> Any:
    np = numpy()
    wanted = f"a float32 array of shape {list(shape)} or [N, {', '.join(map(str, shape))}]"
    try:
        array = np.load(name, allow_pickle=False)
        what = f"{array.dtype} of shape {list(array.shape)}"
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise Refusal(2, f"{name} cannot be read: {error}", f"Save {wanted} with numpy.save.") from error
    if array.dtype != np.float32 or array.shape[-3:] != shape or array.ndim not in (3, 4) or array.size == 0:
        raise Refusal(2, f"{name} is {what}", f"This bundle takes {wanted}; README.md shows how to make one.")
    if not np.isfinite(array).all():
        raise Refusal(2, f"{name} holds values that are not finite", "Look at how the picture was normalised.")
    return array.reshape(-1, *shape)


# ---- the models -----------------------------------------------------------------------------------------------------


def numpy() -> Any:
    os.environ.pop("OPENBLAS_CORETYPE", None)  # it would force the code of another CPU on this one
    try:
        import numpy as np  # noqa: PLC0415
    except (ImportError, RuntimeError) as error:  # RuntimeError: the CPU is older than numpy supports
        raise Refusal(4, f"numpy cannot be loaded: {first_line(error)}", INSTALL) from error
    return np


def onnxruntime() -> Any:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # its Linux builds report to Microsoft otherwise, and leave an identifier in HOME
    try:
        import onnxruntime as ort  # noqa: PLC0415
    except ImportError as error:
        raise Refusal(4, f"onnxruntime cannot be loaded: {first_line(error)}", INSTALL) from error
    return ort


def check_runtime(bundle: dict[str, Any]) -> str:
    """Return the version of onnxruntime; refuse one that lacks an operator of this bundle's models."""
    found, needed = onnxruntime().__version__, bundle.get("onnxruntime_minimum", "0")
    if numbers(found) < numbers(needed):
        python = bundle.get("python_minimum", "3")
        next_step = INSTALL
        if numbers(platform.python_version()) < numbers(python):
            next_step = (
                f"No onnxruntime {needed} is made for Python {platform.python_version()}: use Python {python} or newer,"
                " or the container image that README.md names"
            )
        raise Refusal(4, f"this bundle needs onnxruntime ≥ {needed}, found {found}", next_step)
    return str(found)


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall("[0-9]+", version)[:2]))


@contextmanager
def running(model: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # onnxruntime's errors have no common ancestor
        raise Refusal(4, f"onnxruntime cannot run {model}: {first_line(error)}", INSTALL) from error


def session(bundle: dict[str, Any], model: str) -> tuple[Any, str]:
    """Return a session, and the SHA-256 of the bytes it was made of: what the evidence names is what was executed."""
    ort, options = onnxruntime(), onnxruntime().SessionOptions()
    level = LEVELS[bundle["graph_optimization_level"]]
    options.log_severity_level = 3
    options.intra_op_num_threads = threads()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    with running(model):
        content = (HERE / model).read_bytes()
        loaded = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return loaded, hashlib.sha256(content).hexdigest()


def threads() -> int:
    text = os.environ.get("EDGE_BUNDLER_THREADS") or str(len(os.sched_getaffinity(0)))
    if not re.fullmatch("[1-9][0-9]{0,3}", text):
        raise Refusal(2, f"EDGE_BUNDLER_THREADS is {text!r}", "Set it to a number from 1, or unset it to use every CPU.")
    return int(text)


def output_of(bundle: dict[str, Any], mode: dict[str, Any], model: Any, picture: Any) -> Any:
    with running(mode["model"]):
        output = model.run([bundle["output"]], {bundle["input"]: picture})[0]
    if bundle["task"] == "detection" and (output.ndim != 3 or output.shape[2] < 6):
        reason = f"the output has shape {list(output.shape)}, not [N, boxes, 5 + classes]"
        raise Refusal(2, reason, "This bundle holds no detector that this program can read; build it again.")
    return output


def model_knows_its_answer(bundle: dict[str, Any]) -> bool:
    known = bundle["known_answer"]
    (model, _), expected = session(bundle, known["model"]), load(known["expected"])
    with running(known["model"]):
        given = model.run(None, {model.get_inputs()[0].name: load(known["inputs"])})[0]
    return bool(given.dtype == expected.dtype and given.shape == expected.shape and (given == expected).all())


def best_classes(logits: Any) -> list[dict[str, Any]]:
    np = numpy()
    if logits.ndim != 2:
        reason = f"the output has shape {list(logits.shape)}, not one score per class"
        raise Refusal(2, reason, "`run` is for classifiers and detectors.")
    scores = logits[0].astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = np.argsort(-scores, kind="stable")[:5]
    return [{"class": int(index), "logit": float(scores[index]), "probability": float(shares[index])} for index in best]


def check_mode(bundle: dict[str, Any], mode: dict[str, Any], *, trusted: bool) -> dict[str, Any]:
    """Run the mode picture by picture and judge its outputs; what could not be measured stays None."""
    figures = dict.fromkeys(("model_sha256", "outputs_sha256", "sqnr_db", "top1_agreement", "boxes_agreement", "max_steps"))
    try:
        reason = measure(bundle, mode, figures) if trusted else "not run: this machine calculates wrongly"
    except Refusal as refusal:
        reason = str(refusal)
    verdict = "failed" if reason else "passed"
    return {"name": mode["name"], "samples": mode["samples"], **figures, "verdict": verdict, "reason": reason}


def measure(bundle: dict[str, Any], mode: dict[str, Any], figures: dict[str, Any]) -> str:
    """Fill in the figures; return why these outputs are not what was proved, or an empty text."""
    np, count, task = numpy(), mode["samples"], bundle["task"]
    inputs, reference = (load(bundle["golden"][name])[:count] for name in ("inputs", "reference"))
    expected, outputs = load(mode["expected"]), []
    model, figures["model_sha256"] = session(bundle, mode["model"])
    if figures["model_sha256"] != bundle["files"][mode["model"]]:
        raise Refusal(3, f"{mode['model']} changed while it was tested", "Copy the bundle again.")
    for index in range(count):
        progress(mode, index + 1, count)
        outputs.append(output_of(bundle, mode, model, inputs[index : index + 1]))
    given = np.concatenate(outputs)
    figures["outputs_sha256"] = hashlib.sha256(given.astype("<f4").tobytes()).hexdigest()
    for name, values in (("expected outputs", expected), ("FP32 reference", reference)):
        if values.shape != given.shape:
            return f"the outputs have shape {list(given.shape)}, the {name} {list(values.shape)}"
        if not tells_something(task, values):
            return f"the {name} are all the same, or not finite: they prove nothing"
    if not np.isfinite(given).all():
        return "the outputs are not finite"
    figures["sqnr_db"] = lowest_sqnr_db(task, given, reference)
    if task == "detection":
        figures["boxes_agreement"] = boxes_agreement(given, reference)
    elif given.ndim == 2:
        figures["top1_agreement"] = float((given.argmax(1) == reference.argmax(1)).mean())
    if mode["step"] is not None:
        figures["max_steps"] = round(float(np.abs(given.astype(np.float64) - expected).max()) / mode["step"])
    return out_of_bounds(mode, bundle["tolerances"], figures, lowest_sqnr_db(task, given, expected))


def tells_something(task: str, values: Any) -> bool:
    """Whether a wrong model could be told by these: finite, spread over the classes, and not the same for every picture.

    A detector's scores have to be spread over its boxes; the boxes themselves differ from cell to cell even in a dead network.
    """
    scores = values[..., PARTS[task][-1]]
    first = scores[:, :1] if task == "detection" else scores.flat[0]
    constant = (scores == first).all() or (len(scores) > 1 and (scores == scores[0]).all())
    zero = not all(values[..., part].any() for part in PARTS[task])  # a signal that no noise has a ratio to
    return bool(numpy().isfinite(values).all() and not constant and not zero)


def out_of_bounds(mode: dict[str, Any], bounds: dict[str, Any], figures: dict[str, Any], closeness: float | None) -> str:
    """Compare with the tolerances; `closeness` is the SQNR to the expected outputs, which judges outputs that are float."""
    steps, proved = figures["max_steps"], mode["expected_sqnr_db"]
    if steps is not None and steps > bounds["max_steps"]:
        return f"an output is {steps} quantization steps from the expected one; {bounds['max_steps']} are allowed"
    least = bounds["fp32_min_sqnr_db"] if proved is None else proved - bounds["sqnr_loss_db"]
    judged = {"expected": closeness if steps is None else None, "FP32": None if proved is None else figures["sqnr_db"]}
    for what, sqnr in judged.items():
        if sqnr is not None and sqnr < least:
            return f"SQNR to the {what} outputs is {sqnr:.2f} dB; at least {least:.2f} dB are needed"
    return ""


def lowest_sqnr_db(task: str, outputs: Any, reference: Any) -> float | None:
    figures = [sqnr_db(outputs[..., part], reference[..., part]) for part in PARTS[task]]
    return min((sqnr for sqnr in figures if sqnr is not None), default=None)


def sqnr_db(outputs: Any, reference: Any) -> float | None:
    """Signal to noise of the outputs against the reference; None when they are equal, bit for bit."""
    np = numpy()
    signal_power = float((reference.astype(np.float64) ** 2).sum())
    noise_power = float(((outputs.astype(np.float64) - reference) ** 2).sum())
    return None if noise_power == 0 else float(10 * np.log10(signal_power / noise_power))


# ---- detections -----------------------------------------------------------------------------------------------------


def detect(
    rows: Any,
    confidence: float,
    iou: float,
    *,
    multi_label: bool = False,
    agnostic: bool = False,
    classes: Sequence[int] | None = None,
) -> Detections:
    """Read a detector's output for one picture, as YOLOv5's detect.py does: a box is of the class that scores highest.

    With `multi_label` it counts for each class that scores above the confidence, as in its val.py; with `agnostic` a box is
    suppressed by a better one of any class; with `classes` only these are looked at.
    """
    np = numpy()
    rows = rows.astype(np.float64)
    rows = rows[rows[:, 4] > confidence]  # a score is never above its objectness
    scores = rows[:, 4:5] * rows[:, 5:]
    counted = scores > confidence
    if not multi_label:
        counted &= np.arange(scores.shape[1]) == scores.argmax(1)[:, None]
    if classes is not None:
        counted &= np.isin(np.arange(scores.shape[1]), classes)
    row, kinds = np.nonzero(counted)
    order = np.argsort(-scores[row, kinds], kind="stable")[:CANDIDATES]
    row, kinds = row[order], kinds[order]
    middle, half = rows[row, :2], rows[row, 2:4] / 2
    boxes = np.concatenate([middle - half, middle + half], axis=1)
    kept = unsuppressed(boxes, np.zeros_like(kinds) if agnostic else kinds, iou)
    return Detections(kinds[kept], scores[row, kinds][kept], boxes[kept])


def unsuppressed(boxes: Any, groups: Any, iou: float) -> list[int]:
    """Return which of the boxes, given best first, no better one of their group that is kept overlaps by more than `iou`."""
    left, kept = numpy().arange(len(boxes)), []
    while len(left) and len(kept) < DETECTIONS:
        best, left = left[0], left[1:]
        kept.append(int(best))
        rival = groups[left] == groups[best]
        rival[rival] = overlaps(boxes[best], boxes[left[rival]]) > iou
        left = left[~rival]
    return kept


def overlaps(box: Any, boxes: Any) -> Any:
    """Return the intersection over union of a box with each of the others; equal boxes overlap wholly, even empty ones."""
    np = numpy()
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = sides.clip(0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - shared
    return np.where((boxes == box).all(1), 1.0, shared / np.where(union > 0, union, 1.0))


def boxes_agreement(outputs: Any, reference: Any) -> float | None:
    """Return the share of detections that both have: 1 where all are the same; None where neither has any."""
    found, wanted = ([detect(rows, CONFIDENCE, IOU) for rows in values] for values in (outputs, reference))
    count = sum(len(one.scores) for one in found + wanted)
    return 2 * sum(map(matched, found, wanted)) / count if count else None


def matched(found: Detections, reference: Detections) -> int:
    """Count the detections, best first, for which there is a reference of the class, not taken yet, with an IoU from 0.5."""
    np = numpy()
    taken = np.zeros(len(reference.scores), dtype=bool)
    for index, kind in enumerate(found.classes):
        fit = np.where(taken | (reference.classes != kind), 0, overlaps(found.boxes[index], reference.boxes))
        if fit.max(initial=0) >= 0.5:
            taken[fit.argmax()] = True
    return int(taken.sum())


def clipped(found: Detections, height: int, width: int) -> list[dict[str, Any]]:
    boxes = found.boxes.clip(0, [width, height, width, height]).tolist()
    return [{"class": int(found.classes[i]), "score": float(found.scores[i]), "box": box} for i, box in enumerate(boxes)]


# ---- what a person reads --------------------------------------------------------------------------------------------


def describe(machine: dict[str, Any]) -> list[str]:
    wrong = [name for name, right in machine["known_answers"]["checks"].items() if not right]
    return [
        f"{machine.get('bundle', 'this machine')}: {machine['machine']}, {machine['cpu']['model']}",
        f"Python {machine['python']}, numpy {machine['numpy']}, onnxruntime {machine['onnxruntime'] or 'missing'}",
        f"arithmetic: {'WRONG in ' + ', '.join(wrong) if wrong else 'right'}",
    ]


def progress(mode: dict[str, Any], number: int, count: int) -> None:
    print(f"{mode['name']}: picture {number} of {count}", file=sys.stderr, flush=True)


def class_cells(top5: list[dict[str, Any]]) -> list[list[str]]:
    return [[str(one["class"]), f"{one['logit']:.4f}", f"{one['probability']:.1%}"] for one in top5]


def detection_cells(found: list[dict[str, Any]], confidence: float) -> list[list[str]]:
    rows = [[str(one["class"]), f"{one['score']:.4f}", *(f"{edge:.1f}" for edge in one["box"])] for one in found]
    return rows or [[f"nothing above {confidence:g}", *[""] * 5]]


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def figure(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
