"""What the evidence of a mode means: whether the mode is supported, and whether it is bit-exact on every CPU."""

from __future__ import annotations

from collections.abc import Sequence

from bundler.manifest.records import CrossTargetRecord, Evidence, ModeRecord, QuantizationRecord, Verdict

__all__ = ["exactness_obstacles", "judge_exactness", "judge_mode", "judged", "reference_digest"]


def judge_mode(evidence: Sequence[Evidence]) -> tuple[bool, str]:
    """Return whether a mode is supported, and why: it passed on at least one CPU and failed on none.

    The reason names every CPU that passed and every CPU that was not run, so that nothing is claimed for the latter.
    """

    def cpus(verdict: Verdict) -> list[Evidence]:
        return [item for item in evidence if item.verdict == verdict]

    def listed(items: Sequence[Evidence]) -> str:
        by_reason: dict[str, list[str]] = {}
        for item in items:
            by_reason.setdefault(item.reason, []).append(item.cpu)
        return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())

    passed, failed, not_run = cpus("passed"), cpus("failed"), cpus("not_run")
    if failed:
        return False, f"failed on {listed(failed)}"
    passed_on = f"passed on {', '.join(item.cpu for item in passed)}"
    if passed and not_run:
        return True, f"{passed_on}; not run on {listed(not_run)}"
    return (True, passed_on) if passed else (False, f"not run on {listed(not_run)}")


def judge_exactness(
    quantization: QuantizationRecord | None, evidence: Sequence[Evidence], fleet: Sequence[CrossTargetRecord]
) -> tuple[bool, str]:
    """Return whether a mode is bit-exact, and why.

    It is if its outputs had the same digest on every CPU that executed it, on at least two CPUs, and nothing in its graph can
    differ on other CPUs: no float arithmetic, no product that saturates. Otherwise the reason names the obstacles.
    """
    if quantization is None:
        return False, "it computes in float"
    against = exactness_obstacles(quantization)
    everywhere = [*evidence, *(item for record in fleet for item in record.evidence)]
    executed = [item for item in everywhere if item.outputs_sha256 is not None]
    digests: dict[str, list[str]] = {}
    for item in executed:
        digests.setdefault(str(item.outputs_sha256), []).append(item.cpu)
    if len(digests) > 1:
        against.append(f"the bits differ: {' / '.join(', '.join(cpus) for cpus in digests.values())}")
    if against:
        return False, "; ".join(against)
    if len(executed) < 2:
        return False, f"it was executed on {executed[0].cpu} alone" if executed else "it was not executed"
    left = [item.cpu for item in everywhere if item.outputs_sha256 is None]
    return True, f"on {', '.join(item.cpu for item in executed)}" + (f"; not run on {', '.join(left)}" if left else "")


def reference_digest(evidence: Sequence[Evidence], fleet: Sequence[CrossTargetRecord]) -> str | None:
    """Return the digest of the outputs with which those of other CPUs are compared; None if the mode was not executed.

    It is that of the first CPU that executed the mode, the CPUs of the bundle's own target first.
    """
    executed = (item.outputs_sha256 for item in (*evidence, *(item for record in fleet for item in record.evidence)))
    return next((digest for digest in executed if digest is not None), None)


def exactness_obstacles(quantization: QuantizationRecord) -> list[str]:
    """Return what in an INT8 graph may give different bits on another CPU; empty if nothing can."""
    obstacles = []
    if quantization.float_operators:
        operators = ", ".join(f"{name} x{count}" for name, count in quantization.float_operators.items())
        obstacles.append(f"computed in float: {operators}")
    saturating = [record.operator for record in quantization.saturation if record.saturating_channels]
    if saturating:
        more = f" and {len(saturating) - 3} more" if len(saturating) > 3 else ""
        obstacles.append(f"products saturate on processors without VNNI: {', '.join(saturating[:3])}{more}")
    return obstacles


def judged(mode: ModeRecord, evidence: Sequence[Evidence], fleet: Sequence[CrossTargetRecord]) -> ModeRecord:
    """Return the mode with other evidence; support and exactness are judged from that evidence."""
    supported, reason = judge_mode(evidence)
    exact, exact_reason = judge_exactness(mode.quantization, evidence, fleet)
    return mode.changed(
        evidence=tuple(evidence),
        fleet=tuple(fleet),
        supported=supported,
        reason=reason,
        exact=exact,
        exact_reason=exact_reason,
    )
