"""The container engine: finding it, and turning its failures into ours."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import requests
import urllib3.exceptions
from docker.client import DockerClient, from_env
from docker.context import ContextAPI
from docker.errors import DockerException

from bundler.architecture import Architecture
from bundler.errors import EngineError, EngineUnavailableError

__all__ = ["ENGINE_FAILURES", "Engine", "connect", "engine_errors"]

_CONNECT_SECONDS = 10
_ANSWER_SECONDS = 600  # loading an image onto a slow disk is one request

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
    """An engine that answered; `shares_kernel` says that it runs on this machine and not in another one or a virtual one."""

    client: DockerClient
    name: str
    version: str
    architecture: Architecture
    shares_kernel: bool


@contextmanager
def connect() -> Iterator[Engine]:
    """Connect to the engine of DOCKER_HOST or the current Docker context.

    Raises:
        EngineUnavailableError: none answers.
        EngineError: it runs on an architecture that is none of ours.
    """
    address = _address()
    try:
        _knock(address)
        client = from_env(timeout=_CONNECT_SECONDS, use_ssh_client=True)
    except (*ENGINE_FAILURES, OSError) as error:
        raise _unavailable(address, error) from error
    with closing(client):
        try:
            engine = _identify(client)
        except ENGINE_FAILURES as error:
            raise _unavailable(address, error) from error
        client.api.timeout = _ANSWER_SECONDS
        yield engine


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


def _identify(client: DockerClient) -> Engine:
    version = client.version()
    try:
        architecture = Architecture.parse(version["Arch"])
    except ValueError as error:
        msg = f"the container engine's architecture {error}"
        raise EngineError(msg, next_step="Use an engine on one of these.") from error
    components = [str(component.get("Name", "")) for component in version.get("Components") or ()]
    return Engine(
        client=client,
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
