"""The device program as a process of this host: all its output arrives, and nothing of it outlives its time or Ctrl-C."""

from __future__ import annotations

import base64
import io
import os
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bundler.engines.emulation import Launch
from bundler.errors import ContainerTimeoutError

from .conftest import Runner

HERE = Launch(runner="native")

# A runner that starts a child, tells both their process numbers, and waits.
WAITS = """
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, file=sys.stderr, flush=True)
time.sleep(600)
"""


def assert_gone(processes: str) -> None:
    """Let killed processes end, which the kernel does in its own time; one that waits to be asked for its exit code has."""
    end = time.monotonic() + 20
    for process in processes.split():
        while running(process):
            assert time.monotonic() < end, f"process {process} still runs"
            time.sleep(0.02)


def running(process: str) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_output_lines_and_exit_code_arrive(runner: Runner) -> None:
    lines: list[str] = []
    executor = runner(probe="print('one', file=sys.stderr)\nprint('out')\nprint('two', file=sys.stderr)\nsys.exit(7)")
    result = executor.run(HERE, ["probe"], lines.append)
    assert (result.exit_code, result.stdout, result.stderr, result.death) == (7, "out\n", "one\ntwo\n", None)
    assert lines == ["one", "two"]


def test_much_output_on_both_ways_does_not_block(runner: Runner) -> None:
    executor = runner(probe="for _ in range(2000):\n    print('x' * 200)\n    print('y' * 200, file=sys.stderr)")
    result = executor.run(HERE, ["probe"], lambda _line: None)
    assert (len(result.stdout), len(result.stderr)) == (2000 * 201,) * 2


def test_a_crash_is_named_by_its_signal(runner: Runner) -> None:
    result = runner(probe="os.kill(os.getpid(), signal.SIGSEGV)").run(HERE, ["probe"], lambda _line: None)
    assert result.death == "ended by SIGSEGV"


def test_prefix_and_environment_of_the_launch_reach_the_runner(runner: Runner) -> None:
    launch = Launch(runner="x", prefix=("env", "PREFIXED=yes"), environment={"QEMU_CPU": "cortex-a53"})
    result = runner(probe="print(os.environ['PREFIXED'], os.environ['QEMU_CPU'])").run(launch, ["probe"], lambda _line: None)
    assert result.stdout == "yes cortex-a53\n"


def test_the_runner_finds_no_module_beside_it_and_little_of_the_environment(
    runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle with a `numpy.py` in it would otherwise be executed through the runner of this version."""
    (tmp_path / "beside.py").write_text("")
    monkeypatch.setenv("SECRET_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    result = runner(probe="print(sorted(os.environ), os.environ['HOME'])\nimport beside").run(
        HERE, ["probe"], lambda _line: None
    )
    assert "No module named 'beside'" in result.stderr
    assert "SECRET_TOKEN" not in result.stdout
    assert "PYTHONPATH" not in result.stdout
    assert "OMP_NUM_THREADS" in result.stdout
    assert str(Path.home()) not in result.stdout.split("]")[1].split()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.py", "device.pyz"]


def test_it_gets_no_more_memory_than_its_target_has_twice(runner: Runner) -> None:
    assert "MemoryError" in runner(probe="bytearray(2**40)").run(HERE, ["probe"], lambda _line: None).stderr


def test_after_its_time_limit_it_is_gone_with_its_children(runner: Runner) -> None:
    told: list[str] = []
    with pytest.raises(ContainerTimeoutError, match="time limit of 1 s"):
        runner(probe=WAITS, seconds=1).run(HERE, ["probe"], told.append)
    assert_gone(told[0])


def test_ctrl_c_ends_it_with_its_children(runner: Runner) -> None:
    told: list[str] = []

    def interrupt(line: str) -> None:
        told.append(line)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        runner(probe=WAITS).run(HERE, ["probe"], interrupt)
    assert_gone(told[0])


def test_an_instrumented_graph_is_run_by_the_program_of_this_version(runner: Runner, tmp_path: Path) -> None:
    """The bundle's own program may be anything, and is not executed for it."""
    given, negative = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in ("image", "outputs"))
    graph = helper.make_graph([helper.make_node("Neg", ["image"], ["outputs"])], "negative", [given], [negative])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "model.onnx")
    np.save(tmp_path / "inputs.npy", np.array([[1, 2], [3, 4]], np.float32))
    executor = runner(probe="", selftest="sys.exit('executed')")
    result = executor.trace(HERE, tmp_path / "model.onnx", tmp_path / "inputs.npy", ["all", "1"])
    assert result.exit_code == 0, result.stderr
    assert np.load(io.BytesIO(base64.b64decode(result.stdout)))["outputs"].tolist() == [[-1, -2]]
