"""Signals to real processes: the first one ends the command, and clean-up is not interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BEGIN = "import sys, time\nfrom bundler import interruption\nfrom bundler.interruption import *\n"
CLEANING = """
install_signal_handlers()
try:
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        for part in range(4):
            time.sleep(0.15)
        print("cleaned", flush=True)
except InterruptedBySignal as error:
    sys.exit(error.exit_code)
"""
SHIELDED = """
install_signal_handlers()
try:
    with defer_signals():
        print("working", flush=True)
        time.sleep(0.3)
        print("cleaned", flush=True)
    print("not reached", flush=True)
except InterruptedBySignal as error:
    sys.exit(error.exit_code)
"""
HANGING = """
interruption.CLEAN_UP_SECONDS = 0.5
install_signal_handlers(lambda: print("given up", flush=True))
try:
    print("working", flush=True)
    time.sleep(60)
finally:
    time.sleep(60)
"""


def signalled(program: str, *numbers: int, pause: float = 0.1) -> tuple[int, str, str]:
    with subprocess.Popen(
        [sys.executable, "-c", BEGIN + program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(pause)
        stdout, stderr = process.communicate(timeout=30)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_clean_up_is_not_interrupted_by_later_signals(number: int) -> None:
    more = (number, signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    assert signalled(CLEANING, *more) == (128 + number, "cleaned\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_a_shielded_block_is_deferred(number: int) -> None:
    assert signalled(SHIELDED, number, number) == (128 + number, "cleaned\n", "")


def test_clean_up_that_hangs_is_ended() -> None:
    start = time.monotonic()
    assert signalled(HANGING, signal.SIGTERM) == (143, "given up\n", "")
    assert time.monotonic() - start < 20


def test_signals_that_nohup_ignores_stay_ignored() -> None:
    program = 'import os, signal\ninstall_signal_handlers()\nos.kill(os.getpid(), signal.SIGHUP)\nprint("here still")'
    run = subprocess.run(
        ["bash", "-c", 'trap "" HUP; exec "$@"', "-", sys.executable, "-c", BEGIN + program],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
        cwd=Path(__file__).parents[1],
    )
    assert run.stdout == "here still\n"
