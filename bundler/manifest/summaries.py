"""One-line summaries of records, for messages, tables and the report."""

from __future__ import annotations

from bundler.manifest.records import AccuracyRecord, BoxesRecord, PreprocessingRecord

__all__ = ["summarize_accuracy", "summarize_preprocessing"]


def summarize_preprocessing(record: PreprocessingRecord) -> str:
    """Return `shorter side to 256, centre 224x224 (bilinear), RGB, (x/255 - [MEAN]) / [STD]`, or the like."""
    size, crop = _pixels(record.resize), _pixels(record.crop)
    if record.fit == "letterbox":
        fitted = f"letterboxed into {crop}"
    elif record.fit == "squash":
        fitted = f"squashed to {size}" + (f", centre {crop}" if record.crop != record.resize else "")
    else:
        fitted = f"shorter side to {record.resize}" if isinstance(record.resize, int) else f"resized to cover {size}"
        fitted += f", centre {crop}"
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (record.mean, record.std))
    return f"{fitted} ({record.interpolation}), {record.channels.upper()}, (x/255 - [{mean}]) / [{std}]"


def _pixels(pixels: int | tuple[int, int]) -> str:
    height, width = (pixels, pixels) if isinstance(pixels, int) else pixels
    return f"{height}x{width}"


def summarize_accuracy(record: AccuracyRecord | BoxesRecord) -> str:
    """Return the figures of a classifier or a detector, with 95 % intervals in parentheses."""
    return _classifier(record) if isinstance(record, AccuracyRecord) else _detector(record)


def _classifier(record: AccuracyRecord) -> str:
    low, high = record.top1_interval
    text = f"top-1 {record.top1:.2%} ({low:.1%} to {high:.1%})"
    if record.top5 is not None:
        text += f", top-5 {record.top5:.2%}"
    if record.drop is not None and record.drop_interval is not None:
        low, high = record.drop_interval
        text += f", {100 * record.drop:+.2f} points lost to FP32 ({100 * low:+.2f} to {100 * high:+.2f})"
    return text


def _detector(record: BoxesRecord) -> str:
    facts = [f"{record.boxes} boxes"]
    if record.agreement is not None and record.agreement_interval is not None:
        low, high = record.agreement_interval
        facts.append(f"{record.agreement:.1%} agree with FP32's ({low:.1%} to {high:.1%})")
    if record.map50_95 is not None:
        facts.append(f"mAP50-95 {record.map50_95:.2%}, mAP50 {record.map50:.2%}")
    if record.drop is not None:
        facts.append(f"{100 * record.drop:+.2f} points of mAP50-95 lost to FP32")
    return ", ".join(facts)
