"""Recorded evidence against new evidence: what is added, and which records are contradicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bundler.manifest import CrossTargetRecord, Evidence, ModeRecord, judged
from bundler.models.specs import Mode

__all__ = ["Contradiction", "renew"]

# If these are equal, two executions give the same outputs. Other CPUs and runtimes may differ in floating point.
_CIRCUMSTANCES = ("machine", "runner", "numpy", "onnxruntime", "graph_optimization_level", "samples", "model_sha256")
_RESULTS = ("verdict", "outputs_sha256", "sqnr_db", "top1_agreement", "boxes_agreement", "max_steps")


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A record that a new execution contradicts; the new record replaces it."""

    mode: str
    cpu: str
    recorded: Evidence
    seen: Evidence

    def __str__(self) -> str:
        if self.recorded.verdict != self.seen.verdict:
            return f"{self.mode} on {self.cpu}: recorded as {self.recorded.verdict}, now {self.seen.verdict}"
        recorded, seen = (str(item.outputs_sha256)[:12] for item in (self.recorded, self.seen))
        if recorded != seen:
            return f"{self.mode} on {self.cpu}: outputs {recorded} are recorded, {seen} were computed now"
        changed = [name for name in _RESULTS if getattr(self.recorded, name) != getattr(self.seen, name)]
        return f"{self.mode} on {self.cpu}: the recorded {', '.join(changed)} differs from what was measured now"


def renew(
    modes: Sequence[ModeRecord], seen: Mapping[Mode, Sequence[Evidence]], fleet: Mapping[Mode, Sequence[CrossTargetRecord]]
) -> tuple[tuple[ModeRecord, ...], tuple[Contradiction, ...]]:
    """Return the modes with their renewed evidence, and the contradicted records.

    A `not_run` record replaces nothing. An execution replaces a `not_run` record, a failure that passes now, and a record that
    it contradicts: another verdict, or other results under the same circumstances (for an INT8 mode, which claims to be
    bit-exact, under any circumstances). Support and exactness are judged from the renewed evidence.
    """
    contradictions: list[Contradiction] = []
    renewed = []
    for mode in modes:
        evidence = _merged(mode, mode.evidence, seen.get(mode.name, ()), contradictions)
        recorded = {record.target: record.evidence for record in mode.fleet}
        for record in fleet.get(mode.name, ()):
            recorded[record.target] = _merged(mode, recorded.get(record.target, ()), record.evidence, contradictions)
        others = tuple(CrossTargetRecord(target=name, evidence=items) for name, items in recorded.items())
        renewed.append(judged(mode, evidence, others))
    return tuple(renewed), tuple(contradictions)


def _merged(
    mode: ModeRecord, recorded: Sequence[Evidence], seen: Sequence[Evidence], contradictions: list[Contradiction]
) -> tuple[Evidence, ...]:
    """Return one record for each CPU, including CPUs that were not executed again."""
    by_cpu = {item.cpu: item for item in recorded}
    for new in seen:
        old = by_cpu.get(new.cpu)
        if old is not None and _contradicts(old, new, exact=mode.quantization is not None):
            contradictions.append(Contradiction(mode=mode.name, cpu=new.cpu, recorded=old, seen=new))
            by_cpu[new.cpu] = new
        elif old is None or _adds(old, new):
            by_cpu[new.cpu] = new
    return tuple(by_cpu.values())


def _contradicts(old: Evidence, new: Evidence, *, exact: bool) -> bool:
    if "not_run" in (old.verdict, new.verdict) or (old.verdict, new.verdict) == ("failed", "passed"):
        return False
    if old.verdict != new.verdict:
        return True
    if all(getattr(old, name) in (None, getattr(new, name)) for name in _CIRCUMSTANCES):
        return any(getattr(old, name) != getattr(new, name) for name in _RESULTS)
    return exact and old.outputs_sha256 != new.outputs_sha256


def _adds(old: Evidence, new: Evidence) -> bool:
    """Return whether `new` states more than `old`: an execution, a pass, or the digest of the executed model."""
    if new.verdict == "not_run":
        return False
    return (old.verdict, new.verdict) in {("not_run", "passed"), ("not_run", "failed"), ("failed", "passed")} or (
        old.model_sha256 is None and new.model_sha256 is not None
    )
