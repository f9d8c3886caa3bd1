"""Inference on prepared images: the five best classes, or the detections, of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .bundle_files import Bundle
from .detection_options import DetectionOptions
from .detections import Detections, detect
from .device_error import UNUSABLE, WRONG, DeviceError
from .mode_runs import load_array, load_mode, report_progress, run_image
from .runner_json import BundleMode
from .sessions import require_onnxruntime
from .tables import table

__all__ = ["Inference", "run_inference"]

RUN_SCHEMA: Final = "edge-bundler/run/1"
CLASS_COLUMNS: Final = ("class", "logit", "probability")
BOX_COLUMNS: Final = ("class", "score", "left", "top", "right", "bottom")


@dataclass(frozen=True, kw_only=True)
class Inference:
    """The results as a JSON document, and as a table."""

    document: dict[str, Any]
    lines: list[str]


def run_inference(bundle: Bundle, mode: BundleMode, options: DetectionOptions, names: Sequence[str]) -> Inference:
    """Run a mode on each image of the .npy files.

    Raises:
        DeviceError: a file is not an array that the model takes, the model cannot be run, or its outputs are not finite.
    """
    shape: tuple[int, int, int] = load_array(bundle, bundle.document.golden.inputs).shape[1:]
    batches = [(name, read_images(name, shape)) for name in names]
    require_onnxruntime(bundle.document)
    model = load_mode(bundle, mode)
    detecting = bundle.document.task == "detection"
    results: list[dict[str, Any]] = []
    rows: list[list[str]] = [["file", "image", *(BOX_COLUMNS if detecting else CLASS_COLUMNS)]]
    for name, batch in batches:
        for index, image in enumerate(batch):
            report_progress(mode, index + 1, len(batch))
            output = run_image(bundle.document, model, image[None])
            if not np.isfinite(output).all():
                next_step = "Run `python3 device.pyz selftest` on this machine."
                raise DeviceError(WRONG, f"the outputs of {mode.name} are not finite", next_step)
            if detecting:
                require_known_classes(options, output.shape[2] - 5)
                found = clipped(detect(output[0], **asdict(options)), *shape[1:])
                results.append({"file": name, "picture": index, "detections": found})
                cells = detection_cells(found, options.confidence)
            else:
                top5 = best_classes(output)
                results.append({"file": name, "picture": index, "top5": top5})
                cells = class_cells(top5)
            rows += [[name, str(index), *row] for row in cells]
    document = {"schema": RUN_SCHEMA, "bundle": bundle.document.bundle, "mode": mode.name, "results": results}
    return Inference(document=document, lines=table(rows))


def read_images(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the images [N, *shape] of a .npy file.

    Raises:
        DeviceError: it does not hold such an array of finite float32 numbers.
    """
    wanted = f"a float32 array of shape {list(shape)} or [N, {', '.join(map(str, shape))}]"
    try:
        array: NDArray[Any] = np.load(name, allow_pickle=False)
        what = f"{array.dtype} of shape {list(array.shape)}"
    except (OSError, ValueError, EOFError, AttributeError) as error:
        raise DeviceError(UNUSABLE, f"{name} cannot be read: {error}", f"Save {wanted} with numpy.save.") from error
    if array.dtype != np.float32 or array.shape[-3:] != shape or array.ndim not in (3, 4) or array.size == 0:
        next_step = f"This bundle takes {wanted}; README.md shows how to make one."
        raise DeviceError(UNUSABLE, f"{name} is {what}", next_step)
    if not np.isfinite(array).all():
        raise DeviceError(UNUSABLE, f"{name} holds values that are not finite", "Check how the image was normalised.")
    images: NDArray[np.float32] = array.reshape(-1, *shape)
    return images


def require_known_classes(options: DetectionOptions, count: int) -> None:
    unknown = [number for number in options.classes or () if number >= count]
    if unknown:
        message = f"--classes has {unknown[0]}, and this detector has classes 0 to {count - 1}"
        raise DeviceError(UNUSABLE, message, "Choose among those.")


def best_classes(logits: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return the five classes with the highest logits [1, classes], best first, with their softmax probabilities."""
    if logits.ndim != 2:
        reason = f"the output has shape {list(logits.shape)}, not one score per class"
        raise DeviceError(UNUSABLE, reason, "`run` is for classifiers and detectors.")
    scores = logits[0].astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    best = np.argsort(-scores, kind="stable")[:5]
    return [{"class": int(index), "logit": float(scores[index]), "probability": float(shares[index])} for index in best]


def clipped(found: Detections, height: int, width: int) -> list[dict[str, Any]]:
    """Return detections with boxes cut off at the edges of the input."""
    boxes = found.boxes.clip(0, [width, height, width, height]).tolist()
    return [{"class": int(found.classes[i]), "score": float(found.scores[i]), "box": box} for i, box in enumerate(boxes)]


def class_cells(top5: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [[str(one["class"]), f"{one['logit']:.4f}", f"{one['probability']:.1%}"] for one in top5]


def detection_cells(found: Sequence[dict[str, Any]], confidence: float) -> list[list[str]]:
    rows = [[str(one["class"]), f"{one['score']:.4f}", *(f"{edge:.1f}" for edge in one["box"])] for one in found]
    return rows or [[f"nothing above {confidence:g}", *[""] * (len(BOX_COLUMNS) - 1)]]
