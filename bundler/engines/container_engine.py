"""The container engine: finding it, waiting for it no longer than it answers, and turning its failures into ours."""

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

__all__ = ["ANSWER_SECONDS", "ENGINE_FAILURES", "Engine", "EngineSilentError", "asked", "connect", "engine_errors", "next_from"]

ANSWER_SECONDS = 120.0  # for a request that is small, on a machine that is busy

_CONNECT_SECONDS = 10
_CONNECT_SSH_SECONDS = 60  # with the keys' exchange
_LONGEST_SECONDS = 3600  # without a byte of a long request; the pings say earlier that the engine has stopped
_IDLE_SECONDS = 10.0  # of a request before the engine is asked whether it is still there
_PING_SECONDS = 10.0
_MISSED_PINGS = 2

_RESTART = "Restart it (`systemctl restart docker`); then `bundler doctor --clean` removes what was left in it."


class EngineSilentError(TimeoutError):
    """An engine that does not answer any more; `engine_errors` makes an EngineError of it."""


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
    """An engine that answered; `shares_kernel` says that it runs on this machine and not in another one or a virtual one.

    `pulse` is a second connection, on which it is asked whether it still answers while a request on `client` takes long.
    `silent` is set when it did not.
    """

    client: DockerClient
    pulse: DockerClient
    name: str
    version: str
    architecture: Architecture
    shares_kernel: bool
    silent: threading.Event = field(default_factory=threading.Event, compare=False)

    def answers(self) -> bool:
        """Ping it, for 10 seconds at most."""
        try:
            _bounded(self.pulse.ping, _PING_SECONDS + 1)  # an ssh connection knows no time limit of its own
        except (*ENGINE_FAILURES, OSError):
            self.silent.set()
            return False
        self.silent.clear()
        return True


Answer = TypeVar("Answer")


def asked(
    engine: Engine, request: Callable[[], Answer], *, seconds: float = ANSWER_SECONDS, finish_seconds: float = 0.0
) -> Answer:
    """Make a request and wait for its answer, no longer than `seconds` and only while the engine answers pings.

    An interruption ends the waiting at once; with `finish_seconds`, the request may take so long to end by itself first.

    Raises:
        EngineSilentError: there was no answer in time. What the request itself raises comes through.
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
    """Return the next of the answers that a thread receives from the engine.

    Raises:
        TimeoutError: there was none until that time of the monotonic clock.
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
        except BaseException as error:  # noqa: BLE001  the one who waits raises it
            answers.put(error)

    worker = threading.Thread(target=run, daemon=True)  # one that hangs must not keep the process from ending
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
        EngineUnavailableError: none answers.
        EngineError: it runs on an architecture that is none of ours.
    """
    address = _address()
    patience = _CONNECT_SSH_SECONDS if address.startswith("ssh://") else 2 * _CONNECT_SECONDS
    try:
        _knock(address)
        pulse = _bounded(lambda: from_env(timeout=_CONNECT_SECONDS, use_ssh_client=True), patience)
    except (*ENGINE_FAILURES, OSError) as error:
        raise _unavailable(address, error) from error
    with closing(pulse):
        try:
            version = _bounded(pulse.version, patience)
        except ENGINE_FAILURES as error:
            raise _unavailable(address, error) from error
        with closing(
            _bounded(lambda: from_env(timeout=_LONGEST_SECONDS, version=pulse.api.api_version, use_ssh_client=True), patience)
        ) as client:
            yield _identify(version, client, pulse)


@contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn every failure of the engine and of the connection to it into an EngineError.

    `doing` completes the sentence "the container engine failed while …".

    Raises:
        EngineError: with the engine's own words.
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
    """Return where the engine is asked for: DOCKER_HOST, or else the current Docker context.

    Raises:
        EngineUnavailableError: that context does not exist; the SDK would silently take the engine of this machine instead.
    """
    host = os.environ.get("DOCKER_HOST")
    if host:
        return host
    name = os.environ.get("DOCKER_CONTEXT")
    context = ContextAPI.get_context(name)
    if context is None:
        msg = f"there is no Docker context {name or 'as the Docker configuration names'}"
        raise EngineUnavailableError(msg, next_step="`docker context ls` lists them; `docker context use default` goes back.")
    return str(context.Host)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens behind a local socket: the SDK says it at length, and leaves its own socket open."""
    _, local, path = address.partition("unix://")
    if local:
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(_CONNECT_SECONDS)
            door.connect(path)


def _identify(version: Mapping[str, Any], client: DockerClient, pulse: DockerClient) -> Engine:
    try:
        architecture = Architecture.parse(version["Arch"])
    except ValueError as error:
        msg = f"the container engine's architecture {error}"
        raise EngineError(msg, next_step="Use an engine on one of these.") from error
    components = [str(component.get("Name", "")) for component in version.get("Components") or ()]
    return Engine(
        client=client,
        pulse=pulse,
        name="Podman" if any("Podman" in component for component in components) else "Docker",
        version=str(version["Version"]),
        architecture=architecture,
        shares_kernel=str(version.get("KernelVersion", "")) == os.uname().release,
    )


def _unavailable(address: str, error: Exception) -> EngineUnavailableError:
    return EngineUnavailableError(
        f"no container engine answers at {address.removeprefix('http+')}: {error}",
        next_step="`make engine` (docker/setup-engine.sh) sets one up, or says what to type.",
    )


def _next_step(reason: str) -> str:
    if "no space left on device" in reason:
        return "The engine's disk is full: `docker system df` shows what fills it, `docker system prune` frees some."
    return "See that it is running (`bundler doctor`), then run the same command again."
