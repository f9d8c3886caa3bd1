"""The manifest: what it calls supported, and its published schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundler.errors import BundleDamagedError
from bundler.manifest import Evidence, Verdict, json_schema, judge_mode, read_manifest

PUBLISHED = Path(__file__).parents[1] / "schemas" / "manifest.schema.json"


def test_the_published_schema_is_the_codes() -> None:
    """Renew it with `python -c "from bundler.manifest import json_schema; print(json_schema(), end='')"`."""
    assert PUBLISHED.read_text() == json_schema()


@pytest.mark.parametrize(
    ("verdicts", "supported", "reason"),
    [
        (["passed", "passed"], True, "passed on cpu0, cpu1"),
        (["passed", "not_run"], True, "passed on cpu0; not run on cpu1: why"),
        (["not_run", "not_run"], False, "not run on cpu0, cpu1: why"),
        (["passed", "failed"], False, "failed on cpu1: why"),
        (["not_run", "failed"], False, "failed on cpu1: why"),
    ],
)
def test_a_mode_is_supported_where_it_passed_and_failed_nowhere(verdicts: list[Verdict], supported: bool, reason: str) -> None:
    evidence = [
        Evidence(cpu=f"cpu{index}", verdict=verdict, reason="" if verdict == "passed" else "why")
        for index, verdict in enumerate(verdicts)
    ]
    assert judge_mode(evidence) == (supported, reason)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"schema": "edge-bundler/manifest/2"}'])
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleDamagedError, match=r"manifest\.json is not a manifest"):
        read_manifest(tmp_path)
