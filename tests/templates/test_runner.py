"""The device runner as a program: what it accepts, what it refuses, and what it says."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from .conftest import RUNNER, STEP, TinyBundle, outputs_of, save_classifier

SITE_PACKAGES = Path(sysconfig.get_paths()["platlib"])


def mode_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(mode for mode in document["modes"] if mode["name"] == name)


def spoil(bundle: TinyBundle, mode: str, **changes: Any) -> None:
    config = bundle.config
    mode_of(config, mode).update(changes)
    bundle.configure(config)


# ---- a good bundle


def test_a_good_bundle_passes_with_figures_that_can_be_checked(bundle: TinyBundle) -> None:
    done = bundle.run("selftest", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edge-bundler/selftest/2"
    assert document["bundle_sha256"] == hashlib.sha256((bundle.root / "runner.json").read_bytes()).hexdigest()
    assert document["bundle"] == "tiny-x86-fbgemm"
    assert document["verdict"] == "passed"
    assert document["graph_optimization_level"] == "all"
    assert document["machine"] == os.uname().machine
    assert document["emulator"] is None
    assert document["onnxruntime"] == onnxruntime.__version__
    assert document["known_answers"]["checks"]["onnxruntime integers"] is True

    outputs = bundle.load("golden/int8-ptq.npy")
    reference = bundle.load("golden/fp32.npy")
    assert np.ptp(reference) > 10
    noise = ((outputs.astype(float) - reference) ** 2).sum()
    assert mode_of(document, "int8-ptq") == {
        "name": "int8-ptq",
        "samples": 4,
        "model_sha256": hashlib.sha256((bundle.root / "models" / "int8-ptq.onnx").read_bytes()).hexdigest(),
        "outputs_sha256": hashlib.sha256(outputs.astype("<f4").tobytes()).hexdigest(),
        "sqnr_db": pytest.approx(10 * np.log10((reference.astype(float) ** 2).sum() / noise)),
        "top1_agreement": 1.0,
        "boxes_agreement": None,
        "max_steps": 0,
        "verdict": "passed",
        "reason": "",
    }
    assert mode_of(document, "fp32")["max_steps"] is None
    assert re.findall(r"^int8-ptq: picture (\d) of 4$", done.stderr, re.MULTILINE) == ["1", "2", "3", "4"]


def test_an_image_that_holds_another_bundle_is_noticed(bundle: TinyBundle) -> None:
    own = hashlib.sha256((bundle.root / "runner.json").read_bytes()).hexdigest()
    assert bundle.run("selftest", "--expect", own[:16]).returncode == 0
    done = bundle.run("selftest", "--expect", "0" * 16)
    assert done.returncode == 3
    assert f"this is another bundle: the SHA-256 of its runner.json is {own}, not 0000000000000000" in done.stderr
    assert done.stdout == ""
    assert bundle.run("selftest", "--expect", "all").returncode == 2


def test_people_get_a_table(bundle: TinyBundle) -> None:
    done = bundle.run("selftest")
    assert done.returncode == 0
    assert re.search(r"^mode +verdict +pictures +SQNR +top-1 as FP32 +steps off$", done.stdout, re.MULTILINE)
    assert re.search(r"^int8-ptq +passed +4 +\d+\.\d dB +100% +0$", done.stdout, re.MULTILINE)
    assert done.stdout.endswith("\nPASSED\n")


def test_one_mode_alone(bundle: TinyBundle) -> None:
    assert [mode["name"] for mode in bundle.selftest("--mode", "fp32")["modes"]] == ["fp32"]


@pytest.mark.parametrize("arguments", [("selftest",), ("run", "--mode", "int8-ptq", "golden/inputs.npy"), ("info", "--json")])
def test_a_reader_that_goes_away_is_no_wrong_result(bundle: TinyBundle, arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "runner.py", *arguments],
        check=False,
        cwd=bundle.root,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_info_needs_no_numpy(bundle: TinyBundle) -> None:
    done = bundle.run("info", "--json", program=(sys.executable, "-I", "-S"))
    assert done.returncode == 0
    assert json.loads(done.stdout)["modes"][0]["model"] == "models/int8-ptq.onnx"
    assert bundle.run("info").stdout.startswith("tiny-x86-fbgemm: classification, image -> logits, graph optimization all\n")


def test_nothing_is_written_and_no_telemetry_prepared(bundle: TinyBundle, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    before = sorted(bundle.root.rglob("*"))
    done = bundle.run("selftest", HOME=str(home), XDG_CACHE_HOME=str(home), ORT_DISABLE_TELEMETRY="0")
    assert done.returncode == 0
    assert list(home.rglob("*")) == []  # ONNX Runtime's telemetry would leave its identifier there
    assert sorted(bundle.root.rglob("*")) == before


# ---- files


@pytest.mark.parametrize("name", ["models/int8-ptq.onnx", "golden/fp32.npy", "golden/known-answer.onnx", "runner.py"])
def test_a_changed_byte_is_found_and_named(bundle: TinyBundle, name: str) -> None:
    data = bytearray((bundle.root / name).read_bytes())
    data[-1] ^= 1 if name != "runner.py" else ord("\n") ^ ord(" ")
    (bundle.root / name).write_bytes(data)
    done = bundle.run("selftest", "--json")
    assert done.returncode == 3
    assert f"{name} is changed" in done.stderr
    assert done.stdout == ""


def test_every_missing_file_is_named(bundle: TinyBundle) -> None:
    (bundle.root / "golden/inputs.npy").unlink()
    (bundle.root / "models/fp32.onnx").unlink()
    done = bundle.run("selftest")
    assert done.returncode == 3
    assert "golden/inputs.npy cannot be read" in done.stderr
    assert "models/fp32.onnx cannot be read" in done.stderr


def test_a_file_without_a_checksum_is_refused(bundle: TinyBundle) -> None:
    config = bundle.config
    del config["files"]["models/fp32.onnx"]
    bundle.configure(config)
    done = bundle.run("selftest")
    assert done.returncode == 3
    assert "models/fp32.onnx is changed, or has no checksum" in done.stderr


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"schema": "edge-bundler/runner/2"}', '{"schema": "edge-bundler/runner/1"}']
)
def test_an_unusable_runner_json_is_refused(bundle: TinyBundle, text: str) -> None:
    (bundle.root / "runner.json").write_text(text)
    done = bundle.run("selftest")
    assert done.returncode == 3
    assert "runner.json is not usable" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("task", ["segmentation", None, []])
def test_a_task_that_the_runner_does_not_know_is_refused(bundle: TinyBundle, task: object) -> None:
    bundle.configure({**bundle.config, "task": task})
    done = bundle.run("info")
    assert done.returncode == 3
    assert "runner.json is not usable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_runner_json_without_a_task_is_refused(bundle: TinyBundle) -> None:
    config = bundle.config
    del config["task"]
    bundle.configure(config)
    assert "runner.json is not usable: it lacks task" in bundle.run("info").stderr


# ---- verdicts


def other_model(bundle: TinyBundle, mode: str, *, change: float, step: float | None) -> None:
    """Replace a mode's model by one whose first class is `change` times as strong."""
    random = np.random.default_rng(7)
    weights = random.normal(size=(192, 10)).astype(np.float32)
    weights[:, 0] *= change
    save_classifier(bundle.root / f"models/{mode}.onnx", weights, step)
    bundle.seal()


def failure(bundle: TinyBundle, name: str) -> str:
    done = bundle.run("selftest", "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["verdict"] == "failed"
    mode = mode_of(document, name)
    assert mode["verdict"] == "failed"
    return str(mode["reason"])


def test_outputs_too_many_steps_away_fail(bundle: TinyBundle) -> None:
    other_model(bundle, "int8-ptq", change=2.0, step=STEP)
    assert re.fullmatch(
        r"an output is \d+ quantization steps from the expected one; 8 are allowed", failure(bundle, "int8-ptq")
    )


def test_a_step_more_than_the_tolerance_fails_and_the_tolerance_itself_passes(bundle: TinyBundle) -> None:
    expected = bundle.load("golden/int8-ptq.npy")
    expected[2, 3] += 8 * STEP
    bundle.save("golden/int8-ptq.npy", expected)
    assert mode_of(bundle.selftest(), "int8-ptq")["max_steps"] == 8
    assert mode_of(bundle.selftest(), "int8-ptq")["verdict"] == "passed"
    expected[2, 3] += STEP
    bundle.save("golden/int8-ptq.npy", expected)
    assert failure(bundle, "int8-ptq").startswith("an output is 9 quantization steps")


def test_a_loss_of_signal_fails(bundle: TinyBundle) -> None:
    expected = mode_of(bundle.config, "int8-ptq")["expected_sqnr_db"]
    spoil(bundle, "int8-ptq", expected_sqnr_db=expected + 1.1)
    assert (
        failure(bundle, "int8-ptq")
        == f"SQNR to the FP32 outputs is {expected:.2f} dB; at least {expected + 0.1:.2f} dB are needed"
    )
    spoil(bundle, "int8-ptq", expected_sqnr_db=expected + 0.9)
    assert bundle.selftest()["verdict"] == "passed"


def test_a_slightly_different_float_model_fails(bundle: TinyBundle) -> None:
    other_model(bundle, "fp32", change=1.001, step=None)
    assert re.fullmatch(r"SQNR to the expected outputs is \d\d\.\d+ dB; at least 80.00 dB are needed", failure(bundle, "fp32"))


def test_outputs_that_are_not_finite_fail(bundle: TinyBundle) -> None:
    other_model(bundle, "fp32", change=float("inf"), step=None)
    assert failure(bundle, "fp32") == "the outputs are not finite"


@pytest.mark.parametrize("value", [0.0, 1.5, float("nan")])
def test_expected_outputs_that_prove_nothing_fail(bundle: TinyBundle, value: float) -> None:
    bundle.save("golden/int8-ptq.npy", np.full((4, 10), value, np.float32))
    assert "prove nothing" in failure(bundle, "int8-ptq")


def test_expected_outputs_that_do_not_depend_on_the_picture_fail(bundle: TinyBundle) -> None:
    bundle.save("golden/int8-ptq.npy", np.tile(bundle.load("golden/int8-ptq.npy")[:1], (4, 1)))
    assert "prove nothing" in failure(bundle, "int8-ptq")


def test_outputs_of_another_shape_fail(bundle: TinyBundle) -> None:
    save_classifier(bundle.root / "models/fp32.onnx", np.ones((192, 5), np.float32), None)
    bundle.seal()
    assert failure(bundle, "fp32") == "the outputs have shape [1, 5], the expected outputs [1, 10]"


def test_a_model_that_onnxruntime_refuses_fails_alone(bundle: TinyBundle) -> None:
    (bundle.root / "models/fp32.onnx").write_bytes(b"not a model")
    bundle.seal()
    assert failure(bundle, "fp32").startswith("onnxruntime cannot run models/fp32.onnx: ")
    assert mode_of(bundle.selftest(), "int8-ptq")["verdict"] == "passed"


def test_an_output_of_another_name_fails(bundle: TinyBundle) -> None:
    random = np.random.default_rng(7)
    save_classifier(bundle.root / "models/fp32.onnx", random.normal(size=(192, 10)).astype(np.float32), None, output="scores")
    bundle.seal()
    assert "logits" in failure(bundle, "fp32")


# ---- machines that calculate wrongly


def test_a_wrong_integer_answer_of_onnxruntime_fails_every_mode(bundle: TinyBundle) -> None:
    expected = bundle.load("golden/known-answer-expected.npy")
    expected[0, 0] += 1
    bundle.save("golden/known-answer-expected.npy", expected)
    document = bundle.selftest()
    assert document["known_answers"]["passed"] is False
    assert document["known_answers"]["checks"]["onnxruntime integers"] is False
    assert {mode["reason"] for mode in document["modes"]} == {"not run: this machine calculates wrongly"}
    assert document["verdict"] == "failed"


def test_a_wrong_answer_of_the_processor_is_named(bundle: TinyBundle) -> None:
    text = (bundle.root / "runner.py").read_text()
    (bundle.root / "runner.py").write_text(text.replace('"float32 divide": a32 / b32', '"float32 divide": a32 * (1 / b32)'))
    bundle.seal()
    done = bundle.run("probe", "--json")
    assert done.returncode == 1
    checks = json.loads(done.stdout)["known_answers"]["checks"]
    assert [name for name, right in checks.items() if not right] == ["float32 divide"]
    assert "arithmetic: WRONG in float32 divide" in bundle.run("probe").stdout
    assert bundle.run("selftest").returncode == 1


# ---- the probe


def test_the_probe_names_this_machine_and_needs_no_bundle(bundle: TinyBundle) -> None:
    (bundle.root / "runner.json").unlink()
    done = bundle.run("probe", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edge-bundler/probe/1"
    assert document["emulator"] is None
    assert document["numpy"] == np.__version__
    assert document["cpu"]["features"] == sorted(document["cpu"]["features"]) != []
    assert document["cpu"]["model"] != "unknown"
    assert document["known_answers"]["passed"] is True


def test_a_python_started_by_another_program_is_not_called_native(bundle: TinyBundle) -> None:
    loader = next(Path("/lib64").glob("ld-linux*.so.*"), None) or next(Path("/lib").glob("ld-linux*.so.*"))
    done = bundle.run("probe", "--json", program=(str(loader), os.path.realpath(sys.executable)), PYTHONPATH=str(SITE_PACKAGES))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["emulator"]["name"] == "unknown"
    assert document["emulation"] == "unknown"
    assert "which is not this Python" in document["emulation_reason"]


def test_a_python_that_cannot_read_itself_does_not_tell_whether_the_cpu_is_emulated(bundle: TinyBundle, tmp_path: Path) -> None:
    """Of a program that may be executed and not read, the kernel hides what it executes: nothing can be claimed."""
    python = tmp_path / "python3"
    shutil.copy(os.path.realpath(sys.executable), python)
    python.chmod(0o111)
    program = (str(python),)
    if os.geteuid() == 0:  # root reads everything, unless it has lost its capabilities
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("setpriv (util-linux) is not installed")
        program = (setpriv, "--bounding-set=-all", "--inh-caps=-all", "env", *program)  # `env` has none any more
    home = {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": str(SITE_PACKAGES)}
    done = bundle.run("probe", "--json", program=program, **home)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["emulation"], document["emulator"]) == ("unknown", None)
    assert "Permission denied" in document["emulation_reason"]
    spoken = bundle.run("probe", program=program, **home)
    assert "note: could not determine whether this CPU is emulated" in spoken.stderr
    assert "this CPU is emulated (" not in spoken.stderr


def test_an_onnxruntime_that_is_too_old_is_named_with_a_step_that_fits_this_python(bundle: TinyBundle) -> None:
    bundle.configure({**bundle.config, "onnxruntime_minimum": "99.1", "python_minimum": "3.9"})
    picture = bundle.root / "golden/inputs.npy"
    for command in (("selftest",), ("run", "--mode", "fp32", str(picture))):
        done = bundle.run(*command)
        assert done.returncode == 4
        assert f"needs onnxruntime ≥ 99.1, found {onnxruntime.__version__}" in done.stderr
        assert "requirements.txt" in done.stderr
    bundle.configure({**bundle.config, "python_minimum": "3.99"})
    done = bundle.run("selftest")
    assert done.returncode == 4
    assert "use Python 3.99 or newer" in done.stderr
    assert "requirements.txt" not in done.stderr
    bundle.configure({**bundle.config, "onnxruntime_minimum": "1.9"})  # older than 1.17, though not as text
    assert bundle.run("selftest").returncode == 0


def test_the_probe_does_not_load_onnxruntime(bundle: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    assert bundle.run("probe", PYTHONPATH=str(tmp_path)).returncode == 0


# ---- where it cannot run


def test_without_numpy(bundle: TinyBundle) -> None:
    done = bundle.run("selftest", program=(sys.executable, "-I", "-S"))
    assert done.returncode == 4
    assert "numpy cannot be loaded" in done.stderr
    assert "requirements.txt" in done.stderr


def test_without_onnxruntime(bundle: TinyBundle, tmp_path: Path) -> None:
    for package in SITE_PACKAGES.glob("numpy*"):
        (tmp_path / package.name).symlink_to(package)
    alone = (sys.executable, "-S")
    done = bundle.run("selftest", program=alone, PYTHONPATH=str(tmp_path))
    assert done.returncode == 4
    assert "onnxruntime cannot be loaded" in done.stderr
    assert json.loads(bundle.run("probe", "--json", program=alone, PYTHONPATH=str(tmp_path)).stdout)["onnxruntime"] is None


def test_a_library_that_crashes_is_named(bundle: TinyBundle, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    done = bundle.run("selftest", PYTHONPATH=str(tmp_path))
    assert done.returncode == 4
    assert "SIGILL" in done.stderr


# ---- being stopped


def start_sleeping(bundle: TinyBundle, folder: Path) -> subprocess.Popen[str]:
    """Start a selftest that has reached the loading of onnxruntime and stays there."""
    (folder / "onnxruntime.py").write_text("import sys, time\nprint('asleep', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, str(bundle.root / "runner.py"), "selftest"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "asleep\n"
    return process


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_stopping_it_leaves_nothing_running(bundle: TinyBundle, tmp_path: Path, number: signal.Signals, exit_code: int) -> None:
    with start_sleeping(bundle, tmp_path) as process:
        process.send_signal(number)
        began = time.monotonic()
        process.communicate(timeout=30)  # ends when the last process that holds stdout has ended
        assert time.monotonic() - began < 10
        assert process.returncode == exit_code


# ---- run


def test_run_gives_the_five_strongest_classes(bundle: TinyBundle, tmp_path: Path) -> None:
    pictures = np.random.default_rng(3).normal(size=(2, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "two.npy", pictures)
    np.save(tmp_path / "one.npy", pictures[1])
    done = bundle.run("run", "--json", "--mode", "fp32", str(tmp_path / "two.npy"), str(tmp_path / "one.npy"))
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    assert [(Path(one["file"]).name, one["picture"]) for one in results] == [("two.npy", 0), ("two.npy", 1), ("one.npy", 0)]
    logits = outputs_of(bundle.root / "models/fp32.onnx", pictures).astype(float)
    for one, scores in zip(results, [logits[0], logits[1], logits[1]], strict=True):
        shares = np.exp(scores) / np.exp(scores).sum()
        assert [row["class"] for row in one["top5"]] == list(np.argsort(scores)[::-1][:5])
        assert [row["probability"] for row in one["top5"]] == pytest.approx(sorted(shares)[::-1][:5])
        assert one["top5"][0]["logit"] == pytest.approx(scores.max())
    assert "probability" in bundle.run("run", "--mode", "fp32", str(tmp_path / "one.npy")).stdout


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros((3, 8, 8)), "float64 of shape [3, 8, 8]"),
        (np.zeros((8, 8, 3), np.float32), "float32 of shape [8, 8, 3]"),
        (np.zeros((1, 1, 3, 8, 8), np.float32), "float32 of shape [1, 1, 3, 8, 8]"),
        (np.zeros((0, 3, 8, 8), np.float32), "float32 of shape [0, 3, 8, 8]"),
        (np.full((3, 8, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_run_refuses_what_the_model_does_not_take(bundle: TinyBundle, tmp_path: Path, array: np.ndarray, what: str) -> None:
    np.save(tmp_path / "odd.npy", array)
    done = bundle.run("run", "--mode", "fp32", str(tmp_path / "odd.npy"))
    assert done.returncode == 2
    assert str(tmp_path / "odd.npy") in done.stderr
    assert what in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"\xff\xd8\xff\xe0 a picture", b"\x93NUMPY"])
def test_run_refuses_what_is_no_array(bundle: TinyBundle, tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "odd.npy").write_bytes(content)
    done = bundle.run("run", "--mode", "fp32", str(tmp_path / "odd.npy"))
    assert done.returncode == 2
    assert f"{tmp_path / 'odd.npy'} cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_refuses_to_show_outputs_that_are_not_finite(bundle: TinyBundle, tmp_path: Path) -> None:
    other_model(bundle, "fp32", change=float("inf"), step=None)
    np.save(tmp_path / "one.npy", np.zeros((3, 8, 8), np.float32))
    done = bundle.run("run", "--json", "--mode", "fp32", str(tmp_path / "one.npy"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "the outputs of fp32 are not finite" in done.stderr


@pytest.mark.parametrize("options", [("--confidence", "0"), ("--iou", "0.5"), ("--confidence", "0.3", "--iou", "0")])
def test_run_takes_no_options_of_detectors_for_a_classifier(
    bundle: TinyBundle, tmp_path: Path, options: tuple[str, ...]
) -> None:
    np.save(tmp_path / "one.npy", np.zeros((3, 8, 8), np.float32))
    done = bundle.run("run", "--mode", "fp32", *options, str(tmp_path / "one.npy"))
    assert done.returncode == 2
    assert f"error: only a detector takes {', '.join(options[::2])}, and this bundle holds none\n" in done.stderr


# ---- the command line


@pytest.mark.parametrize("arguments", [(), ("sing",), ("run", "--mode", "fp32"), ("selftest", "--mode", "int4")])
def test_usage(bundle: TinyBundle, arguments: tuple[str, ...]) -> None:
    assert bundle.run(*arguments).returncode == 2


def test_an_unknown_mode_is_answered_with_the_known_ones(bundle: TinyBundle) -> None:
    assert "Its modes: int8-ptq, fp32." in bundle.run("selftest", "--mode", "int4").stderr


@pytest.mark.parametrize("threads", ["0", "-1", "many", "1.5"])
def test_a_bad_number_of_threads_is_refused(bundle: TinyBundle, threads: str) -> None:
    done = bundle.run("selftest", EDGE_BUNDLER_THREADS=threads)
    assert done.returncode == 2
    assert "EDGE_BUNDLER_THREADS" in done.stderr


def test_one_thread_gives_the_same_int8_outputs(bundle: TinyBundle) -> None:
    alone = json.loads(bundle.run("selftest", "--json", "--mode", "int8-ptq", EDGE_BUNDLER_THREADS="1").stdout)
    assert alone["modes"] == bundle.selftest("--mode", "int8-ptq")["modes"]


def test_help_tells_the_exit_codes(bundle: TinyBundle) -> None:
    for arguments in (("--help",), ("selftest", "--help")):
        assert "3  a file of the bundle is missing or changed" in bundle.run(*arguments).stdout


def test_it_is_written_for_python_3_9() -> None:
    ast.parse(RUNNER.read_text(), feature_version=(3, 9))


# ---- emulated


@pytest.mark.emulation
@pytest.mark.parametrize(("cpu", "present", "absent"), [("Haswell", "AVX2", "AVX512F"), ("Nehalem", "SSE42", "AVX2")])
def test_under_qemu_it_says_so(bundle: TinyBundle, cpu: str, present: str, absent: str) -> None:
    qemu = shutil.which("qemu-x86_64-static") or shutil.which("qemu-x86_64")
    if qemu is None or os.uname().machine != "x86_64":
        if os.environ.get("BUNDLER_REQUIRE_ENGINE"):
            pytest.fail("qemu-x86_64 is not installed")
        pytest.skip("needs qemu-x86_64 on an x86-64 host")
    done = bundle.run("selftest", "--json", program=(qemu, "-cpu", cpu, sys.executable))
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    assert document["emulator"] == {
        "name": "qemu-x86_64",
        "version": version.partition(" version ")[2],
        "sha256": hashlib.sha256(Path(qemu).read_bytes()).hexdigest(),
    }
    assert document["cpu"]["model"] == cpu
    assert present in document["cpu"]["features"]
    assert absent not in document["cpu"]["features"]
    assert mode_of(document, "int8-ptq")["max_steps"] == 0
