"""Whether there is a container engine, and why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundler.engines.engine_availability import NoEngine, available_engine


def test_where_none_answers_the_reason_and_the_next_step_are_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/engine.sock")
    with available_engine() as engine:
        assert isinstance(engine, NoEngine)
        assert f"{tmp_path}/engine.sock" in engine.reason
        assert engine.next_step
