"""The ledger of a bundle's INT8 modes in tables."""

from __future__ import annotations

from bundler import console
from bundler.manifest import LedgerPair, Manifest, StepsApart

__all__ = ["print_ledgers"]


def print_ledgers(manifest: Manifest) -> None:
    """Print, for each INT8 mode, tensor by tensor how far the executions are apart, and what that comes to."""
    for mode in manifest.modes:
        if mode.ledger is None:
            continue
        pairs = mode.ledger.pairs
        console.text_result("")
        console.text_result(
            f"{manifest.bundle}, {mode.name}: values equal / one step apart / more, on the first golden picture"
        )
        columns = [f"{pair.first} : {pair.second}" for pair in pairs]
        rows = [(tensor.layer, *(_cell(apart) for apart in tensor.apart)) for tensor in mode.ledger.tensors]
        console.table(("layer", *columns), rows)
        for pair in pairs:
            console.text_result(_in_words(pair))


def _cell(apart: StepsApart | None) -> str:
    return "-" if apart is None else f"{apart.equal} / {apart.one} / {apart.more}"


def _in_words(pair: LedgerPair) -> str:
    parted = "equal in every value" if pair.parted is None else f"differ first in {pair.parted}"
    same = "" if pair.top1_agreement is None else f"; the same top-1 on {pair.top1_agreement:.0%} of the golden pictures"
    return f"{pair.first} and {pair.second}: {parted}{same}"
