"""Layer-wise comparison of a bundle's INT8 modes, as tables."""

from __future__ import annotations

from bundler import console
from bundler.manifest import ExecutionPair, Manifest, StepDifferences

__all__ = ["print_comparisons"]


def print_comparisons(manifest: Manifest) -> None:
    """Print the layer-wise comparison of each INT8 mode, and one line for each pair of executions."""
    for mode in manifest.modes:
        if mode.ledger is None:
            continue
        pairs = mode.ledger.pairs
        console.text_result("")
        console.text_result(
            f"{manifest.bundle}, {mode.name}: values that are equal / differ by one step / by more, on the first golden input"
        )
        columns = [f"{pair.first} : {pair.second}" for pair in pairs]
        rows = [(tensor.layer, *(_cell(apart) for apart in tensor.apart)) for tensor in mode.ledger.tensors]
        console.table(("layer", *columns), rows)
        for pair in pairs:
            console.text_result(_in_words(pair))


def _cell(apart: StepDifferences | None) -> str:
    return "-" if apart is None else f"{apart.equal} / {apart.one} / {apart.more}"


def _in_words(pair: ExecutionPair) -> str:
    differ = "equal in every value" if pair.parted is None else f"first differ in {pair.parted}"
    same = "" if pair.top1_agreement is None else f"; same top-1 on {pair.top1_agreement:.0%} of the golden inputs"
    return f"{pair.first} and {pair.second}: {differ}{same}"
