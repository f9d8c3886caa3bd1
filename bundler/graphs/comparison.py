"""How far two sets of outputs are apart, and whether they can reveal an error: the functions of the device program."""

from __future__ import annotations

from bundler.device.numerics import informative_problem, sqnr_db, top1_agreement

__all__ = ["informative_problem", "sqnr_db", "top1_agreement"]
