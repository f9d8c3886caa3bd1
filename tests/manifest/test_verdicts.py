"""What evidence means: which modes are supported, and which are bit-exact."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bundler.manifest import (
    CrossTargetRecord,
    Evidence,
    QuantizationRecord,
    Verdict,
    judge_exactness,
    judge_mode,
    read_manifest,
    reference_digest,
)

DATA = Path(__file__).parents[1] / "fixtures"
VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "not_run")


def evidence(*verdicts: Verdict) -> list[Evidence]:
    return [
        Evidence(cpu=f"cpu{index}", verdict=verdict, reason="" if verdict == "passed" else "why")
        for index, verdict in enumerate(verdicts)
    ]


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
    items = [
        item.model_copy(update={"reason": reason})
        for item, reason in zip(evidence("not_run", "not_run", "not_run"), "xyx", strict=True)
    ]
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
    fleet = [CrossTargetRecord(target="x86-fbgemm", evidence=tuple(executed(native="c", Haswell="c")))]
    assert judge_exactness(quantization, executed(a53="c", a76="c"), fleet) == (True, "on a53, a76, native, Haswell")
    assert judge_exactness(quantization, executed(a53="c", a76=""), fleet) == (
        True,
        "on a53, native, Haswell; not run on a76",
    )


def test_other_bits_on_one_cpu_of_the_fleet_are_not_exact(quantization: QuantizationRecord) -> None:
    fleet = [CrossTargetRecord(target="x86-fbgemm", evidence=tuple(executed(native="c", Haswell="d")))]
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


def test_the_reference_is_the_first_execution_and_the_targets_own_cpus_come_first() -> None:
    fleet = [CrossTargetRecord(target="x86-fbgemm", evidence=tuple(executed(native="d")))]
    assert reference_digest(executed(a53="", a76="c"), fleet) == "c" * 64
    assert reference_digest(executed(a53=""), fleet) == "d" * 64
    assert reference_digest([], []) is None


def test_a_changed_record_is_validated() -> None:
    record = executed(a53="c")[0]
    assert record.changed(reason="why").reason == "why"
    with pytest.raises(ValidationError, match="verdict"):
        record.changed(verdict="probably")
