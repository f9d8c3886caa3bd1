"""End builds by signals at random times, and check what they leave: the earlier bundle or the new one, complete, nothing else.

    python tests/attacks/kills.py --tries 40               # real builds, with the engine if one answers
    python tests/attacks/kills.py --installing --tries 400 # installations of a bundle and its archive only

Exit code 0 if every try passed, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from bundler.engines.container_engine import connect
from bundler.engines.owner import OWNER_LABEL
from bundler.errors import EngineUnavailableError
from bundler.packaging.installation import complete_installation, find_leftovers, remove_leftover

ROOT = Path(__file__).parents[2]
BUNDLER = (sys.executable, "-c", "from bundler.cli import main; main()")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# Python restores the default action of SIGINT when it shuts down: a repeated Ctrl-C can end it then (130 in a shell, too).
CODES = {signal.SIGKILL: (-9,), signal.SIGTERM: (143,), signal.SIGHUP: (129,), signal.SIGINT: (130, -2)}
END_SECONDS = 120  # after a signal

INSTALLING = """
import sys, tarfile
from pathlib import Path
from bundler.interruption import InterruptedBySignal, install_signal_handlers
from bundler.packaging.checksums import write_checksums
from bundler.packaging.installation import install_bundle, staging_directory
def install_once(directory, text):
    with staging_directory(directory) as work:
        (work / "new").mkdir()
        (work / "new" / "model.onnx").write_text(text)
        write_checksums(work / "new")
        archive, archive_path = work / "archive", directory.with_name(f"{directory.name}.tar.gz")
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(work / "new", arcname="resnet18")
        install_bundle(work / "new", directory, archive=archive, archive_path=archive_path)
install_signal_handlers()
try:
    for number in range(100_000):
        install_once(Path(sys.argv[1]), f"{sys.argv[2]}-{number}")
        if number == 0:
            print("ready", flush=True)
except InterruptedBySignal as error:
    sys.exit(error.exit_code)
"""


@dataclass
class Counts:
    """The outcomes per signal, and the problems."""

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, number: int, outcome: str, problems: list[str]) -> None:
        name = signal.Signals(number).name
        self.seen[name, "tries"] += 1
        self.seen[name, outcome] += 1
        self.seen[name, "passed"] += not problems
        self.problems += [f"{name}: {problem}" for problem in problems]

    def lines(self) -> Iterator[str]:
        columns = ("tries", "passed", "earlier", "new", "recovered")
        yield "signal   " + "".join(f"{column:>10}" for column in columns)
        for number in SIGNALS:
            name = signal.Signals(number).name
            yield f"{name:<9}" + "".join(f"{self.seen[name, column]:>10}" for column in columns)
        yield from self.problems


@dataclass(frozen=True)
class Subject:
    """The command under attack, and where it installs its bundle; `{seed}` in the command makes each bundle a different one."""

    output: Path
    directory: Path
    command: tuple[str, ...]
    environment: Mapping[str, str]
    builds: bool

    @property
    def archive(self) -> Path:
        return self.directory.with_name(f"{self.directory.name}.tar.gz")

    def start(self, seed: int) -> subprocess.Popen[str]:
        words = [word.replace("{seed}", str(seed)) for word in self.command]
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if not self.builds and process.stdout is not None:
            process.stdout.readline()  # it has installed once
        return process

    def state(self) -> tuple[bytes, ...] | None:
        """Return SHA256SUMS of the folder and of the archive; None if one of the two does not exist."""
        try:
            with tarfile.open(self.archive) as archive:
                packed = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive if member.isfile()}
                inside = packed["SHA256SUMS"]
                assert inside is not None
                return ((self.directory / "SHA256SUMS").read_bytes(), inside.read())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def bundler(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*BUNDLER, *arguments]
        environment = {**os.environ, **self.environment}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)


def whole(state: tuple[bytes, ...] | None) -> bool:
    return state is not None and state[0] == state[1]


def attack(subject: Subject, seed: int, number: signal.Signals, seconds: float, counts: Counts) -> None:
    """Start the command, send a signal after `seconds`, and check what it left, before and after the next command."""
    before = subject.state()
    process = subject.start(seed)
    problems: list[str] = []
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        if number == signal.SIGINT:  # Ctrl-C is often pressed repeatedly
            for _ in range(2):
                time.sleep(0.1)
                process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        problems.append(f"it did not end within {END_SECONDS} s of the signal at {seconds:.2f} s")
    code = process.returncode
    if code not in (0, *CODES[number]):
        problems.append(f"exit code {code} after {seconds:.2f} s: {errors[-500:]}")
    if re.search("Traceback|not foreseen|Exception ignored", errors):
        problems.append(f"after {seconds:.2f} s: {errors[-1500:]}")
    between = subject.state()
    if number != signal.SIGKILL and (hidden := left_over(subject)):
        problems.append(f"after {seconds:.2f} s it left {hidden}")
    complete_installation(subject.directory)  # as every command does first
    after = subject.state()
    if not whole(after):
        problems.append(f"after {seconds:.2f} s and the next command, folder and archive are of different bundles")
    problems += clean(subject, process.pid)
    if after != subject.state():
        problems.append("doctor --clean changed the bundle")
    outcome = "recovered" if between != after else "earlier" if after == before else "new"
    counts.add(number, outcome, problems)


def left_over(subject: Subject) -> list[str]:
    return sorted(str(path.relative_to(subject.output)) for path in subject.output.rglob(".*"))


def clean(subject: Subject, pid: int) -> list[str]:
    """Run `doctor --clean` and return what it left."""
    if not subject.builds:  # without torch, which `doctor` imports
        problems = [f"not removed: {found}" for found in find_leftovers(subject.output) if not remove_leftover(found)]
        return problems + [f"the clean-up left {name}" for name in left_over(subject)]
    run = subject.bundler("doctor", "--clean", "--json", "--output", str(subject.output))
    findings = json.loads(run.stdout) if run.stdout else [{"status": "not removed", "subject": run.stderr, "next_step": ""}]
    problems = [f"not removed: {item['subject']}: {item['next_step']}" for item in findings if item["status"] == "not removed"]
    problems += [f"doctor --clean left {name}" for name in left_over(subject)]
    with suppress(EngineUnavailableError), connect() as engine:
        names = [container["Labels"].get(OWNER_LABEL, "") for container in engine.client.api.containers(all=True)]
        names += [tag for image in engine.client.api.images() for tag in image["RepoTags"] or ()]
        problems += [f"doctor --clean left {name} in the engine" for name in names if f".{pid}." in name]
    return problems


def build_subject(folder: Path) -> Subject:
    """Return a small build for this machine's CPU, whose steps take similar times."""
    text = (ROOT / "targets" / "x86-fbgemm.toml").read_text(encoding="utf-8")
    text = text[: text.index('[[verification.cpus]]\nname = "Haswell"')]
    text = text.replace('name = "x86-fbgemm"', 'name = "attacked"').replace('["x86", "amd64", "x86_64"]', '["attacked-x86"]')
    profile = folder / "attacked.toml"
    profile.write_text(re.sub(r"^also_verify_on = .*$", "also_verify_on = []", text, flags=re.MULTILINE), encoding="utf-8")
    output = folder / "dist"
    small = [
        "--mode",
        "int8-ptq",
        "--weights",
        "random",
        "--input-size",
        "32",
        "--num-classes",
        "4",
        "--calibration-images",
        "4",
    ]
    command = (*BUNDLER, "bundle", "resnet18", "--target", str(profile), *small, "--seed", "{seed}", "--output", str(output))
    return Subject(output, output / "attacked" / "resnet18", command, {"OMP_NUM_THREADS": "1"}, builds=True)


def installing_subject(folder: Path) -> Subject:
    output = folder / "dist"
    directory = output / "resnet18"
    return Subject(output, directory, (sys.executable, "-c", INSTALLING, str(directory), "{seed}"), {}, builds=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    parser.add_argument("--installing", action="store_true", help="attack installations only")
    chosen = parser.parse_args()
    moments = random.Random(chosen.seed)  # noqa: S311
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="edge-bundler-attack-") as name:
        subject = (installing_subject if chosen.installing else build_subject)(Path(name))
        start = time.monotonic()
        if chosen.installing:
            earliest, latest = 0.0, 0.4
        else:
            first = subject.start(0)
            _, errors = first.communicate()
            if first.returncode != 0:
                sys.exit(f"the first build failed: {errors}")
            earliest, latest = 0.5, 1.1 * (time.monotonic() - start)
            sys.stdout.write(f"a build without a signal took {latest / 1.1:.1f} s\n")
        if chosen.installing:
            attack(subject, 0, signal.SIGTERM, latest, Counts())
        for seed in range(1, chosen.tries + 1):
            attack(subject, seed, SIGNALS[seed % len(SIGNALS)], moments.uniform(earliest, latest), counts)
            sys.stdout.write(f"{seed}/{chosen.tries}: {len(counts.problems)} problems\n")
            sys.stdout.flush()
    sys.stdout.write("\n".join(counts.lines()) + "\n")
    return 1 if counts.problems else 0


if __name__ == "__main__":
    sys.exit(main())
