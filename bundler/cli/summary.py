"""Summary of a bundle's modes, printed at the end of `bundle` and by `inspect`."""

from __future__ import annotations

from bundler import console
from bundler.manifest import Manifest, summarize_accuracy

__all__ = ["print_summary"]


def print_summary(manifest: Manifest) -> None:
    """Print a table of a bundle's modes, their accuracy and the image, and warn if not every CPU was run."""
    rows = [
        (
            mode.name,
            "yes" if mode.supported else "NO",
            "yes" if mode.exact else "no",
            f"{mode.onnx.bytes / 1e6:.1f} MB",
            mode.reason,
        )
        for mode in manifest.modes
    ]
    console.table(("mode", "supported", "exact", "size", "reason"), rows)
    for mode in manifest.modes:
        if mode.quantization:
            bits = "bit-exact" if mode.exact else "not bit-exact:"
            console.text_result(f"{mode.name}: {bits} {mode.exact_reason}")
        if mode.accuracy:
            console.text_result(f"{mode.name}: {summarize_accuracy(mode.accuracy)}")
    if manifest.image:
        console.text_result(f"image {manifest.image.reference}, {manifest.image.size / 1e6:.0f} MB, {manifest.image.digest}")
    for suspicion in manifest.model.suspicions:
        console.warn(suspicion)
    if not manifest.model.weights.trained:
        console.warn("using random weights: predictions are meaningless")
    if manifest.verdict == "not_run":
        console.warn(
            "INCOMPLETE: not every CPU of the target was run; run `bundler verify` on a machine that can run them (exit code 3)"
        )
