"""The documents of a bundle, rendered from its manifest: README, report, Dockerfile, compose file, unit, requirements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from packaging.version import Version

from bundler.files.sha256 import sha256_of
from bundler.graphs.runtime_versions import NUMPY_MINIMUM
from bundler.manifest import Manifest, reference_digest, summarize_accuracy, write_manifest
from bundler.packaging.checksums import write_checksums
from bundler.packaging.layer_plot import plot_layers
from bundler.packaging.rendering import markdown, render
from bundler.targets import TargetProfile

__all__ = ["write_documents"]

_FREE_TEXT = frozenset({"reason", "exact_reason", "machine", "source", "detail", "step", "row"})


def write_documents(bundle: Path, manifest: Manifest, target: TargetProfile, *, image_reference: str) -> None:
    """Write the rendered documents, the manifest, and the checksums of all files."""
    context = _context(manifest)
    context["image"] = {
        "reference": image_reference,
        "user": target.image.user,
        "bundle_sha256": sha256_of(bundle / "runner.json"),
    }
    context["runtime"] = target.runtime.model_dump()
    context["minimum"] = _minimum(manifest)
    context["timeout_seconds"] = target.verification.timeout_seconds
    for template, name in (
        ("Dockerfile.j2", "Dockerfile"),
        ("compose.yaml.j2", "compose.yaml"),
        ("requirements.txt.j2", "requirements.txt"),
        ("systemd.service.j2", f"{manifest.bundle}.service"),
        ("README.md.j2", "README.md"),
        ("report.html.j2", "report.html"),
    ):
        inserted = _in_markdown(context) if template == "README.md.j2" else context
        (bundle / name).write_text(render(template, inserted), encoding="utf-8")
    write_manifest(manifest, bundle / "manifest.json")
    write_checksums(bundle)


def _in_markdown(value: Any) -> Any:
    """Return the context with its free text escaped; names need none (bundler/manifest/records.py restricts them)."""
    if isinstance(value, dict):
        return {
            key: markdown(item) if key in _FREE_TEXT and isinstance(item, str) else _in_markdown(item)
            for key, item in value.items()
        }
    return [_in_markdown(item) for item in value] if isinstance(value, list | tuple) else value


def _minimum(manifest: Manifest) -> dict[str, str] | None:
    """Return the oldest releases that execute every mode; None if one is unknown."""
    versions = [mode.onnx.onnxruntime_minimum for mode in manifest.modes]
    known = [version for version in versions if version is not None]
    if len(known) < len(versions):
        return None
    return {"numpy": NUMPY_MINIMUM, "onnxruntime": max(known, key=Version)}


def _context(manifest: Manifest) -> dict[str, Any]:
    record = manifest.model_dump(by_alias=True)
    model = record["model"]
    quantized = [mode["quantization"] for mode in record["modes"] if mode["quantization"]]
    calibrated = [item["calibration"] for item in quantized if item["calibration"]]
    trained = [item["training"] for item in quantized if item["training"]]
    return {
        "bundle": manifest.bundle,
        "manifest": manifest,
        "accuracy": {mode.name: summarize_accuracy(mode.accuracy) for mode in manifest.modes if mode.accuracy},
        "plots": {mode.name: plot_layers(mode.quantization.layers) for mode in manifest.modes if mode.quantization},
        "model": {"name": model["name"], "task": model["task"]},
        "target": record["target"],
        "modes": [
            {
                **mode,
                "path": mode["onnx"]["path"],
                "bytes": mode["onnx"]["bytes"],
                "bits": reference_digest(mode_record.evidence, mode_record.fleet),
                "accuracy_text": summarize_accuracy(mode_record.accuracy) if mode_record.accuracy else None,
            }
            for mode, mode_record in zip(record["modes"], manifest.modes, strict=True)
        ],
        "input": {**model["input"], "shape": model["input"]["shape"][1:]},
        "output": {"name": model["output"]["name"], "classes": model["num_classes"]},
        "preprocessing": model["preprocessing"],
        "suspicions": [markdown(text) for text in manifest.model.suspicions],
        "weights": model["weights"],
        "calibration": calibrated[0] if calibrated else None,
        "training": trained[0] if trained else None,
    }
