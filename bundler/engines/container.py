"""Run a command in a container: no network, no privileges, limits on time, memory and processes, and always removed."""

from __future__ import annotations

import queue
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path

from docker.errors import APIError, NotFound
from docker.types import LogConfig

from bundler import console
from bundler.engines.container_engine import ENGINE_FAILURES, Engine, EngineSilentError, call_engine, engine_errors, next_from
from bundler.engines.emulation import Launch
from bundler.engines.owner import LABEL, OWNER_LABEL, Owner
from bundler.errors import ContainerTimeoutError, EmulatorError
from bundler.files.tar_files import Member, write_tar
from bundler.interruption import defer_signals

__all__ = ["ContainerRequest", "RunResult", "run_container"]

_CREATE_SECONDS = 5.0  # after an interruption, for a request that creates a container to end, so that it can be removed
_COPY_SECONDS = 300.0
_READER_SECONDS = 5.0
_REMOVE_SECONDS = 30.0
_PROCESSES = 512  # processes and threads: one thread per core of a large server, and those of the emulator
# The last line of runc and of the init process for a program of a foreign architecture. The init process reports "No such
# file": it passes what the kernel refuses to a shell, and the image has none.
_NOT_EXECUTED = (1, 126, 127)
_REFUSAL = re.compile(r"exec \S+( failed)?: (exec format error|no such file or directory)\s*\Z", re.IGNORECASE)
_SIGNALLED = 128
_MEANINGS = {
    signal.SIGSEGV: "segmentation fault; possibly an emulator that is too old",
    signal.SIGILL: "illegal instruction: this CPU does not support it",
    signal.SIGABRT: "the program aborted; the last lines of its output give the reason",
    signal.SIGKILL: "killed by another process",
}


@dataclass(frozen=True, kw_only=True)
class ContainerRequest:
    """A command in a container of an image.

    Attributes:
        image: the image's id or reference.
        command: arguments of the image's entry point.
        launch: how programs of the image's architecture are executed as the wanted CPU.
        timeout_seconds: after which the container is killed.
        memory_mib: limit on memory, in MiB; there is no swap beyond it.
        labels: of the container, beside those by which `bundler doctor --clean` finds it.
    """

    image: str
    command: Sequence[str]
    launch: Launch
    timeout_seconds: float
    memory_mib: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a command ended; `death` describes the signal that ended it, and is None if it exited by itself."""

    exit_code: int
    stdout: str
    stderr: str
    death: str | None


def run_container(engine: Engine, request: ContainerRequest, *, on_stderr_line: Callable[[str], None]) -> RunResult:
    """Run a command in a new container and call `on_stderr_line` with each line of its stderr while it runs.

    The container is always removed, also when this process is interrupted.

    Raises:
        ContainerTimeoutError: it ran longer than `timeout_seconds` and was killed.
        EmulatorError: the engine cannot execute programs of the image's architecture.
        EngineError: the engine failed.
    """
    name = f"{LABEL}-{uuid.uuid4().hex[:12]}"
    with _removed_afterwards(engine, name), engine_errors(f"running {request.image}"):
        _create(engine, name, request)
        _copy_in(engine, name, request.launch.programs)
        _start(engine, name, request.image)
        _follow(engine, name, request.timeout_seconds, on_stderr_line)
        return _result(engine, name, request)


@contextmanager
def _removed_afterwards(engine: Engine, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        with defer_signals():
            _remove(engine, name)


def _remove(engine: Engine, name: str) -> None:
    try:
        if not engine.answers():
            msg = "the engine does not answer"
            raise EngineSilentError(msg)
        with suppress(NotFound):  # it was not created
            call_engine(engine, lambda: engine.client.api.remove_container(name, force=True, v=True), seconds=_REMOVE_SECONDS)
    except ENGINE_FAILURES as error:
        console.warn(f"the container {name} could not be removed ({error}); remove it with `docker rm --force {name}`")


def _create(engine: Engine, name: str, request: ContainerRequest) -> None:
    api = engine.client.api
    image = call_engine(engine, lambda: engine.client.images.get(request.image)).attrs
    program = list(image["Config"]["Entrypoint"] or ())
    # Programs are copied, which needs a writable root file system: a mount does not reach an engine on another machine.
    limits = api.create_host_config(
        init=True,  # as process 1, an emulator that crashes would wait for its own signal without end
        network_mode="none",
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        pids_limit=_PROCESSES,
        mem_limit=f"{request.memory_mib}m",
        memswap_limit=f"{request.memory_mib}m",
        read_only=not request.launch.programs,
        tmpfs={"/tmp": "rw,nosuid,nodev,noexec,size=64m"},  # noqa: S108  in the container
        log_config=LogConfig(type=LogConfig.types.JSON),
    )
    call_engine(
        engine,
        lambda: api.create_container(
            request.image,
            name=name,
            entrypoint=[*request.launch.prefix, *program, *request.command],
            command=[],
            environment=dict(request.launch.environment),
            labels={**request.labels, LABEL: "run", OWNER_LABEL: str(Owner.current())},
            platform=f"{image['Os']}/{image['Architecture']}",
            host_config=limits,
        ),
        finish_seconds=_CREATE_SECONDS,
    )


def _copy_in(engine: Engine, name: str, programs: Mapping[str, Path]) -> None:
    for inside, program in programs.items():
        archive = BytesIO()
        write_tar(archive, [Member(name=inside.lstrip("/"), mode=0o755, source=program)], tar_format="gnu")
        content = archive.getvalue()
        call_engine(engine, partial(engine.client.api.put_archive, name, "/", content), seconds=_COPY_SECONDS)


def _start(engine: Engine, name: str, reference: str) -> None:
    try:
        call_engine(engine, lambda: engine.client.api.start(name))
    except APIError as error:
        if "exec format error" in str(error.explanation):
            raise _cannot_execute(reference, str(error.explanation)) from error
        raise


def _follow(engine: Engine, name: str, timeout_seconds: float, on_stderr_line: Callable[[str], None]) -> None:
    """Pass on the lines of stderr until the container ends or its time limit is reached."""
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
        call_engine(engine, lambda: engine.client.api.kill(name), seconds=_REMOVE_SECONDS)
        raise ContainerTimeoutError(timeout_seconds) from error


@contextmanager
def _stderr(engine: Engine, name: str) -> Iterator[queue.SimpleQueue[str | BaseException | None]]:
    """Yield a queue of the stderr lines, then None when the container has ended, or the exception that occurred."""
    lines: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    stream = call_engine(engine, lambda: engine.client.api.logs(name, stdout=False, stderr=True, stream=True, follow=True))

    def read() -> None:
        try:
            for line in _lines(stream):
                lines.put(line)
            engine.client.api.wait(name)  # a program may close its stderr and continue
            lines.put(None)
        except BaseException as error:  # noqa: BLE001  raised by the thread that waits
            lines.put(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield lines
    finally:
        with defer_signals():
            stream.close()  # shuts down the socket, which ends the read of the other thread
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


def _result(engine: Engine, name: str, request: ContainerRequest) -> RunResult:
    api = engine.client.api
    state = call_engine(engine, lambda: api.inspect_container(name))["State"]
    stdout = call_engine(engine, lambda: api.logs(name, stdout=True, stderr=False)).decode(errors="replace")
    stderr = call_engine(engine, lambda: api.logs(name, stdout=False, stderr=True)).decode(errors="replace")
    exit_code = int(state["ExitCode"])
    refusal = _REFUSAL.search(stderr) if exit_code in _NOT_EXECUTED else None
    if refusal:
        raise _cannot_execute(request.image, refusal[0])
    return RunResult(
        exit_code=exit_code,
        stdout=stdout,
        stderr=stderr,
        death=f"out of memory (limit: {request.memory_mib} MiB)" if state["OOMKilled"] else describe_death(exit_code),
    )


def describe_death(exit_code: int) -> str | None:
    """Describe the signal in an exit code above 128; None for a program that exited by itself."""
    try:
        ended_by = signal.Signals(exit_code - _SIGNALLED)
    except ValueError:
        return None
    meaning = _MEANINGS.get(ended_by)
    return f"ended by signal {ended_by.value} ({ended_by.name}{f': {meaning}' if meaning else ''})"


def _cannot_execute(reference: str, reason: str) -> EmulatorError:
    return EmulatorError(
        f"the container engine cannot execute the programs in {reference}: {reason.strip()}",
        next_step="If the image is for another architecture, `make engine` (docker/setup-engine.sh) registers QEMU for it.",
    )
