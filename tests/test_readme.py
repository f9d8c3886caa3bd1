from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(HERE / "scope_table.py"))


def test_the_scope_table_is_the_registrys(script: dict[str, Any]) -> None:
    _, table, after = script["parts"]((HERE.parent / "README.md").read_text(encoding="utf-8"))
    assert after
    assert table == script["scope_table"]()
    assert len(table.splitlines()) == 2 + 26
