"""runner.json: its schema version and the types of its values are checked, and what is written is read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from bundler.device.runner_json import RUNNER_SCHEMA, DocumentError, RunnerDocument, parse_runner_document
from bundler.packaging import runner_document

from .conftest import TinyBundle


@pytest.fixture
def value(bundle: TinyBundle) -> dict[str, Any]:
    return bundle.config


def test_what_is_written_is_read_again(value: dict[str, Any]) -> None:
    document = parse_runner_document(value)
    assert parse_runner_document(json.loads(document.to_json())) == document
    assert document.opened | {"golden/fp32.npy"} == document.files.keys()
    assert document.schema == RUNNER_SCHEMA


def test_a_later_document_may_have_more_keys(value: dict[str, Any]) -> None:
    assert parse_runner_document({**value, "later": 1}) == parse_runner_document(value)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda d: d.update(schema="edge-bundler/runner/1"),
            "its schema is 'edge-bundler/runner/1', not 'edge-bundler/runner/2'",
        ),
        (lambda d: d.pop("schema"), "it lacks schema"),
        (lambda d: d.pop("task"), "it lacks task"),
        (lambda d: d.update(task="segmentation"), "its task is 'segmentation', not classification or detection"),
        (lambda d: d.update(task=[]), "its task is [], not classification or detection"),
        (lambda d: d.update(graph_optimization_level="some"), "graph_optimization_level is 'some', not disabled or basic or"),
        (lambda d: d["golden"].pop("reference"), "it lacks golden.reference"),
        (lambda d: d.update(golden=[]), "golden is not a JSON object"),
        (lambda d: d.update(modes={}), "modes is not a list"),
        (lambda d: d["modes"].append(7), "modes[2] is not a JSON object"),
        (lambda d: d["modes"][0].update(samples=True), "modes[0].samples is True, not an integer"),
        (lambda d: d["modes"][0].update(samples=0), "modes[0].samples is 0, not 1 or more"),
        (lambda d: d["modes"][1].update(step="1"), "modes[1].step is '1', not a finite number"),
        (lambda d: d["modes"][1].pop("expected_sqnr_db"), "it lacks modes[1].expected_sqnr_db"),
        (lambda d: d["tolerances"].update(sqnr_loss_db=float("nan")), "tolerances.sqnr_loss_db is nan, not a finite number"),
        (lambda d: d["files"].update({"x": None}), "files.x is None, not a text"),
        (lambda d: d.update(bundle=["\x1b[31m" * 1000]), "bundle is ['\\x1b[31m"),
    ],
)
def test_a_document_of_another_shape_is_refused(value: dict[str, Any], change: Change, reason: str) -> None:
    change(value)
    with pytest.raises(DocumentError) as error:
        parse_runner_document(value)
    assert str(error.value).startswith(reason)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"schema": "edge-bundler/runner/1"}', "{}"])
def test_the_program_refuses_an_unusable_runner_json(bundle: TinyBundle, text: str) -> None:
    (bundle.root / "runner.json").write_text(text)
    for command in ("selftest", "info"):
        done = bundle.run(command)
        assert done.returncode == 3
        assert "runner.json is not usable: " in done.stderr
        assert "Traceback" not in done.stderr


def test_the_build_host_bounds_every_key_of_the_document() -> None:
    """What the host refuses and what the device reads have the same names."""

    def compare(bounded: type[BaseModel], read: type) -> None:
        names = {field.alias or name: field.annotation for name, field in bounded.model_fields.items()}
        assert names.keys() == {field.name for field in fields(read)}

    compare(runner_document._Document, RunnerDocument)
    for bounded, name in (("_GoldenFiles", "GoldenFiles"), ("_KnownAnswerFiles", "KnownAnswerFiles"), ("_Mode", "BundleMode")):
        read = getattr(__import__("bundler.device.runner_json", fromlist=[name]), name)
        assert isinstance(read, type)
        assert is_dataclass(read)
        compare(getattr(runner_document, bounded), read)
