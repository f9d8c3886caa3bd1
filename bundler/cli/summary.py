"""A bundle's modes in a few lines, for the commands that end with them."""

from __future__ import annotations

from bundler import console
from bundler.manifest import Manifest

__all__ = ["print_summary"]


def print_summary(manifest: Manifest) -> None:
    """Print what a bundle's modes are, and say in plain sight what did not run."""
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
    console.table(("mode", "supported", "exact", "size", "because it"), rows)
    for mode in manifest.modes:
        if mode.quantization:
            bits = "the same bits" if mode.exact else "bits may differ from CPU to CPU:"
            console.text_result(f"{mode.name}: {bits} {mode.exact_reason}")
        if mode.accuracy:
            console.text_result(f"{mode.name}: {mode.accuracy}")
    if manifest.image:
        console.text_result(f"image {manifest.image.reference}, {manifest.image.size / 1e6:.0f} MB, {manifest.image.digest}")
    for suspicion in manifest.model.suspicions:
        console.warn(suspicion)
    if not manifest.model.weights.trained:
        console.warn("the weights are random; this package is for trying things out")
    if manifest.verdict == "not_run":
        console.warn(
            "INCOMPLETE: not every CPU of the target has been run; `bundler verify` does it where it can (exit code 3)"
        )
