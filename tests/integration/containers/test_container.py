from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bundler.engines.container import ContainerRequest, RunResult, run_container
from bundler.engines.container_engine import Engine, connect
from bundler.engines.emulation import Launch, decide_launch
from bundler.errors import ContainerTimeoutError, EmulatorError, EngineError
from bundler.images.device_image import DeviceImage
from bundler.targets import CpuProfile, TargetProfile

pytestmark = pytest.mark.engine
Run = Callable[..., RunResult]

SLEEP = "import sys, time; print('awake', file=sys.stderr, flush=True); time.sleep(600)"
FEATURES = "import json; from numpy._core._multiarray_umath import __cpu_features__ as f; print(json.dumps(f))"


def _left_over(engine: Engine, token: str) -> list[Any]:
    labels = [f"edge-bundler-test={token}", "edge-bundler=run"]
    containers: list[Any] = engine.client.api.containers(all=True, filters={"label": labels})
    return containers


@pytest.fixture
def token() -> str:
    return uuid.uuid4().hex


def test_output_comes_back_apart_and_stderr_while_it_runs(native_run: Run) -> None:
    times: list[float] = []
    run = native_run(
        "import sys, time; print('result'); print('a', file=sys.stderr); time.sleep(1.5); print('bé', file=sys.stderr)",
        on_stderr_line=lambda _line: times.append(time.monotonic()),
    )
    assert (run.exit_code, run.stdout, run.stderr, run.death) == (0, "result\n", "a\nbé\n", None)
    assert times[1] - times[0] > 1


def test_nothing_is_lost_of_a_long_output(native_run: Run) -> None:
    run = native_run("import sys; print('x' * 3_000_000); print('y' * 300_000, file=sys.stderr); sys.exit(8)")
    assert run.exit_code == 8
    assert run.stdout == "x" * 3_000_000 + "\n"
    assert run.stderr == "y" * 300_000 + "\n"


@pytest.mark.emulation
def test_an_arm64_container_is_the_cpu_that_was_asked_for(
    arm64_engine: Engine, arm64_image: DeviceImage, arm64: TargetProfile
) -> None:
    text = f"import os; print(os.uname().machine); {FEATURES}"
    for cpu in arm64.verification.cpus:
        machine, _, answer = _run_as(arm64_engine, arm64_image, arm64, cpu, text).stdout.partition("\n")
        assert machine == "aarch64"
        features = json.loads(answer)
        assert all(features[name] for name in cpu.present), cpu.name
        assert not any(features[name] for name in cpu.absent), cpu.name


@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="needs qemu-user-static")
def test_an_amd64_container_is_the_cpu_that_was_asked_for(
    engine: Engine, amd64_image: DeviceImage, amd64: TargetProfile
) -> None:
    for cpu in amd64.verification.cpus:
        features = json.loads(_run_as(engine, amd64_image, amd64, cpu, FEATURES).stdout)
        assert all(features[name] for name in cpu.present), cpu.name
        assert not any(features[name] for name in cpu.absent), cpu.name


def _run_as(engine: Engine, image: DeviceImage, profile: TargetProfile, cpu: CpuProfile, text: str) -> RunResult:
    launch = decide_launch(engine, profile, cpu)
    assert isinstance(launch, Launch), launch
    run = run_container(
        engine,
        ContainerRequest(
            image=image.id,
            command=["selftest", text],
            launch=launch,
            timeout_seconds=120,
            memory_mib=1024,
        ),
        on_stderr_line=lambda _line: None,
    )
    assert run.exit_code == 0, run
    return run


def test_there_is_no_network_and_nothing_to_write_to_but_tmp(native_run: Run) -> None:
    run = native_run(
        textwrap.dedent("""
        import json, os, socket
        def outcome(act):
            try:
                act()
            except OSError as error:
                return type(error).__name__
        print(json.dumps({
            "interfaces": os.listdir("/sys/class/net"),
            "connect": outcome(lambda: socket.create_connection(("1.1.1.1", 53), timeout=3)) is not None,
            "bundle": outcome(lambda: open("/opt/bundle/x", "w")),
            "root": outcome(lambda: open("/x", "w")),
            "tmp": outcome(lambda: open("/tmp/x", "w").close()),
            "user": os.getuid(),
            "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapBnd"))],
            "no_new_privileges": [line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")],
        }))
        """)
    )
    found = json.loads(run.stdout)
    assert found == {
        "interfaces": ["lo"],
        "connect": True,
        "bundle": "OSError",
        "root": "OSError",
        "tmp": None,
        "user": 10001,
        "capabilities": ["0" * 16, "0" * 16],
        "no_new_privileges": ["1"],
    }


def test_the_time_limit_kills_and_removes(native_run: Run, engine: Engine, token: str) -> None:
    start = time.monotonic()
    with pytest.raises(ContainerTimeoutError, match="time limit of 3 s"):
        native_run(SLEEP, timeout_seconds=3, token=token)
    assert time.monotonic() - start < 30
    assert _left_over(engine, token) == []


@pytest.mark.emulation
def test_an_emulated_crash_ends_at_once_and_is_explained(arm64_run: Run) -> None:
    run = arm64_run("import ctypes; ctypes.string_at(0)", timeout_seconds=60)
    assert run.exit_code == 139
    assert "SIGSEGV" in str(run.death)


def test_the_memory_limit_is_explained(native_run: Run) -> None:
    run = native_run("blocks = [bytearray(10_000_000) for _ in range(100)]", memory_mib=200)
    assert run.exit_code == 137
    assert run.death == "out of memory (limit: 200 MiB)"


def test_a_callback_that_gives_up_leaves_no_container(native_run: Run, engine: Engine, token: str) -> None:
    def give_up(_line: str) -> None:
        assert len(_left_over(engine, token)) == 1
        raise SystemExit(130)

    with pytest.raises(SystemExit):
        native_run(SLEEP, token=token, on_stderr_line=give_up)
    assert _left_over(engine, token) == []


def test_a_container_that_does_not_start_is_removed(engine: Engine, amd64_image: DeviceImage, token: str) -> None:
    with pytest.raises(EngineError, match=r"[Mm]emory limit"):
        run_container(
            engine,
            ContainerRequest(
                image=amd64_image.id,
                command=[],
                launch=Launch(runner="native"),
                timeout_seconds=60,
                memory_mib=1,
                labels={"edge-bundler-test": token},
            ),
            on_stderr_line=lambda _line: None,
        )
    assert _left_over(engine, token) == []


def test_ctrl_c_leaves_no_container(engine: Engine, amd64_image: DeviceImage, token: str) -> None:
    program = textwrap.dedent(f"""
        from bundler.engines.container import ContainerRequest, run_container
        from bundler.engines.emulation import Launch
        from bundler.engines.container_engine import connect
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
        assert len(_left_over(engine, token)) == 1
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    assert _left_over(engine, token) == []


def test_programs_of_an_unknown_architecture_are_an_emulator_error(
    engine: Engine, amd64_image: DeviceImage, tmp_path: Path
) -> None:
    riscv = tmp_path / "program"
    riscv.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(200))
    with pytest.raises(EmulatorError, match="cannot execute the programs in sha256:"):
        run_container(
            engine,
            ContainerRequest(
                image=amd64_image.id,
                command=[],
                launch=Launch(runner="nothing", prefix=("/program",), programs={"/program": riscv}),
                timeout_seconds=60,
                memory_mib=512,
            ),
            on_stderr_line=lambda _line: None,
        )


class FragileSocket:
    """A proxy socket of the real engine that can be closed, which a client sees as the end of the engine."""

    def __init__(self, path: Path, target: str) -> None:
        self.path = path
        self.target = target
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.sockets = [self.listener]
        self.threads = [threading.Thread(target=self.serve)]
        self.threads[0].start()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self.target)
                self.sockets += [client, server]
                for ends in ((client, server), (server, client)):
                    self.threads.append(threading.Thread(target=self.pump, args=ends))
                    self.threads[-1].start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def tear_out(self) -> None:
        self.path.unlink(missing_ok=True)
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.tear_out()
        for thread in self.threads:
            thread.join()
        for one in self.sockets:
            one.close()


@pytest.fixture
def fragile_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FragileSocket]:
    target = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")
    if not Path(target).is_socket():
        pytest.skip("the engine is not behind a socket of this machine")
    fragile = FragileSocket(tmp_path / "fragile.sock", target)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{fragile.path}")
    yield fragile
    fragile.close()


def _message_of_a_death(fragile: FragileSocket, image: DeviceImage, token: str) -> str:
    """Close the socket at the container's first output, and return the message of the error."""
    try:
        with connect() as engine:
            run_container(
                engine,
                ContainerRequest(
                    image=image.id,
                    command=["selftest", SLEEP],
                    launch=Launch(runner="native"),
                    timeout_seconds=120,
                    memory_mib=512,
                    labels={"edge-bundler-test": token},
                ),
                on_stderr_line=lambda _line: fragile.tear_out(),
            )
    except EngineError as error:
        return error.message
    pytest.fail("the run continued without an engine")


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the SDK leaves them open when nobody listens
def test_an_engine_that_dies_half_way_is_an_engine_error_and_the_container_is_named(
    fragile_socket: FragileSocket, engine: Engine, amd64_image: DeviceImage, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = _message_of_a_death(fragile_socket, amd64_image, token)
    gc.collect()
    assert f"the container engine failed while running {amd64_image.id}" in message
    (container,) = _left_over(engine, token)
    assert f"docker rm --force {container['Names'][0].lstrip('/')}" in capsys.readouterr().err
    engine.client.api.remove_container(container["Id"], force=True)
