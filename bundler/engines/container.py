"""Running a command in a container: without network or privileges, bounded in time and memory, and always removed."""

from __future__ import annotations

import queue
import re
import signal
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path

from docker.errors import APIError, NotFound
from docker.types import LogConfig

from bundler import console
from bundler.engines.container_engine import ENGINE_FAILURES, Engine, EngineSilentError, asked, engine_errors, next_from
from bundler.engines.emulation import Launch
from bundler.engines.owner import LABEL, OWNER_LABEL, Owner
from bundler.errors import ContainerTimeoutError, EmulatorError
from bundler.interruption import shielded

__all__ = ["RunResult", "run_container"]

_CREATE_SECONDS = 5.0  # that an interruption waits for a container that is being created, so that it can be removed
_COPY_SECONDS = 300.0
_READER_SECONDS = 5.0
_REMOVE_SECONDS = 30.0
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
) -> RunResult:
    """Run the image's entry point with `command` as arguments, and hand each line of stderr over while it runs.

    The container is removed in any case, also when this program is interrupted.

    Raises:
        ContainerTimeoutError: it ran longer than `timeout_seconds` and was killed.
        EmulatorError: the engine cannot execute programs of the image's architecture.
        EngineError: the engine failed half-way.
    """
    name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
    with _removed_afterwards(engine, name), engine_errors(f"running {reference}"):
        _create(engine, name, reference, command, launch=launch, memory_mib=memory_mib, labels=labels)
        _copy_in(engine, name, launch.programs)
        _start(engine, name, reference)
        _follow(engine, name, timeout_seconds, on_stderr_line)
        return _result(engine, name, reference, memory_mib)


@contextmanager
def _removed_afterwards(engine: Engine, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        with shielded():
            _remove(engine, name)


def _remove(engine: Engine, name: str) -> None:
    try:
        if not engine.answers():
            msg = "the engine does not answer"
            raise EngineSilentError(msg)
        with suppress(NotFound):  # it was never created
            asked(engine, lambda: engine.client.api.remove_container(name, force=True, v=True), seconds=_REMOVE_SECONDS)
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
) -> None:
    api = engine.client.api
    image = asked(engine, lambda: engine.client.images.get(reference)).attrs
    program = list(image["Config"]["Entrypoint"] or ())
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
    asked(
        engine,
        lambda: api.create_container(
            reference,
            name=name,
            entrypoint=[*launch.prefix, *program, *command],
            command=[],
            environment=dict(launch.environment),
            labels={**labels, LABEL: "run", OWNER_LABEL: str(Owner.current())},
            platform=f"{image['Os']}/{image['Architecture']}",
            host_config=limits,
        ),
        finish_seconds=_CREATE_SECONDS,
    )


def _copy_in(engine: Engine, name: str, programs: Mapping[str, Path]) -> None:
    for inside, program in programs.items():
        data = program.read_bytes()
        entry = tarfile.TarInfo(inside.lstrip("/"))
        entry.mode, entry.size = 0o755, len(data)
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(entry, BytesIO(data))
        content = archive.getvalue()
        asked(engine, partial(engine.client.api.put_archive, name, "/", content), seconds=_COPY_SECONDS)


def _start(engine: Engine, name: str, reference: str) -> None:
    try:
        asked(engine, lambda: engine.client.api.start(name))
    except APIError as error:
        if "exec format error" in str(error.explanation):
            raise _cannot_execute(reference, str(error.explanation)) from error
        raise


def _follow(engine: Engine, name: str, timeout_seconds: float, on_stderr_line: Callable[[str], None]) -> None:
    """Hand the lines of stderr over until the container ends, or until its time is over."""
    until = time.monotonic() + timeout_seconds
    try:
        with _stderr(engine, name) as lines:
            while (line := next_from(engine, lines, until=until)) is not None:
                if isinstance(line, BaseException):
                    raise line
                on_stderr_line(line)
    except EngineSilentError:
        raise
    except TimeoutError as error:
        asked(engine, lambda: engine.client.api.kill(name), seconds=_REMOVE_SECONDS)
        raise ContainerTimeoutError(timeout_seconds) from error


@contextmanager
def _stderr(engine: Engine, name: str) -> Iterator[queue.SimpleQueue[str | BaseException | None]]:
    """Give the lines of a container's stderr as they come, None when the container has ended, or what went wrong."""
    lines: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    stream = asked(engine, lambda: engine.client.api.logs(name, stdout=False, stderr=True, stream=True, follow=True))

    def read() -> None:
        try:
            for line in _lines(stream):
                lines.put(line)
            engine.client.api.wait(name)  # a program may close its stderr and go on
            lines.put(None)
        except BaseException as error:  # noqa: BLE001  the one who waits raises it
            lines.put(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield lines
    finally:
        with shielded():
            stream.close()  # shuts the socket down, which wakes the reader up
            reader.join(_READER_SECONDS)
            stream._response.close()  # type: ignore[attr-defined]  # noqa: SLF001


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *complete, rest = (rest + chunk).split(b"\n")
        for line in complete:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")


def _result(engine: Engine, name: str, reference: str, memory_mib: int) -> RunResult:
    api = engine.client.api
    state = asked(engine, lambda: api.inspect_container(name))["State"]
    stdout = asked(engine, lambda: api.logs(name, stdout=True, stderr=False)).decode(errors="replace")
    stderr = asked(engine, lambda: api.logs(name, stdout=False, stderr=True)).decode(errors="replace")
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
