"""What happens to recorded evidence when a mode is executed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundler.device.runner_json import ModeName
from bundler.manifest import CrossTargetRecord, Evidence, ModeRecord, RunnerRecord, read_manifest
from bundler.verification.renewal import renew

NATIVE = RunnerRecord(kind="native", name="a CPU", version="")
OTHER = RunnerRecord(kind="native", name="another CPU", version="")
SEEN = Evidence(
    cpu="native",
    verdict="passed",
    machine="x86_64",
    place="container",
    runner=NATIVE,
    numpy="2.4.6",
    onnxruntime="1.32.0",
    graph_optimization_level="all",
    samples=4,
    image_digest=f"sha256:{'1' * 64}",
    bundle_sha256="2" * 64,
    model_sha256="3" * 64,
    outputs_sha256="4" * 64,
    sqnr_db=30.0,
    top1_agreement=1.0,
    max_steps=0,
)


def mode(name: str, *evidence: Evidence) -> ModeRecord:
    found = next(item for item in read_manifest(Path(__file__).parents[1] / "fixtures").modes if item.name == name)
    return found.model_copy(update={"evidence": evidence, "fleet": ()})


def changed(**changes: Any) -> Evidence:
    return SEEN.model_copy(update=changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs_sha256": "5" * 64},
        {"sqnr_db": 60.0},
        {"top1_agreement": 0.5},
        {"max_steps": 1},
        {"verdict": "failed", "reason": "too far"},
    ],
    ids=["outputs", "sqnr", "top1", "steps", "verdict"],
)
@pytest.mark.parametrize("name", ["fp32", "int8-ptq"])
def test_a_record_that_is_false_is_replaced_and_named(name: ModeName, changes: dict[str, Any]) -> None:
    recorded, seen = SEEN, changed(**changes)
    (renewed,), (contradiction,) = renew([mode(name, recorded)], {name: [seen]}, {})
    assert renewed.evidence == (seen,)
    assert (contradiction.recorded, contradiction.seen) == (recorded, seen)
    assert f"{name} on native" in str(contradiction)
    assert renewed.supported == (seen.verdict == "passed")


@pytest.mark.parametrize("recorded", ["passed", "failed"])
def test_what_could_not_be_executed_replaces_nothing(recorded: str) -> None:
    old = changed(verdict=recorded, reason="x")
    (renewed,), contradictions = renew(
        [mode("int8-ptq", old)], {"int8-ptq": [Evidence(cpu="native", verdict="not_run", reason="no engine")]}, {}
    )
    assert (renewed.evidence, contradictions) == ((old,), ())


@pytest.mark.parametrize(
    "old",
    [
        Evidence(cpu="native", verdict="not_run", reason="no engine"),
        changed(verdict="failed", reason="too far"),
        changed(image_digest=None, bundle_sha256=None, model_sha256=None),
    ],
    ids=["not run", "failed", "of an older version"],
)
def test_what_says_more_is_added_without_a_contradiction(old: Evidence) -> None:
    (renewed,), contradictions = renew([mode("int8-ptq", old)], {"int8-ptq": [SEEN]}, {})
    assert (renewed.evidence, contradictions) == ((SEEN,), ())
    assert renewed.supported


def test_floating_point_may_differ_on_another_cpu_but_int8_claims_equal_bits() -> None:
    seen = changed(runner=OTHER, outputs_sha256="5" * 64)
    (float_mode,), none = renew([mode("fp32", SEEN)], {"fp32": [seen]}, {})
    assert (float_mode.evidence, none) == ((SEEN,), ())
    (int8,), (contradiction,) = renew([mode("int8-ptq", SEEN)], {"int8-ptq": [seen]}, {})
    assert int8.evidence == (seen,)
    assert "outputs 444444444444 are recorded, 555555555555 were computed now" in str(contradiction)


def test_the_evidence_of_other_targets_is_judged_alike_and_decides_exactness() -> None:
    record = CrossTargetRecord(target="arm64-qnnpack", evidence=(changed(cpu="max"),))
    recorded = mode("int8-ptq", SEEN).model_copy(update={"fleet": (record,), "quantization": _without_obstacles()})
    (same,), _ = renew([recorded], {"int8-ptq": [SEEN]}, {"int8-ptq": [record]})
    assert same.exact
    false = CrossTargetRecord(target="arm64-qnnpack", evidence=(changed(cpu="max", outputs_sha256="6" * 64),))
    (renewed,), (contradiction,) = renew([recorded], {"int8-ptq": [SEEN]}, {"int8-ptq": [false]})
    assert contradiction.cpu == "max"
    assert not renewed.exact
    assert "the bits differ" in renewed.exact_reason


def _without_obstacles() -> Any:
    quantization = mode("int8-ptq").quantization
    assert quantization is not None
    return quantization.model_copy(update={"float_operators": {}, "saturation": ()})


def test_cpus_that_were_not_looked_at_keep_their_record() -> None:
    other = changed(cpu="Haswell")
    (renewed,), _ = renew([mode("int8-ptq", SEEN, other)], {"int8-ptq": [SEEN]}, {})
    assert renewed.evidence == (SEEN, other)
