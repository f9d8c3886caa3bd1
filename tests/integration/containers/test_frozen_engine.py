"""An engine that stops answering at each request of a run: a proxy process of the real engine that stops itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bundler.engines import container_engine as engine_module
from bundler.engines.container import ContainerRequest, run_container
from bundler.engines.container_engine import Engine, connect
from bundler.engines.emulation import Launch
from bundler.errors import EngineError, EngineUnavailableError
from bundler.images.device_image import DeviceImage, ImageArchive, loaded_image

pytestmark = [
    pytest.mark.engine,
    # What a request that was given up leaves open is closed when its thread ends, after the test.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

PROXY = """
import os, selectors, signal, socket, sys, threading
path, target, word = sys.argv[1:]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
def pump(source, sink, watched):
    try:
        while data := source.recv(65536):
            if watched and word.encode() in data:
                os.kill(os.getpid(), signal.SIGSTOP)
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass
print("ready", flush=True)
while True:
    client, _ = listener.accept()
    server = socket.socket(socket.AF_UNIX)
    server.connect(target)
    threading.Thread(target=pump, args=(client, server, True), daemon=True).start()
    threading.Thread(target=pump, args=(server, client, False), daemon=True).start()
"""
SLEEP = "import sys, time; print('awake', file=sys.stderr, flush=True); time.sleep(600)"

Freezing = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def frozen_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Freezing]:
    """Start a proxy that stops when a request contains the given word, and set DOCKER_HOST to it."""
    target = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    if not Path(target).is_socket():
        pytest.skip("the engine is not behind a socket of this machine")
    started: list[subprocess.Popen[str]] = []

    def start(word: str) -> subprocess.Popen[str]:
        path = tmp_path / "proxy.sock"
        proxy = subprocess.Popen([sys.executable, "-c", PROXY, str(path), target, word], stdout=subprocess.PIPE, text=True)
        started.append(proxy)
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == "ready\n"
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        return proxy

    yield start
    for proxy in started:
        proxy.kill()
        proxy.communicate()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CONNECT_SECONDS", "_IDLE_SECONDS", "_PING_SECONDS"):
        monkeypatch.setattr(engine_module, name, 1)


@pytest.fixture
def token(engine: Engine) -> Iterator[str]:
    token = uuid.uuid4().hex
    yield token
    for container in engine.client.api.containers(all=True, filters={"label": [f"edge-bundler-test={token}"]}):
        engine.client.api.remove_container(container["Id"], force=True)


@pytest.mark.usefixtures("impatient")
def test_an_engine_that_is_frozen_from_the_start_is_no_engine(frozen_at: Freezing) -> None:
    frozen_at("/version")
    start = time.monotonic()
    with pytest.raises(EngineUnavailableError, match="no container engine answers"), connect():
        pass
    assert time.monotonic() - start < 10


@pytest.mark.usefixtures("impatient")
def test_a_freeze_while_an_image_is_loaded_is_an_engine_error(frozen_at: Freezing, amd64_archive: ImageArchive) -> None:
    frozen_at("/images/load")
    with connect() as engine:
        start = time.monotonic()
        with pytest.raises(EngineError, match="does not answer while loading") as caught, loaded_image(engine, amd64_archive):
            pass
    assert time.monotonic() - start < 30
    assert "systemctl restart docker" in caught.value.next_step
    assert caught.value.exit_code == 9


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("word", ["/json", "/containers/create", "/start", "follow=1", "awake", "DELETE"])
def test_a_freeze_at_any_request_of_a_run_is_an_engine_error(
    word: str, frozen_at: Freezing, amd64_image: DeviceImage, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = frozen_at(word)
    text = "pass" if word == "DELETE" else SLEEP

    def on_line(_line: str) -> None:
        os.kill(proxy.pid, signal.SIGSTOP)

    start = time.monotonic()
    with connect() as engine:
        request = ContainerRequest(
            image=amd64_image.id,
            command=["selftest", text],
            launch=Launch(runner="native"),
            timeout_seconds=60,
            memory_mib=512,
            labels={"edge-bundler-test": token},
        )
        run = partial(run_container, engine, request, on_stderr_line=on_line)
        if word == "DELETE":
            run()  # the result is there; what cannot be removed is named
        else:
            with pytest.raises(EngineError, match="does not answer while running"):
                run()
    assert time.monotonic() - start < 45
    assert "docker rm --force edge-bundler-" in capsys.readouterr().err


def test_ctrl_c_ends_the_waiting_for_a_frozen_engine(frozen_at: Freezing, amd64_image: DeviceImage, token: str) -> None:
    proxy = frozen_at("no such word")
    program = textwrap.dedent(f"""
        from bundler.engines import container_engine as module
        from bundler.engines.container import ContainerRequest, run_container
        from bundler.engines.emulation import Launch
        from bundler.engines.container_engine import connect
        from bundler.interruption import install_signal_handlers
        module._PING_SECONDS = 1
        install_signal_handlers()
        with connect() as engine:
            request = ContainerRequest(image={amd64_image.id!r}, command=["selftest", {SLEEP!r}],
                                       launch=Launch(runner="native"), timeout_seconds=300, memory_mib=512,
                                       labels={{"edge-bundler-test": {token!r}}})
            run_container(engine, request, on_stderr_line=lambda line: print(line, flush=True))
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "awake\n"
        proxy.send_signal(signal.SIGSTOP)
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        _, stderr = process.communicate(timeout=30)
    assert "InterruptedBySignal" in stderr.splitlines()[-1]
    assert "docker rm --force edge-bundler-" in stderr
