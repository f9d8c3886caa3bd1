from __future__ import annotations

import pytest

from bundler.engines.container import describe_death


@pytest.mark.parametrize(
    ("exit_code", "words"),
    [
        (139, "signal 11 (SIGSEGV: segmentation fault"),
        (132, "SIGILL: illegal instruction"),
        (137, "signal 9 (SIGKILL"),
        (143, "signal 15 (SIGTERM)"),
    ],
)
def test_death_names_the_signal_and_its_meaning(exit_code: int, words: str) -> None:
    assert words in str(describe_death(exit_code))


@pytest.mark.parametrize("exit_code", [0, 1, 3, 126, 127, 128, 255])
def test_an_exit_code_without_a_signal_is_no_death(exit_code: int) -> None:
    assert describe_death(exit_code) is None
