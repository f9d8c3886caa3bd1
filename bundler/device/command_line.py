"""Check on this machine, without a network, that the models of this bundle compute what they computed when it was built.

exit codes:
  0  passed
  1  wrong results: a known answer or a mode failed; do not use it on this machine
  2  the command line or an input file is not usable
  3  a file of the bundle is missing or changed (each one is named)
  4  cannot run here: Python, numpy or onnxruntime is missing, too old, or crashes on this CPU
  130, 143  stopped by a signal
  141  the reader of the output ended

environment:
  EDGE_BUNDLER_THREADS  threads to compute with (default: every CPU this process may use)
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

from .bundle_files import Bundle, read_bundle
from .detection_options import CONFIDENCE, IOU, DetectionOptions
from .device_error import PASSED, UNUSABLE, WRONG, DeviceError
from .runner_json import OptimizationLevel, Task
from .sessions import require_numpy
from .supervision import end_quietly_on_closed_pipe, supervised
from .tables import figure, table

if TYPE_CHECKING:
    from .answers import Machine, Selftest

__all__ = ["main"]

INFO_SCHEMA: Final = "edge-bundler/info/1"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a command prints: a JSON document for programs, lines for people; `machine` is where it ran, if that matters."""

    document: Mapping[str, Any]
    lines: list[str]
    passed: bool = True
    machine: Machine | None = None


def main() -> int:
    end_quietly_on_closed_pipe()
    arguments = command_line().parse_args()
    return supervised(lambda: execute(arguments))


def execute(arguments: argparse.Namespace) -> int:
    try:
        report: Report = arguments.command(arguments)
    except DeviceError as error:
        print(f"error: {error}\n  next: {error.next_step}", file=sys.stderr)
        return error.exit_code
    text = json.dumps(report.document, indent=2, allow_nan=False) if arguments.json else "\n".join(report.lines)
    print(text, flush=True)
    if report.machine and not arguments.json:
        warn_of_emulation(report.machine)
    return PASSED if report.passed else WRONG


def warn_of_emulation(machine: Machine) -> None:
    if machine.emulation == "emulated" and machine.emulator:
        by = f"{machine.emulator.name} {machine.emulator.version}"
        print(f"note: this CPU is emulated ({by}): the time it takes is not that of a device", file=sys.stderr)
    if machine.emulation == "unknown":
        print(f"note: could not determine whether this CPU is emulated: {machine.emulation_reason}", file=sys.stderr)


# ---- arguments


def command_line() -> argparse.ArgumentParser:
    description, _, epilog = str(__doc__).partition("\n\n")
    texts: dict[str, Any] = {"epilog": epilog, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(prog="python3 device.pyz", description=description, **texts)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], Report], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, **texts)
        added.set_defaults(command=command, json=False)
        return added

    test = add("selftest", selftest, "check the files, this machine's arithmetic, and every mode against its golden outputs")
    test.add_argument("--mode", action="append", metavar="NAME", help="only this mode; may be given more than once")
    expected = "fail unless the SHA-256 of runner.json begins so: an image under that name may hold another bundle"
    test.add_argument("--expect", type=digest, metavar="SHA256", help=expected)
    examine = add("probe", probe, "describe this machine and check its arithmetic, without loading onnxruntime")
    use = add("run", run, "run images that are resized and normalised already (README.md shows how)")
    use.add_argument("--mode", required=True, metavar="NAME", help="the mode to run")
    above = f"detectors: print detections that score above this, 0 to 1 (default: {CONFIDENCE})"
    use.add_argument("--confidence", type=share, metavar="SCORE", help=above)
    overlapping = f"detectors: of boxes of a class whose IoU is above this, 0 to 1, print the best (default: {IOU})"
    use.add_argument("--iou", type=share, metavar="SHARE", help=overlapping)
    several = "detectors: print a box for each class that scores above the confidence (default: for its best class)"
    use.add_argument("--multi-label", action="store_true", default=None, help=several)
    across = "detectors: of overlapping boxes of any class, print the best (default: of each class)"
    use.add_argument("--agnostic", action="store_true", default=None, help=across)
    only = "detectors: print these classes alone, numbers from 0 with commas between"
    use.add_argument("--classes", type=class_numbers, metavar="N,N,...", help=only)
    use.add_argument("inputs", nargs="+", metavar="INPUT.npy", help="float32 array of shape [3,H,W] or [N,3,H,W]")
    content = add("info", info, "list the modes of this bundle")
    for printing in (test, examine, use, content):
        printing.add_argument("--json", action="store_true", help="print one JSON document, for a program to read")
    tracing = add("trace", trace, "run an instrumented graph and print its tensors (`bundler verify --explain` does)")
    tracing.add_argument("model", type=Path, metavar="MODEL.onnx")
    tracing.add_argument("inputs", type=Path, metavar="INPUTS.npy")
    tracing.add_argument("level", choices=get_args(OptimizationLevel))
    tracing.add_argument("count", type=int, metavar="COUNT", help="how many of the inputs")
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


# ---- commands; modules are loaded by the commands that need them: numpy may be missing, and `info` starts faster


def probe(_arguments: argparse.Namespace) -> Report:
    require_numpy()
    from .answers import PROBE_SCHEMA, Probe, as_json  # noqa: PLC0415
    from .machine import examine_machine  # noqa: PLC0415

    machine = examine_machine()
    answer = Probe(**vars(machine), schema=PROBE_SCHEMA)
    return Report(
        passed=machine.known_answers.passed, document=as_json(answer), lines=describe("this machine", machine), machine=machine
    )


def selftest(arguments: argparse.Namespace) -> Report:
    bundle = read_bundle()
    if arguments.expect:
        bundle.require_identity(arguments.expect)
    modes = bundle.modes(arguments.mode)
    bundle.check_all_files()
    require_numpy()
    from .answers import as_json  # noqa: PLC0415
    from .selftest import run_selftest  # noqa: PLC0415

    answer = run_selftest(bundle, modes)
    lines = [*describe(answer.bundle, answer), *mode_table(answer, bundle.document.task), answer.verdict.upper()]
    return Report(passed=answer.verdict == "passed", document=as_json(answer), lines=lines, machine=answer)


def run(arguments: argparse.Namespace) -> Report:
    bundle = read_bundle()
    (mode,) = bundle.modes([arguments.mode])
    options = detection_options(bundle, arguments)
    bundle.check_files({mode.model, bundle.document.golden.inputs})
    require_numpy()
    from .inference import run_inference  # noqa: PLC0415

    inference = run_inference(bundle, mode, options, arguments.inputs)
    return Report(document=inference.document, lines=inference.lines)


def info(_arguments: argparse.Namespace) -> Report:
    bundle = read_bundle()
    held = bundle.document
    head = f"{held.bundle}: {held.task}, {held.input} -> {held.output}, graph optimization {held.graph_optimization_level}"
    rows = [["mode", "model", "golden images", "SQNR on the build host"]]
    rows += [[mode.name, mode.model, str(mode.samples), figure(mode.expected_sqnr_db, ".1f", " dB")] for mode in held.modes]
    document = {**asdict(held), "schema": INFO_SCHEMA, "bundle_sha256": bundle.sha256}
    return Report(document=document, lines=[head, *table(rows)])


def trace(arguments: argparse.Namespace) -> Report:
    require_numpy()
    from .tracing import trace_graph  # noqa: PLC0415

    text = trace_graph(arguments.model, arguments.inputs, arguments.level, arguments.count)
    return Report(document={}, lines=[text])


def detection_options(bundle: Bundle, arguments: argparse.Namespace) -> DetectionOptions:
    names = ("confidence", "iou", "multi_label", "agnostic", "classes")
    given = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if given and bundle.document.task != "detection":
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        message = f"only a detector takes {options}, and this bundle holds none"
        raise DeviceError(UNUSABLE, message, f"Leave out {options}.")
    return DetectionOptions(**given)


# ---- text


def describe(name: str, machine: Machine) -> list[str]:
    wrong = [calculation for calculation, right in machine.known_answers.checks.items() if not right]
    return [
        f"{name}: {machine.machine}, {machine.cpu.model}",
        f"Python {machine.python}, numpy {machine.numpy}, onnxruntime {machine.onnxruntime or 'missing'}",
        f"arithmetic: {'WRONG in ' + ', '.join(wrong) if wrong else 'correct'}",
    ]


def mode_table(answer: Selftest, task: Task) -> list[str]:
    detecting = task == "detection"
    rows = [["mode", "verdict", "images", "SQNR", "boxes as FP32" if detecting else "top-1 as FP32", "max steps"]]
    for mode in answer.modes:
        ratio = "exact" if mode.verdict == "passed" and mode.sqnr_db is None else figure(mode.sqnr_db, ".1f", " dB")
        agreement = figure(mode.boxes_agreement if detecting else mode.top1_agreement, ".0%")
        rows.append([mode.name, mode.verdict, str(mode.samples), ratio, agreement, figure(mode.max_steps, "d")])
    return [*table(rows), *(f"{mode.name}: {mode.reason}" for mode in answer.modes if mode.reason)]
