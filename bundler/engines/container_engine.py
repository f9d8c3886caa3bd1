"""The container engine: connection, time limits on requests, and its failures as EngineError."""

from __future__ import annotations

import http.client
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests
import urllib3.exceptions
from docker.client import DockerClient, from_env
from docker.context import ContextAPI
from docker.errors import DockerException

from bundler.architecture import Architecture
from bundler.errors import EngineError, EngineUnavailableError

__all__ = [
    "ANSWER_SECONDS",
    "ENGINE_FAILURES",
    "Engine",
    "EngineSilentError",
    "call_engine",
    "connect",
    "engine_errors",
    "next_from",
]

ANSWER_SECONDS = 120.0  # for a small request on a busy machine

_CONNECT_SECONDS = 10
_CONNECT_SSH_SECONDS = 60  # includes the key exchange
_LONGEST_SECONDS = 3600  # socket timeout of long requests; pings detect earlier that the engine has stopped
_IDLE_SECONDS = 10.0  # between pings while a request has no answer
_PING_SECONDS = 10.0
_MISSED_PINGS = 2

_RESTART = "Restart it (`systemctl restart docker`), then run `bundler doctor --clean` to remove containers left in it."


class EngineSilentError(TimeoutError):
    """The engine does not answer any more; `engine_errors` raises it as EngineError."""


ENGINE_FAILURES = (
    DockerException,
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A connection to an engine.

    Attributes:
        client: for requests, which can take long.
        ping_client: a second connection, for pings while a request on `client` has no answer.
        name: `Docker` or `Podman`.
        version: the engine's own.
        architecture: of the machine that the engine runs on.
        shares_kernel: whether the engine runs on this machine, not on a remote or virtual one.
        silent: set when the engine did not answer a ping.
    """

    client: DockerClient
    ping_client: DockerClient
    name: str
    version: str
    architecture: Architecture
    shares_kernel: bool
    silent: threading.Event = field(default_factory=threading.Event, compare=False)

    def answers(self) -> bool:
        """Ping the engine and return whether it answered within 10 seconds."""
        try:
            _bounded(self.ping_client.ping, _PING_SECONDS + 1)  # ssh connections have no timeout of their own
        except (*ENGINE_FAILURES, OSError):
            self.silent.set()
            return False
        self.silent.clear()
        return True


Answer = TypeVar("Answer")


def call_engine(
    engine: Engine, request: Callable[[], Answer], *, seconds: float = ANSWER_SECONDS, finish_seconds: float = 0.0
) -> Answer:
    """Call `request` and return its result; wait at most `seconds`, and only while the engine answers pings.

    A KeyboardInterrupt ends the wait at once, or after the request has had `finish_seconds` to complete.

    Raises:
        EngineSilentError: there was no answer in time. Exceptions of `request` are raised unchanged.
    """
    if engine.silent.is_set() and not engine.answers():
        raise _silent(_PING_SECONDS)
    answers: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
    worker = _started(request, answers)
    try:
        answer = next_from(engine, answers, until=time.monotonic() + seconds)
    except EngineSilentError:
        raise
    except TimeoutError as error:
        engine.silent.set()
        raise _silent(seconds) from error
    except KeyboardInterrupt:
        worker.join(finish_seconds)
        raise
    if isinstance(answer, BaseException):
        raise answer
    return answer


def next_from(engine: Engine, answers: queue.SimpleQueue[Answer], *, until: float) -> Answer:
    """Return the next item that a thread puts into `answers`.

    Raises:
        TimeoutError: there was none until the time `until` of the monotonic clock.
        EngineSilentError: the engine does not answer pings any more.
    """
    missed, since = 0, time.monotonic()
    while (left := until - time.monotonic()) > 0:
        try:
            return answers.get(timeout=min(left, _IDLE_SECONDS))
        except queue.Empty:
            missed = 0 if engine.answers() else missed + 1
        if missed >= _MISSED_PINGS:
            raise _silent(time.monotonic() - since)
    raise TimeoutError


def _started(request: Callable[[], Answer], answers: queue.SimpleQueue[Answer | BaseException]) -> threading.Thread:
    def run() -> None:
        try:
            answers.put(request())
        except BaseException as error:  # noqa: BLE001  raised by the thread that waits
            answers.put(error)

    worker = threading.Thread(target=run, daemon=True)  # the process can end while it hangs
    worker.start()
    return worker


def _bounded(request: Callable[[], Answer], seconds: float) -> Answer:
    answers: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
    _started(request, answers)
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty as error:
        msg = f"no answer within {seconds:.0f} s"
        raise TimeoutError(msg) from error
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _silent(seconds: float) -> EngineSilentError:
    return EngineSilentError(f"no answer for {seconds:.0f} s")


@contextmanager
def connect() -> Iterator[Engine]:
    """Connect to the engine of DOCKER_HOST or the current Docker context.

    Raises:
        EngineUnavailableError: no engine answers.
        EngineError: it runs on an unsupported architecture.
    """
    address = _address()
    patience = _CONNECT_SSH_SECONDS if address.startswith("ssh://") else 2 * _CONNECT_SECONDS
    try:
        _require_listener(address)
        pings = _bounded(lambda: from_env(timeout=_CONNECT_SECONDS, use_ssh_client=True), patience)
    except (*ENGINE_FAILURES, OSError) as error:
        raise _unavailable(address, error) from error
    with closing(pings):
        try:
            version = _bounded(pings.version, patience)
        except ENGINE_FAILURES as error:
            raise _unavailable(address, error) from error
        with closing(
            _bounded(lambda: from_env(timeout=_LONGEST_SECONDS, version=pings.api.api_version, use_ssh_client=True), patience)
        ) as client:
            yield _identify(version, client, pings)


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Raise failures of the engine, and of the connection to it, as EngineError.

    Args:
        doing: completes "the container engine failed while …".

    Raises:
        EngineError: with the engine's message.
    """
    try:
        yield
    except ENGINE_FAILURES as error:
        reason = getattr(error, "explanation", None) or str(error) or type(error).__name__
        if isinstance(error, requests.Timeout | TimeoutError):
            msg = f"the container engine does not answer while {doing}: {reason}"
            raise EngineError(msg, next_step=_RESTART) from error
        msg = f"the container engine failed while {doing}: {reason}"
        raise EngineError(msg, next_step=_next_step(str(reason))) from error


def _address() -> str:
    """Return the engine's address: DOCKER_HOST, or that of the current Docker context.

    Raises:
        EngineUnavailableError: the context does not exist; the SDK would silently connect to the engine of this machine.
    """
    host = os.environ.get("DOCKER_HOST")
    if host:
        return host
    name = os.environ.get("DOCKER_CONTEXT")
    context = ContextAPI.get_context(name)
    if context is None:
        msg = f"the Docker context {name or 'of the Docker configuration'} does not exist"
        raise EngineUnavailableError(msg, next_step="`docker context ls` lists contexts, `docker context use` selects one.")
    return str(context.Host)


def _require_listener(address: str) -> None:
    """Raise OSError if no process listens on a local socket; the SDK's own message is long, and it leaves its socket open."""
    _, local, path = address.partition("unix://")
    if local:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_CONNECT_SECONDS)
            probe.connect(path)


def _identify(version: Mapping[str, Any], client: DockerClient, pings: DockerClient) -> Engine:
    try:
        architecture = Architecture.parse(version["Arch"])
    except ValueError as error:
        msg = f"unsupported architecture of the container engine: {error}"
        raise EngineError(msg, next_step="Use an engine on a machine of a supported architecture.") from error
    components = [str(component.get("Name", "")) for component in version.get("Components") or ()]
    return Engine(
        client=client,
        ping_client=pings,
        name="Podman" if any("Podman" in component for component in components) else "Docker",
        version=str(version["Version"]),
        architecture=architecture,
        shares_kernel=str(version.get("KernelVersion", "")) == os.uname().release,
    )


def _unavailable(address: str, error: Exception) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"no container engine answers at {address.removeprefix('http+')}: {error}",
        next_step="`make engine` (docker/setup-engine.sh) sets one up, or prints the commands to do so.",
    )


def _next_step(reason: str) -> str:
    if "no space left on device" in reason:
        return "The engine's disk is full: `docker system df` shows its usage, `docker system prune` frees space."
    return "Check that it is running (`bundler doctor`), then run the same command again."
