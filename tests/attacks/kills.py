"""Ends a build by signals at many moments, and counts what it left: the earlier bundle or the new one, whole, and nothing else.

    python tests/attacks/kills.py --tries 40            # a real build, with the engine where there is one
    python tests/attacks/kills.py --placing --tries 400 # nothing but the moves of a bundle and its archive into their place

Exit code 0 when every try held, 1 otherwise.
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

ROOT = Path(__file__).parents[2]
BUNDLER = (sys.executable, "-c", "from bundler.cli import main; main()")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
CODES = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGINT: 130}
END_SECONDS = 120  # in which a signalled command has to be gone

PLACING = """
import sys, tarfile
from pathlib import Path
from bundler.interruption import InterruptedBySignal, end_by_signals
from bundler.packaging.checksums import write_checksums
from bundler.packaging.placing import place, workshop
def place_once(directory, text):
    with workshop(directory) as work:
        (work / "new").mkdir()
        (work / "new" / "model.onnx").write_text(text)
        write_checksums(work / "new")
        with tarfile.open(work / "archive", "w:gz") as archive:
            archive.add(work / "new", arcname="resnet18")
        place(work / "new", directory, archive=work / "archive", archive_path=directory.with_name(f"{directory.name}.tar.gz"))
end_by_signals()
try:
    for number in range(100_000):
        place_once(Path(sys.argv[1]), f"{sys.argv[2]}-{number}")
except InterruptedBySignal as error:
    sys.exit(error.exit_code)
"""
# Light, where only the moves are attacked: the command `doctor` loads torch.
CLEANING = """
import sys
from pathlib import Path
from bundler.packaging.placing import find_leftovers, remove_leftover
for leftover in find_leftovers(Path(sys.argv[1])):
    assert remove_leftover(leftover), leftover
"""


@dataclass
class Counts:
    """What was seen, for each signal, and what did not hold."""

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def add(self, number: int, outcome: str, problems: list[str]) -> None:
        name = signal.Signals(number).name
        self.seen[name, "tries"] += 1
        self.seen[name, outcome] += 1
        self.seen[name, "held"] += not problems
        self.problems += [f"{name}: {problem}" for problem in problems]

    def lines(self) -> Iterator[str]:
        columns = ("tries", "held", "earlier", "new", "recovered")
        yield "signal   " + "".join(f"{column:>10}" for column in columns)
        for number in SIGNALS:
            name = signal.Signals(number).name
            yield f"{name:<9}" + "".join(f"{self.seen[name, column]:>10}" for column in columns)
        yield from self.problems


@dataclass(frozen=True)
class Place:
    """Where bundles are put, and the command that puts one there; `{seed}` in it makes each another one."""

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
        return subprocess.Popen(
            words,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def state(self) -> tuple[bytes, ...] | None:
        """Return the checksums in the folder and in the archive; None where one of the two is not there."""
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


def attack(place: Place, seed: int, number: int, seconds: float, counts: Counts) -> None:
    """Start the command, signal it after some time, and look at what is left: before the next command, and after it."""
    before = place.state()
    process = place.start(seed)
    problems: list[str] = []
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        if number == signal.SIGINT:  # of somebody who is impatient
            for _ in range(2):
                time.sleep(0.25)
                process.send_signal(number)
    try:
        _, errors = process.communicate(timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
        problems.append(f"it did not end within {END_SECONDS} s of the signal at {seconds:.2f} s")
    code = process.returncode
    if code not in (0, CODES[number]):
        problems.append(f"exit code {code} after {seconds:.2f} s: {errors[-500:]}")
    if re.search("Traceback|not foreseen|Exception ignored", errors):
        problems.append(f"after {seconds:.2f} s: {errors[-1500:]}")
    between = place.state()
    if number != signal.SIGKILL and (hidden := left_over(place)):
        problems.append(f"after {seconds:.2f} s it left {hidden}")
    recover(place)
    after = place.state()
    if not whole(after):
        problems.append(f"after {seconds:.2f} s, and the next command, folder and archive are not of one bundle")
    problems += clean(place, process.pid)
    if after != place.state():
        problems.append("doctor --clean changed the bundle")
    outcome = "recovered" if between != after else "earlier" if after == before else "new"
    counts.add(number, outcome, problems)


def recover(place: Place) -> None:
    """Do what every next command does first; the bundles of --placing are none that `inspect` could read."""
    program = "import sys; from pathlib import Path; from bundler.packaging.placing import recover; recover(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(place.directory)], cwd=ROOT, check=True, timeout=60)


def left_over(place: Place) -> list[str]:
    return sorted(str(path.relative_to(place.output)) for path in place.output.rglob(".*"))


def clean(place: Place, pid: int) -> list[str]:
    """Run `doctor --clean` and return what is there still."""
    if not place.builds:
        subprocess.run([sys.executable, "-c", CLEANING, str(place.output)], cwd=ROOT, check=True, timeout=60)
        return [f"the clean-up left {name}" for name in left_over(place)]
    run = place.bundler("doctor", "--clean", "--json", "--output", str(place.output))
    findings = json.loads(run.stdout) if run.stdout else [{"status": "not removed", "subject": run.stderr, "next_step": ""}]
    problems = [f"not removed: {item['subject']}: {item['next_step']}" for item in findings if item["status"] == "not removed"]
    problems += [f"doctor --clean left {name}" for name in left_over(place)]
    with suppress(EngineUnavailableError), connect() as engine:
        names = [container["Labels"].get(OWNER_LABEL, "") for container in engine.client.api.containers(all=True)]
        names += [tag for image in engine.client.api.images() for tag in image["RepoTags"] or ()]
        problems += [f"doctor --clean left {name} in the engine" for name in names if f".{pid}." in name]
    return problems


def build_place(folder: Path) -> Place:
    """A small build for this machine's own processor, so that the moments of a try are spread over all its steps."""
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
        "--calibration-pictures",
        "4",
    ]
    command = (*BUNDLER, "bundle", "resnet18", "--target", str(profile), *small, "--seed", "{seed}", "--output", str(output))
    return Place(output, output / "attacked" / "resnet18", command, {"OMP_NUM_THREADS": "1"}, builds=True)


def placing_place(folder: Path) -> Place:
    output = folder / "dist"
    directory = output / "resnet18"
    return Place(output, directory, (sys.executable, "-c", PLACING, str(directory), "{seed}"), {}, builds=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--placing", action="store_true", help="attack the moves alone, thousands of them")
    chosen = parser.parse_args()
    moments = random.Random(chosen.seed)  # noqa: S311
    counts = Counts()
    with tempfile.TemporaryDirectory(prefix="edge-bundler-attack-") as name:
        place = (placing_place if chosen.placing else build_place)(Path(name))
        start = time.monotonic()
        if chosen.placing:
            longest = 1.5
        else:
            first = place.start(0)
            _, errors = first.communicate()
            if first.returncode != 0:
                sys.exit(f"the first build failed: {errors}")
            longest = 1.1 * (time.monotonic() - start)
            sys.stdout.write(f"an undisturbed build took {longest / 1.1:.1f} s\n")
        if chosen.placing:
            attack(place, 0, signal.SIGTERM, longest, Counts())
        for seed in range(1, chosen.tries + 1):
            attack(place, seed, SIGNALS[seed % len(SIGNALS)], moments.uniform(0.5, longest), counts)
            sys.stdout.write(f"{seed}/{chosen.tries}: {len(counts.problems)} problems\n")
            sys.stdout.flush()
    sys.stdout.write("\n".join(counts.lines()) + "\n")
    return 1 if counts.problems else 0


if __name__ == "__main__":
    sys.exit(main())
