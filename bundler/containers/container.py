"""Running a command in a container: without network or privileges, bounded in time and memory, and always removed."""

from __future__ import annotations

import re
import signal
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from docker.errors import APIError, NotFound
from docker.types import CancellableStream, LogConfig

from bundler import console
from bundler.containers.emulation import Launch
from bundler.containers.engine import ENGINE_FAILURES, Engine, engine_errors
from bundler.errors import ContainerTimeoutError, EmulatorError

__all__ = ["LABEL", "RunResult", "run_container"]

LABEL = "edge-bundler"  # `docker ps --all --filter label=edge-bundler=run` finds what a killed program left behind

_PROCESSES = 512  # a thread for each core of a large server, and the emulator's own
# The last words of runc and of the init process about a program of a foreign architecture. The latter says "No such file":
# it gives what the kernel refuses to a shell, and there is none.
_NOT_EXECUTED = (1, 126, 127)
_REFUSAL = re.compile(r"exec \S+( failed)?: (exec format error|no such file or directory)\s*\Z", re.IGNORECASE)
_SIGNALLED = 128
_MEANINGS = {
    signal.SIGSEGV: "a crash, or an emulator that is too old",
    signal.SIGILL: "an instruction that this CPU does not have",
    signal.SIGABRT: "the program gave up, its last lines say why",
    signal.SIGKILL: "killed from outside",
}


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a command ended; `death` says in words which signal ended it, and is None where it exited by itself."""

    exit_code: int
    stdout: str
    stderr: str
    death: str | None


def run_container(
    engine: Engine,
    reference: str,
    command: Sequence[str],
    *,
    launch: Launch,
    timeout_seconds: float,
    memory_mib: int,
    labels: Mapping[str, str],
    on_stderr_line: Callable[[str], None],
    script: str | None = None,
) -> RunResult:
    """Run the image's entry point with `command` as arguments, and hand each line of stderr over while it runs.

    With `script`, a path in the container, its Python runs that instead of the runner. The container is removed in any case,
    also when this program is interrupted.

    Raises:
        ContainerTimeoutError: it ran longer than `timeout_seconds` and was killed.
        EmulatorError: the engine cannot execute programs of the image's architecture.
        EngineError: the engine failed half-way.
    """
    name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
    with _removed_afterwards(engine, name), engine_errors(f"running {reference}"):
        _create(engine, name, reference, command, launch=launch, memory_mib=memory_mib, labels=labels, script=script)
        _copy_in(engine, name, launch.programs)
        _start(engine, name, reference)
        _follow(engine, name, timeout_seconds, on_stderr_line)
        return _result(engine, name, reference, memory_mib)


@contextmanager
def _removed_afterwards(engine: Engine, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        try:
            engine.client.api.remove_container(name, force=True, v=True)
        except NotFound:
            pass  # it was never created
        except ENGINE_FAILURES as error:
            console.warn(f"the container {name} could not be removed ({error}); `docker rm --force {name}` does it")


def _create(
    engine: Engine,
    name: str,
    reference: str,
    command: Sequence[str],
    *,
    launch: Launch,
    memory_mib: int,
    labels: Mapping[str, str],
    script: str | None,
) -> None:
    api = engine.client.api
    image = engine.client.images.get(reference).attrs
    program = list(image["Config"]["Entrypoint"] or ())
    if script is not None:
        program[-1] = script
    # Copying programs in needs a writable root file system; there is no mount, since the engine may be on another machine.
    limits = api.create_host_config(
        init=True,  # a crashing emulator that is process 1 waits for ever for its own signal
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        pids_limit=_PROCESSES,
        mem_limit=f"{memory_mib}m",
        memswap_limit=f"{memory_mib}m",
        read_only=not launch.programs,
        tmpfs={"/tmp": "rw,nosuid,nodev,noexec,size=64m"},  # noqa: S108  in the container
        log_config=LogConfig(type=LogConfig.types.JSON),
    )
    api.create_container(
        reference,
        name=name,
        entrypoint=[*launch.prefix, *program, *command],
        command=[],
        environment=dict(launch.environment),
        labels={**labels, LABEL: "run"},
        platform=f"{image['Os']}/{image['Architecture']}",
        host_config=limits,
    )


def _copy_in(engine: Engine, name: str, programs: Mapping[str, Path]) -> None:
    for inside, program in programs.items():
        data = program.read_bytes()
        entry = tarfile.TarInfo(inside.lstrip("/"))
        entry.mode, entry.size = 0o755, len(data)
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(entry, BytesIO(data))
        engine.client.api.put_archive(name, "/", archive.getvalue())


def _start(engine: Engine, name: str, reference: str) -> None:
    try:
        engine.client.api.start(name)
    except APIError as error:
        if "exec format error" in str(error.explanation):
            raise _cannot_execute(reference, str(error.explanation)) from error
        raise


def _follow(engine: Engine, name: str, timeout_seconds: float, on_stderr_line: Callable[[str], None]) -> None:
    """Read stderr until the container ends, or until its time is over."""
    stream = engine.client.api.logs(name, stdout=False, stderr=True, stream=True, follow=True)
    expired = threading.Event()
    watch = threading.Timer(timeout_seconds, _kill, args=(engine, name, stream, expired))
    watch.daemon = True
    watch.start()
    try:
        for line in _lines(stream):
            on_stderr_line(line)
        engine.client.api.wait(name)
    finally:
        watch.cancel()
        stream.close()
        # Closing the stream only shuts its socket down.
        stream._response.close()  # type: ignore[attr-defined]  # noqa: SLF001
    if expired.is_set():
        raise ContainerTimeoutError(timeout_seconds)


def _kill(engine: Engine, name: str, stream: CancellableStream[bytes], expired: threading.Event) -> None:
    expired.set()
    try:
        engine.client.api.kill(name)
    except ENGINE_FAILURES:
        stream.close()  # the reader wakes up; the removal says what is wrong with the engine


def _lines(chunks: CancellableStream[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")


def _result(engine: Engine, name: str, reference: str, memory_mib: int) -> RunResult:
    state = engine.client.api.inspect_container(name)["State"]
    stdout = engine.client.api.logs(name, stdout=True, stderr=False).decode(errors="replace")
    stderr = engine.client.api.logs(name, stdout=False, stderr=True).decode(errors="replace")
    exit_code = int(state["ExitCode"])
    refusal = _REFUSAL.search(stderr) if exit_code in _NOT_EXECUTED else None
    if refusal:
        raise _cannot_execute(reference, refusal[0])
    return RunResult(
        exit_code=exit_code,
        stdout=stdout,
        stderr=stderr,
        death=f"out of memory: it needed more than {memory_mib} MiB" if state["OOMKilled"] else describe_death(exit_code),
    )


def describe_death(exit_code: int) -> str | None:
    """Say which signal an exit code of 128 and more stands for; None for a program that ended by itself."""
    try:
        ended_by = signal.Signals(exit_code - _SIGNALLED)
    except ValueError:
        return None
    meaning = _MEANINGS.get(ended_by)
    return f"ended by signal {ended_by.value} ({ended_by.name}{f': {meaning}' if meaning else ''})"


def _cannot_execute(reference: str, reason: str) -> EmulatorError:
    return EmulatorError(
        f"the container engine cannot execute the programs in {reference}: {reason.strip()}",
        next_step="If the image is for another architecture, `make engine` (docker/setup-engine.sh) registers its emulator.",
    )
