"""The summary of a bundle, for the commands that end with it."""

from __future__ import annotations

from bundler import console
from bundler.manifest import Manifest

__all__ = ["print_summary"]


def print_summary(manifest: Manifest) -> None:
    """Print the modes of a bundle, their accuracy, the device image, and warnings."""
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
    console.table(("mode", "supported", "bit-exact", "size", "reason"), rows)
    for mode in manifest.modes:
        if mode.quantization:
            bits = "bit-exact" if mode.exact else "not bit-exact:"
            console.text_result(f"{mode.name}: {bits} {mode.exact_reason}")
        if mode.accuracy:
            console.text_result(f"{mode.name}: {mode.accuracy}")
    if manifest.image:
        console.text_result(f"image {manifest.image.reference}, {manifest.image.size / 1e6:.0f} MB, {manifest.image.digest}")
    for suspicion in manifest.model.suspicions:
        console.warn(suspicion)
    if not manifest.model.weights.trained:
        console.warn("the weights are random: predictions are meaningless; use this bundle for tests only")
    if manifest.verdict == "not_run":
        console.warn(
            "INCOMPLETE: not every CPU of the target was executed; run `bundler verify` on a machine that can (exit code 3)"
        )
