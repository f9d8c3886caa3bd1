from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from bundler.engines.owner import Owner, temporary_reference


def test_an_owner_is_alive_while_its_process_runs() -> None:
    program = "from bundler.engines.owner import Owner; print(Owner.current(), flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        owner = Owner.parse(process.stdout.readline().strip())
        assert owner is not None
        assert owner.pid == process.pid
        assert owner.is_alive() is True
        assert replace(owner, started=owner.started + 1).is_alive() is False  # another process with its number
        process.kill()
        process.wait()
    assert owner.is_alive() is False


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        process.stdout.read()  # it has ended, and was not waited for
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert replace(Owner.current(), pid=process.pid).is_alive() is False
    process.wait()


def test_the_state_of_a_process_elsewhere_is_unknown() -> None:
    mine = Owner.current()
    assert mine.is_alive() is True
    assert replace(mine, machine="00000000").is_alive() is None
    assert replace(mine, namespace=1).is_alive() is None
    assert replace(mine, boot="00000000").is_alive() is False  # this machine was started again since


@pytest.mark.parametrize("text", ["", "run", "1.2.3.4.5", "0123abcd.0123abcd.1.2", "0123abcd.0123abcd.1.2.3.4", "../x"])
def test_other_texts_are_no_owner(text: str) -> None:
    assert Owner.parse(text) is None


def test_a_temporary_reference_is_valid_and_contains_its_owner() -> None:
    reference = temporary_reference("arm64-qnnpack")
    name, _, tag = reference.partition(":")
    assert name == "edge-bundler-temporary/arm64-qnnpack"
    assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", tag)
    assert Owner.parse(tag) == Owner.current()
