"""The two places where the device program is executed: a container of the device image, and a process of this host."""

from __future__ import annotations

import os
import resource
import signal
import site
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bundler.device.runner_json import PROGRAM
from bundler.engines.container import ContainerRequest, RunResult, run_container
from bundler.engines.container_engine import Engine
from bundler.engines.emulation import Launch, NotRunnable, decide_launch
from bundler.errors import ContainerTimeoutError
from bundler.images.device_image import DeviceImage
from bundler.packaging.device_program import write_device_program
from bundler.targets import CpuProfile, TargetProfile

__all__ = ["ContainerExecutor", "HostExecutor"]

_TRACE = "/trace"  # in the container


@dataclass(frozen=True, kw_only=True)
class ContainerExecutor:
    """Executes the device program of a device image in the engine: no network, a time limit, removed afterwards."""

    engine: Engine
    image: DeviceImage
    target: TargetProfile
    place: Literal["container", "host"] = "container"

    @property
    def image_digest(self) -> str | None:
        return self.image.digest

    def launch(self, cpu: CpuProfile) -> Launch | NotRunnable:
        return decide_launch(self.engine, self.target, cpu)

    def run(self, launch: Launch, arguments: Sequence[str], on_stderr_line: Callable[[str], None]) -> RunResult:
        return self._run(launch, arguments, on_stderr_line)

    def trace(self, launch: Launch, model: Path, inputs: Path, options: Sequence[str]) -> RunResult:
        files = {"model.onnx": model, "inputs.npy": inputs}
        programs = {**launch.programs, **{f"{_TRACE}/{name}": path for name, path in files.items()}}
        arguments = ["trace", f"{_TRACE}/model.onnx", f"{_TRACE}/inputs.npy", *options]
        return self._run(replace(launch, programs=programs), arguments, lambda _line: None)

    def _run(self, launch: Launch, arguments: Sequence[str], on_stderr_line: Callable[[str], None]) -> RunResult:
        request = ContainerRequest(
            image=self.image.id,
            command=arguments,
            launch=launch,
            timeout_seconds=self.target.verification.timeout_seconds,
            memory_mib=self.target.verification.memory_mib,
            labels={"edge-bundler.target": self.target.name},
        )
        return run_container(self.engine, request, on_stderr_line=on_stderr_line)


_ADDRESS_SPACE = 2  # times the memory that a container gets: libraries and stacks of threads reserve more than they use
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "EDGE_BUNDLER_THREADS")


def _environment(home: str) -> dict[str, str]:
    """Return the whole environment of a process on this host; packages of the user's own are found although HOME differs."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "HOME": home, "TMPDIR": home, "PYTHONUSERBASE": site.getuserbase()}


@dataclass(frozen=True, kw_only=True)
class HostExecutor:
    """Executes the bundle's device program with this Python, if no engine answers; a foreign target cannot run so.

    The process sees no more of this host's environment than it needs, an empty home folder, and no module beside its program.
    Instrumented graphs are run by the program of this version, whatever the bundle holds.
    """

    bundle: Path
    target: TargetProfile
    place: Literal["container", "host"] = "host"
    image_digest: str | None = None

    def launch(self, cpu: CpuProfile) -> Launch | NotRunnable:
        return decide_launch(None, self.target, cpu)

    def run(self, launch: Launch, arguments: Sequence[str], on_stderr_line: Callable[[str], None]) -> RunResult:
        return self._run(launch, [str(self.bundle.absolute() / PROGRAM), *arguments], on_stderr_line)

    def trace(self, launch: Launch, model: Path, inputs: Path, options: Sequence[str]) -> RunResult:
        arguments = ["trace", str(model.absolute()), str(inputs.absolute()), *options]
        with tempfile.TemporaryDirectory(prefix="edge-bundler-program-") as folder:
            program = write_device_program(Path(folder))
            return self._run(launch, [str(program), *arguments], lambda _line: None)

    def _run(self, launch: Launch, arguments: Sequence[str], on_stderr_line: Callable[[str], None]) -> RunResult:
        command = [*launch.prefix, sys.executable, "-P", "-B", *arguments]
        seconds = self.target.verification.timeout_seconds
        lines: list[str] = []
        with (
            tempfile.TemporaryDirectory(prefix="edge-bundler-home-") as home,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                cwd=home,
                env={**_environment(home), **launch.environment},
                start_new_session=True,
            ) as process,
        ):
            limit = _ADDRESS_SPACE * self.target.verification.memory_mib * 2**20
            with suppress(ProcessLookupError):  # it may have ended already
                resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))

            def listen() -> None:
                assert process.stderr is not None  # noqa: S101  for the type checker: it is a pipe
                for line in process.stderr:
                    lines.append(line)
                    on_stderr_line(line.rstrip("\n"))

            listener = threading.Thread(target=listen, daemon=True)
            listener.start()
            timer = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
            timer.start()
            try:
                assert process.stdout is not None  # noqa: S101  as above
                output = process.stdout.read()
                exit_code = process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
            finally:
                expired = not timer.is_alive()
                timer.cancel()
            listener.join()
        if expired:
            raise ContainerTimeoutError(seconds)
        death = f"ended by {signal.Signals(-exit_code).name}" if exit_code < 0 else None
        return RunResult(exit_code=exit_code, stdout=output, stderr="".join(lines), death=death)
