"""Evaluation and training images of detectors, with labelled boxes from YOLO text files or COCO JSON if there are any."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundler import console
from bundler.data.class_names import DataYaml, folder_of, read_class_list, read_data_yaml, require_count
from bundler.data.coco_annotations import AnnotatedImage, read_coco
from bundler.data.coco_folders import annotation_file, files_of
from bundler.data.image_files import read_image
from bundler.data.image_folders import Skipped, find_images, folder_problem
from bundler.data.labelled_images import HELD_OUT, Split, read_batches, read_input, sha256_of_files
from bundler.data.labels import NO_OBJECTS, Labels
from bundler.data.preprocessing import Preprocessing
from bundler.data.yolo_labels import label_path, read_yolo_labels
from bundler.errors import DataError
from bundler.visible import visible

__all__ = [
    "DetectionImage",
    "DetectionImages",
    "Labels",
    "load_detection_images",
    "load_detection_split",
]

# Folder names of Ultralytics, Roboflow, COCO and others.
TRAINING = ("images/train", "train", "images/train2017", "train2017")
VALIDATION = ("images/val", "val", "valid", "images/valid", "images/val2017", "val2017", "validation", "images/test", "test")
_YAMLS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True, kw_only=True)
class DetectionImage:
    """A network input, float32 [3, height, width], and the image's area in it: left, top, width and height in pixels."""

    pixels: NDArray[np.float32]
    frame: tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class DetectionImages:
    """Image files that are read on demand, with their labels.

    Args:
        folder: of the images.
        paths: of the images.
        label_paths: of the label files.
        labels: boxes relative to the image size (0 to 1), one for each image; None without label files.
        preprocessing: of the images.
        classes: class names, if the data has them.
        sizes: width and height in pixels for which the labels were made, if they are known.
    """

    folder: Path
    paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]
    labels: tuple[Labels, ...] | None
    preprocessing: Preprocessing
    classes: tuple[str, ...] | None = None
    sizes: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __str__(self) -> str:
        if self.labels is None:
            return f"{len(self)} images without labels (no .txt beside them or in labels/ beside images/; no COCO JSON)"
        return f"{len(self)} images with {self.labelled_boxes} labelled boxes"

    @property
    def labelled_boxes(self) -> int | None:
        return None if self.labels is None else sum(int(labels.counted.sum()) for labels in self.labels)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over the names and bytes of images and label files, in order."""
        return sha256_of_files(self.folder, (*self.paths, *self.label_paths))

    def batches(self, size: int, *, seed: int | None = None, skip: int = 0) -> Iterator[tuple[NDArray[np.float32]]]:
        """Yield batches of images, float32 [N, 3, height, width]; see `read_batches`."""
        for _, images in read_batches(self.paths, self.preprocessing, size, seed=seed, skip=skip):
            yield (images,)

    def __iter__(self) -> Iterator[DetectionImage]:
        """Yield the images in order.

        Raises:
            UnreadableImageError: an image cannot be read.
            DataError: an image has another size than its labels.
        """
        for path, expected in zip(self.paths, self.sizes or [None] * len(self.paths), strict=True):
            pixels, size = read_input(path, self.preprocessing)
            if expected is not None and size != expected:
                raise DataError(
                    f"{visible(path)} has {size[0]} x {size[1]} pixels (upright), but its annotations are for"
                    f" {expected[0]} x {expected[1]}",
                    next_step="Pass the image that was labelled, or label this one.",
                )
            yield DetectionImage(pixels=pixels, frame=self.preprocessing.frame(*size))


def load_detection_images(
    source: Path, preprocessing: Preprocessing, *, num_classes: int, class_names: Sequence[str] | None = None
) -> DetectionImages:
    """List the images of a folder, or of its validation part, with their labels.

    Labels are YOLO text files (`bundler.data.yolo_labels`); if any image has one, images without one contain no object.
    Otherwise they are a COCO JSON file (`bundler.data.coco_annotations`) beside the images or in `annotations`; images that it
    does not list are ignored. A `data.yaml` gives the validation part and the number of classes.

    Args:
        source: a folder, or its JSON or YAML file.
        preprocessing: of the images.
        num_classes: of the network.
        class_names: of the network, if they are known.

    Raises:
        DataError: there is no image, a label cannot be read or is not a class of the network, or no file has a label.
    """
    data = _open(source, num_classes)
    part = _validation(data)
    paths = _found(part or data.folder)
    coco = _coco(data, part, paths, num_classes, class_names)
    return _with_coco(data, coco, preprocessing) if coco else _with_yolo(data, paths, preprocessing, num_classes, class_names)


def load_detection_split(
    source: Path, preprocessing: Preprocessing, *, num_classes: int, seed: int, class_names: Sequence[str] | None = None
) -> Split[DetectionImages]:
    """List the images of the training part, and those that `load_detection_images` lists.

    From an undivided folder, a fifth is held out for evaluation, sampled with the seed. Labels of training images are not read.

    Raises:
        DataError: as `load_detection_images`; or one of the two parts is missing, or there is only one image.
    """
    data = _open(source, num_classes)
    training, validation = _training(data), _validation(data)
    if data.annotations is None and (training is None) != (validation is None):
        found, lacking = ("train", "val") if validation is None else ("val", "train")
        raise DataError(
            f"{visible(data.folder)} has {found}/ but no {lacking}/", next_step="Pass a folder with both, or with images only."
        )
    paths = _found(validation or data.folder)
    coco = _coco(data, validation, paths, num_classes, class_names)
    measured = tuple(coco.images) if coco else paths
    if training is not None:
        learned = tuple(path for path in _found(training) if path not in set(measured))
    else:
        learned = tuple(path for path in paths if path not in set(measured))  # images that the COCO file does not list
    if not learned:
        learned, measured = _divided(measured, data.folder, seed)
    if coco:
        coco = replace(coco, images={path: coco.images[path] for path in measured})
    return Split(
        train=DetectionImages(folder=data.folder, paths=learned, label_paths=(), labels=None, preprocessing=preprocessing),
        validation=_with_coco(data, coco, preprocessing)
        if coco
        else _with_yolo(data, measured, preprocessing, num_classes, class_names),
    )


@dataclass(frozen=True, kw_only=True)
class _Data:
    """A data folder, with its YAML or annotation file."""

    folder: Path
    yaml: DataYaml | None = None
    annotations: Path | None = None


def _open(source: Path, num_classes: int) -> _Data:
    suffix = source.suffix.lower()
    is_file = suffix in (".json", ".yaml", ".yml") and os.path.isfile(source)  # noqa: PTH113  no error for long names
    if is_file and suffix == ".json":
        inside = source.parent.name == "annotations"
        return _Data(folder=source.parent.parent if inside else source.parent, annotations=source)
    folder = source.parent if is_file else source
    problem = folder_problem(folder)
    if problem is not None:
        raise DataError(
            f"the data folder {visible(folder)} {problem}",
            next_step="Pass a folder of images, a COCO .json file, or a dataset's .yaml.",
        )
    place = source if is_file else next((folder / name for name in _YAMLS if (folder / name).is_file()), None)
    yaml = None if place is None else read_data_yaml(place)
    if yaml is not None and yaml.names is not None and place is not None:
        require_count(yaml.names, place, num_classes)
    return _Data(folder=folder, yaml=yaml)


def _training(data: _Data) -> Path | None:
    given = folder_of(data.yaml.train, data.yaml, data.folder) if data.yaml else None
    return given or next((data.folder / name for name in TRAINING if (data.folder / name).is_dir()), None)


def _validation(data: _Data) -> Path | None:
    if data.annotations is not None:
        return None  # the file selects the images
    given = folder_of(data.yaml.validation, data.yaml, data.folder) if data.yaml else None
    return given or next((data.folder / name for name in VALIDATION if (data.folder / name).is_dir()), None)


def _found(folder: Path) -> tuple[Path, ...]:
    found = find_images(folder)
    skipped = Skipped()
    skipped.add_found([found], folder)
    skipped.finish()
    if not found.paths:
        raise DataError(f"{visible(folder)} contains no image", next_step="Pass a folder of images, such as JPEG or PNG files.")
    return found.paths


def _divided(paths: tuple[Path, ...], folder: Path, seed: int) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    if len(paths) < 2:
        raise DataError(
            f"{visible(folder)} has only one image", next_step="Pass at least 2: one to train on, one for evaluation."
        )
    held_out = set(np.random.default_rng(seed).permutation(len(paths))[: max(round(len(paths) * HELD_OUT), 1)].tolist())
    return (
        tuple(path for index, path in enumerate(paths) if index not in held_out),
        tuple(path for index, path in enumerate(paths) if index in held_out),
    )


def _with_yolo(
    data: _Data,
    paths: tuple[Path, ...],
    preprocessing: Preprocessing,
    num_classes: int,
    class_names: Sequence[str] | None,
) -> DetectionImages:
    places = [label_path(path, data.folder) for path in paths]
    label_paths = tuple(place for place in places if place is not None)
    labels = None
    if label_paths:
        labels = tuple(NO_OBJECTS if place is None else read_yolo_labels(place, num_classes) for place in places)
        _require_boxes(labels, f"the {len(label_paths)} label files for the images of {visible(data.folder)}")
    names = data.yaml.names if data.yaml else None
    if names is None and label_paths:
        names = _class_list(label_paths, num_classes)
    return DetectionImages(
        folder=data.folder,
        paths=paths,
        label_paths=label_paths,
        labels=labels,
        preprocessing=preprocessing,
        classes=names or (tuple(class_names) if class_names else None),
    )


def _require_boxes(labels: Sequence[Labels], name: str) -> None:
    if not any(one.counted.any() for one in labels):
        raise DataError(
            f"{name} contain no box", next_step="Add boxes, or remove the files: INT8 is then compared with FP32 only."
        )


def _class_list(label_paths: Sequence[Path], num_classes: int) -> tuple[str, ...] | None:
    """Return the names in the `classes.txt` that labelImg writes beside labels.

    Another number of names than classes is no error, because labelImg also lists unused names.
    """
    place = label_paths[0].with_name("classes.txt")
    names = read_class_list(place) if place.is_file() else ()
    if names and len(names) != num_classes:
        console.warn(f"{visible(place)} has {len(names)} class names, but the network has {num_classes} classes")
    return names if len(names) == num_classes else None


@dataclass(frozen=True, kw_only=True)
class _Coco:
    """The annotations of a file by image."""

    path: Path
    classes: tuple[str, ...]
    images: dict[Path, AnnotatedImage]


def _with_coco(data: _Data, coco: _Coco, preprocessing: Preprocessing) -> DetectionImages:
    sizes = tuple(image.size or read_image(path).size for path, image in coco.images.items())
    where = visible(coco.path)
    labels = tuple(image.in_shares(size, where) for size, image in zip(sizes, coco.images.values(), strict=True))
    _require_boxes(labels, f"the annotations in {where}")
    return DetectionImages(
        folder=data.folder,
        paths=tuple(coco.images),
        label_paths=(coco.path,),
        labels=labels,
        preprocessing=preprocessing,
        classes=coco.classes,
        sizes=sizes,
    )


def _coco(
    data: _Data, part: Path | None, paths: tuple[Path, ...], num_classes: int, class_names: Sequence[str] | None
) -> _Coco | None:
    """Read the annotations of the images in `paths`; None if there are YOLO labels or no annotation file."""
    place = data.annotations
    if place is None and not any(label_path(path, data.folder) for path in paths):
        place = annotation_file(data.folder, part)
    if place is None:
        return None
    names = data.yaml.names if data.yaml and data.yaml.names else class_names
    annotations = read_coco(place, num_classes=num_classes, class_names=names)
    images = files_of(annotations, paths, data.folder)
    unlisted = len(paths) - len(images)
    if unlisted:
        console.detail(f"{unlisted} images are not listed in {visible(place)} and are ignored")
    return _Coco(path=place, classes=annotations.classes, images=images)
