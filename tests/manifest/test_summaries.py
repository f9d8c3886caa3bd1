"""Summaries of records in one line."""

from __future__ import annotations

from typing import Any

from bundler.manifest import AccuracyRecord, BoxesRecord, PreprocessingRecord, summarize_accuracy, summarize_preprocessing


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


def test_accuracy_is_summarized_with_its_intervals() -> None:
    fp32 = AccuracyRecord(
        pictures=64, data_sha256="0" * 64, top1=0.5, top1_interval=(0.4, 0.6), top5=None, drop=None, drop_interval=None
    )
    assert summarize_accuracy(fp32) == "top-1 50.00% (40.0% to 60.0%)"
    int8 = fp32.changed(top5=0.75, drop=0.015, drop_interval=(-0.01, 0.04))
    expected = "top-1 50.00% (40.0% to 60.0%), top-5 75.00%, +1.50 points lost to FP32 (-1.00 to +4.00)"
    assert summarize_accuracy(int8) == expected


def test_the_agreement_of_boxes_is_summarized_with_its_interval() -> None:
    record = BoxesRecord(
        pictures=8,
        data_sha256="0" * 64,
        boxes=20,
        agreement=0.9,
        agreement_interval=(0.8, 1.0),
        labelled_boxes=None,
        map50_95=None,
        map50=None,
        drop=None,
    )
    assert summarize_accuracy(record) == "20 boxes, 90.0% agree with FP32's (80.0% to 100.0%)"
