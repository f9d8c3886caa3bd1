"""The records of the manifest: what they must hold, which names they accept, and the published schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from bundler.errors import BundleDamagedError
from bundler.manifest import Evidence, Manifest, Verdict, json_schema, read_manifest, write_manifest

DATA = Path(__file__).parents[1] / "fixtures"
PUBLISHED = Path(__file__).parents[2] / "schemas" / "manifest.schema.json"


def evidence(*verdicts: Verdict) -> list[Evidence]:
    return [
        Evidence(cpu=f"cpu{index}", verdict=verdict, reason="" if verdict == "passed" else "why")
        for index, verdict in enumerate(verdicts)
    ]


@pytest.fixture
def document() -> dict[str, Any]:
    """A manifest as this version writes it: INT8 passed on two CPUs of three, FP32 failed on one."""
    loaded: dict[str, Any] = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def test_the_published_schema_is_the_codes() -> None:
    renew = "from bundler.manifest import json_schema; print(json_schema(), end='')"
    assert PUBLISHED.read_text(encoding="utf-8") == json_schema(), (
        f'renew it: .venv/bin/python -c "{renew}" > {PUBLISHED.relative_to(PUBLISHED.parents[1])}'
    )


def test_what_a_detectors_file_says_is_written_where_there_is_something(tmp_path: Path) -> None:
    manifest = read_manifest(DATA)
    assert (manifest.model.class_names, manifest.model.weights.network) == (None, None)
    weights = manifest.model.weights.model_copy(update={"network": "activations of the checkpoint: 57 ReLU"})
    model = manifest.model.model_copy(update={"class_names": ("cat", "dog"), "weights": weights})
    told = manifest.model_copy(update={"model": model})
    write_manifest(told, tmp_path / "manifest.json")
    assert read_manifest(tmp_path) == told
    document = json.loads((tmp_path / "manifest.json").read_bytes())
    assert list(jsonschema.Draft202012Validator(json.loads(json_schema())).iter_errors(document)) == []


def test_the_schema_accepts_a_manifest_and_finds_what_is_wrong_with_others(document: dict[str, Any]) -> None:
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(document)) == []
    int8 = document["modes"][1]
    int8["evidence"][0]["verdict"] = "probably"
    int8["onnx"]["sha256"] = "short"
    del document["model"]["weights"]["trained"]
    document["image"]["digest"] = "e" * 64
    document["surprise"] = 1
    paths = {error.json_path for error in validator.iter_errors(document)}
    assert {"$", "$.model.weights"} <= paths
    assert any(path.startswith("$.image") for path in paths)
    assert any(path.startswith("$.modes[1]") for path in paths)


@pytest.mark.parametrize(
    ("where", "names"),
    [
        ((), {"schema", "model", "target", "modes", "image", "versions"}),
        (("model",), {"name", "row", "input", "output", "preprocessing", "weights"}),
        (("model", "input"), {"name", "shape"}),
        (("model", "weights"), {"source", "sha256", "trained"}),
        (("modes", 1), {"name", "supported", "reason", "scope", "onnx", "quantization", "evidence"}),
        (("modes", 1, "onnx"), {"path", "sha256", "bytes", "opset"}),
        (("modes", 1, "quantization"), {"engine", "qconfig", "calibration"}),
        (("modes", 1, "quantization", "calibration"), {"source", "count", "digest"}),
        (
            ("modes", 1, "evidence", 0),
            {"cpu", "machine", "runner", "onnxruntime", "outputs_sha256", "sqnr_db", "top1_agreement", "max_steps"}
            | {"verdict", "reason"},
        ),
        (("modes", 1, "evidence", 0, "runner"), {"kind", "name", "version"}),
        (("image",), {"reference", "digest", "size"}),
    ],
)
def test_it_holds_at_least_what_it_promises(document: dict[str, Any], where: tuple[str | int, ...], names: set[str]) -> None:
    part: Any = document
    for key in where:
        part = part[key]
    assert names <= part.keys()
    for name in names - {"reason"}:
        lacking = {key: value for key, value in part.items() if key != name}
        changed = lacking if not where else _with(document, where, lacking)
        schema_minds = not jsonschema.Draft202012Validator(json.loads(json_schema())).is_valid(changed)
        optional = where[-2:] == ("evidence", 0) and name not in ("cpu", "verdict")  # what did not run has seen nothing
        assert schema_minds != optional, name


def _with(document: Any, where: tuple[str | int, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    part = copy
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    return copy


@pytest.mark.parametrize(
    ("verdicts", "verdict"),
    [
        ((["passed"], ["passed", "passed"]), "passed"),
        ((["passed"], ["passed", "not_run"]), "not_run"),
        ((["not_run"], ["passed", "failed"]), "failed"),
        (([], []), "not_run"),
    ],
)
def test_a_bundles_verdict_is_its_worst_piece_of_evidence(verdicts: tuple[list[Verdict], list[Verdict]], verdict: str) -> None:
    manifest = read_manifest(DATA)
    modes = tuple(
        mode.model_copy(update={"evidence": tuple(evidence(*of_mode))})
        for mode, of_mode in zip(manifest.modes, verdicts, strict=True)
    )
    assert manifest.model_copy(update={"modes": modes}).verdict == verdict


def test_a_manifest_of_a_later_version_is_not_half_understood(document: dict[str, Any]) -> None:
    document["schema"] = "edge-bundler/manifest/3"
    with pytest.raises(ValueError, match="schema"):
        Manifest.model_validate(document)


def test_a_long_message_is_cut_and_control_characters_are_kept_for_those_who_print() -> None:
    assert Evidence(cpu="native", verdict="not_run", reason="\x1b[31m\n").reason == "\x1b[31m\n"
    cut = Evidence(cpu="native", verdict="not_run", reason="x" * 10**6).reason
    assert (len(cut), cut[-1]) == (20_000, "…")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("bundle",), "/srv/x"),
        (("bundle",), "../x"),
        (("bundle",), "a/b"),
        (("bundle",), "x" * 201),
        (("bundle",), "x\n"),
        (("bundle",), "x y"),
        (("bundle",), "--x"),
        (("model", "name"), "../x"),
        (("model", "name"), "X"),
        (("model", "input", "name"), "image\x1b"),
        (("target", "name"), "-x"),
        (("target", "platform"), "linux/arm64 --privileged"),
        (("modes", 0, "name"), "int4"),
        (("modes", 0, "onnx", "path"), "models/../x.onnx"),
        (("modes", 0, "onnx", "path"), "/models/x.onnx"),
        (("modes", 0, "evidence", 0, "cpu"), "-cpu"),
        (("image", "reference"), "--all"),
        (("image", "reference"), "a b"),
        (("image", "base"), "x;y"),
        (("image", "wheels", 0, "name"), "../x.whl"),
    ],
)
def test_names_have_alphabets(document: dict[str, Any], tmp_path: Path, keys: tuple[Any, ...], value: str) -> None:
    place: Any = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(BundleDamagedError, match=re.escape(".".join(map(str, keys)))):
        read_manifest(tmp_path)
