from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from docker.context import ContextAPI
from docker.errors import APIError

from bundler.architecture import Architecture
from bundler.engines.container_engine import connect, engine_errors
from bundler.errors import EngineError, EngineUnavailableError


@pytest.fixture
def dying_engine(tmp_path: Path) -> Iterator[str]:
    """A socket that answers `version` like an engine, and closes the connection of every other request."""
    path = tmp_path / "engine.sock"
    version = {
        "ApiVersion": "1.41",
        "Version": "20.10.24",
        "Arch": "arm64",
        "KernelVersion": "0",
        "Components": [{"Name": "Engine"}],
    }
    body = json.dumps(version).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                request = connection.recv(65536)
                if b"/version" in request:
                    connection.sendall(head.encode() + body)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"unix://{path}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_without_an_engine_the_error_has_its_address_and_a_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    with (
        pytest.raises(EngineUnavailableError, match=r"no container engine answers at unix:.*/nobody\.sock") as caught,
        connect(),
    ):
        pass
    assert "No such file" in caught.value.message
    assert "make engine" in caught.value.next_step


def test_a_context_that_does_not_exist_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("DOCKER_CONTEXT", "pi-in-the-field")
    with pytest.raises(EngineUnavailableError, match="pi-in-the-field") as caught, connect():
        pass
    assert "docker context ls" in caught.value.next_step


def test_the_current_context_is_used(dying_engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    (tmp_path / "config.json").write_text("{}")  # without it the SDK writes the context into the current folder
    monkeypatch.setenv("DOCKER_CONTEXT", "pi")
    ContextAPI.create_context("pi", host=dying_engine)
    with connect() as engine:
        assert engine.architecture is Architecture.ARM64


def test_an_engine_is_identified_and_its_end_is_an_engine_error(dying_engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", dying_engine)
    with connect() as engine:
        assert engine.architecture is Architecture.ARM64
        assert (engine.name, engine.version) == ("Docker", "20.10.24")
        assert not engine.shares_kernel
        with (
            pytest.raises(EngineError, match="the container engine failed while loading an image"),
            engine_errors("loading an image"),
        ):
            engine.client.images.load(b"data")


def test_a_full_disk_of_the_engine_has_its_own_next_step() -> None:
    with pytest.raises(EngineError) as caught, engine_errors("loading x"):
        raise APIError("500 Server Error", explanation="write /layer.tar: no space left on device")
    assert "no space left on device" in caught.value.message
    assert "docker system prune" in caught.value.next_step


@pytest.mark.parametrize("failure", [requests.ConnectionError("gone"), ConnectionResetError("gone"), TimeoutError("gone")])
def test_a_broken_connection_is_an_engine_error(failure: Exception) -> None:
    with pytest.raises(EngineError, match="gone") as caught, engine_errors("waiting"):
        raise failure
    assert caught.value.__cause__ is failure


def test_other_exceptions_are_raised_unchanged() -> None:
    with pytest.raises(KeyError), engine_errors("waiting"):
        raise KeyError("name")
