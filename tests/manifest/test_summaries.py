"""Summaries of records in one line."""

from __future__ import annotations

from typing import Any

from bundler.manifest import PreprocessingRecord, summarize_preprocessing


def test_preprocessing_is_told_in_one_line() -> None:
    given: dict[str, Any] = {"interpolation": "bilinear", "mean": (0.485, 0.5, 0), "std": (1, 1, 1 / 255)}

    def text(**changes: Any) -> str:
        return summarize_preprocessing(PreprocessingRecord(**{**given, **changes}))

    values = "(bilinear), RGB, (x/255 - [0.485, 0.5, 0]) / [1, 1, 0.00392157]"
    assert text(fit="crop", resize=256, crop=224) == f"shorter side to 256, centre 224x224 {values}"
    assert text(fit="crop", resize=(64, 96), crop=(64, 96)) == f"resized to cover 64x96, centre 64x96 {values}"
    assert text(fit="squash", resize=(64, 96), crop=(64, 96)) == f"squashed to 64x96 {values}"
    assert text(fit="squash", resize=72, crop=64) == f"squashed to 72x72, centre 64x64 {values}"
    assert text(fit="letterbox", resize=(64, 96), crop=(64, 96)) == f"letterboxed into 64x96 {values}"
