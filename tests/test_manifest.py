"""The manifest: what it calls supported, what it must hold, and its published schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.errors import BundleDamagedError
from bundler.manifest import (
    Evidence,
    FleetRecord,
    Manifest,
    PreprocessingRecord,
    QuantizationRecord,
    Verdict,
    WeightsRecord,
    json_schema,
    judge_exactness,
    judge_mode,
    read_manifest,
    write_manifest,
)

DATA = Path(__file__).parent / "data"
PUBLISHED = Path(__file__).parents[1] / "schemas" / "manifest.schema.json"
VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "not_run")


@pytest.fixture
def document() -> dict[str, Any]:
    """A manifest as this version writes it: INT8 passed on two CPUs of three, FP32 failed on one."""
    loaded: dict[str, Any] = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))
    return loaded


def evidence(*verdicts: Verdict) -> list[Evidence]:
    return [
        Evidence(cpu=f"cpu{index}", verdict=verdict, reason="" if verdict == "passed" else "why")
        for index, verdict in enumerate(verdicts)
    ]


def test_the_published_schema_is_the_codes() -> None:
    renew = "from bundler.manifest import json_schema; print(json_schema(), end='')"
    assert PUBLISHED.read_text(encoding="utf-8") == json_schema(), (
        f'renew it: .venv/bin/python -c "{renew}" > {PUBLISHED.relative_to(PUBLISHED.parents[1])}'
    )


def test_a_written_manifest_stays_readable_byte_for_byte(tmp_path: Path) -> None:
    write_manifest(read_manifest(DATA), tmp_path / "manifest.json")
    assert (tmp_path / "manifest.json").read_bytes() == (DATA / "manifest.json").read_bytes()


def test_a_manifest_from_before_other_preprocessing_is_read(tmp_path: Path, document: dict[str, Any]) -> None:
    del document["model"]["suspicions"]
    del document["model"]["preprocessing"]["channels"]
    (tmp_path / "manifest.json").write_text(json.dumps(document), encoding="utf-8")
    model = read_manifest(tmp_path).model
    assert (model.suspicions, model.preprocessing.channels) == ((), "rgb")


def test_preprocessing_is_told_in_one_line() -> None:
    given: dict[str, Any] = {"interpolation": "bilinear", "mean": (0.485, 0.5, 0), "std": (1, 1, 1 / 255)}

    def text(**changes: Any) -> str:
        return str(PreprocessingRecord(**{**given, **changes}))

    values = "(bilinear), RGB, (x/255 - [0.485, 0.5, 0]) / [1, 1, 0.00392157]"
    assert text(fit="crop", resize=256, crop=224) == f"shorter side to 256, centre 224x224 {values}"
    assert text(fit="crop", resize=(64, 96), crop=(64, 96)) == f"resized to cover 64x96, centre 64x96 {values}"
    assert text(fit="squash", resize=(64, 96), crop=(64, 96)) == f"squashed to 64x96 {values}"
    assert text(fit="squash", resize=72, crop=64) == f"squashed to 72x72, centre 64x64 {values}"
    assert text(fit="letterbox", resize=(64, 96), crop=(64, 96)) == f"letterboxed into 64x96 {values}"


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
    assert judge_mode(evidence(*verdicts)) == (supported, reason)


def test_cpus_that_did_not_run_are_grouped_by_their_reasons() -> None:
    items = [item.model_copy(update={"reason": reason}) for item, reason in zip(evidence(*["not_run"] * 3), "xyx", strict=True)]
    assert judge_mode(items) == (False, "not run on cpu0, cpu2: x; cpu1: y")


def test_without_evidence_nothing_is_supported() -> None:
    assert judge_mode([])[0] is False


@given(st.lists(st.sampled_from(VERDICTS), max_size=6))
def test_nothing_is_claimed_for_a_cpu_that_did_not_pass(verdicts: list[Verdict]) -> None:
    items = evidence(*verdicts)
    supported, reason = judge_mode(items)
    assert supported == ("passed" in verdicts and "failed" not in verdicts)
    claimed = reason.partition(";")[0] if supported else ""
    assert [item.cpu for item in items if item.cpu in claimed] == [
        item.cpu for item in items if supported and item.verdict == "passed"
    ]


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


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"\xff\xfe", b'{"schema": "edge-bundler/manifest/3"}', b"[1, 2]"])
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleDamagedError, match=r"manifest\.json is not a manifest"):
        read_manifest(tmp_path)


def test_a_manifest_of_a_later_version_is_not_half_understood(document: dict[str, Any]) -> None:
    document["schema"] = "edge-bundler/manifest/3"
    with pytest.raises(ValueError, match="schema"):
        Manifest.model_validate(document)


# Exactness


def executed(**digests: str) -> list[Evidence]:
    return [
        Evidence(cpu=cpu, verdict="passed", outputs_sha256=letter * 64)
        if letter
        else Evidence(cpu=cpu, verdict="not_run", reason="no engine")
        for cpu, letter in digests.items()
    ]


@pytest.fixture
def quantization() -> QuantizationRecord:
    record = read_manifest(DATA).modes[1].quantization
    assert record is not None
    return record


def test_the_same_bits_everywhere_are_exact_and_what_did_not_run_is_named(quantization: QuantizationRecord) -> None:
    fleet = [FleetRecord(target="x86-fbgemm", evidence=tuple(executed(native="c", Haswell="c")))]
    assert judge_exactness(quantization, executed(a53="c", a76="c"), fleet) == (True, "on a53, a76, native, Haswell")
    assert judge_exactness(quantization, executed(a53="c", a76=""), fleet) == (
        True,
        "on a53, native, Haswell; not run on a76",
    )


def test_other_bits_on_one_cpu_of_the_fleet_are_not_exact(quantization: QuantizationRecord) -> None:
    fleet = [FleetRecord(target="x86-fbgemm", evidence=tuple(executed(native="c", Haswell="d")))]
    exact, reason = judge_exactness(quantization, executed(a53="c"), fleet)
    assert not exact
    assert reason == "the bits differ: a53, native / Haswell"


def test_one_execution_or_none_shows_nothing(quantization: QuantizationRecord) -> None:
    assert judge_exactness(quantization, executed(a53="c", a76=""), []) == (False, "it was executed on a53 alone")
    assert judge_exactness(quantization, executed(a53=""), []) == (False, "it was not executed")


def test_float_arithmetic_and_saturation_stand_against_it_whatever_the_bits(quantization: QuantizationRecord) -> None:
    saturating = quantization.saturation[0].model_copy(update={"saturating_channels": 3})
    changed = quantization.model_copy(update={"float_operators": {"Sigmoid": 2}, "saturation": (saturating,)})
    exact, reason = judge_exactness(changed, executed(a53="c", a76="c"), [])
    assert not exact
    assert reason == ("computed in float: Sigmoid x2; products saturate on processors without VNNI: /features/0/0/Conv")
    assert judge_exactness(None, executed(a53="c", a76="c"), []) == (False, "it computes in float")


def test_the_name_of_a_file_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    manifest = read_manifest(DATA)
    weights = WeightsRecord(source="m\udcff\udce4.pth", sha256="a" * 64, trained=True)
    model = manifest.model.model_copy(update={"weights": weights})
    write_manifest(manifest.model_copy(update={"model": model}), tmp_path / "manifest.json")
    assert read_manifest(tmp_path).model.weights.source == r"m\udcff\udce4.pth"


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
