"""Find the COCO annotation file of a folder, and the image files that it lists."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bundler.data.coco_annotations import AnnotatedImage, CocoAnnotations
from bundler.data.image_folders import find_images, first_names
from bundler.errors import DataError
from bundler.visible import visible

__all__ = ["annotation_file", "files_of"]

_WITHOUT_BOXES = ("person_keypoints", "captions", "panoptic", "stuff", "image_info")  # prefixes of COCO's other files
_USUAL = ("annotations.json", "coco.json", "result.json", "labels.json")
_MEASURED = ("val", "valid", "validation", "val2017")


def annotation_file(folder: Path, part: Path | None) -> Path | None:
    """Return the JSON file for a part of the data, or for all of it; None if there is none.

    Raises:
        DataError: there are several.
    """
    if part is not None:
        beside = _json_files(part)
        if len(beside) == 1:
            return beside[0]
    found = [*_json_files(folder), *_json_files(folder / "annotations")]
    if len(found) > 1:
        ends = (part.name,) if part is not None else ()
        found = [path for path in found if path.stem.endswith((*ends, *_MEASURED))] or found
    if len(found) > 1:
        raise DataError(
            f"{visible(folder)} has several annotation files: {first_names(found, folder)}",
            next_step="Pass the file of the evaluated images: --data FILE.json.",
        )
    return found[0] if found else None


def _json_files(folder: Path) -> list[Path]:
    """Return files with usual names of COCO annotations; in a folder `annotations`, all JSON files."""
    found = sorted(path for path in folder.glob("*.json") if path.is_file() and not path.name.startswith(_WITHOUT_BOXES))
    if folder.name == "annotations":
        return found
    return [
        path for path in found if path.name.startswith("instances_") or path.name.endswith(".coco.json") or path.name in _USUAL
    ]


def _matched(annotations: CocoAnnotations, paths: Sequence[Path]) -> dict[str, Path]:
    """Return the image files by their names in the annotations; a unique file name matches in any folder."""
    by_name: dict[str, list[Path]] = {}
    for path in paths:
        by_name.setdefault(path.name, []).append(path)
    found: dict[str, Path] = {}
    rest: list[tuple[str, list[Path]]] = []
    for image in annotations.images:
        parts = tuple(part for part in image.file_name.replace("\\", "/").split("/") if part not in ("", "."))
        candidates = by_name.get(parts[-1] if parts else "", [])
        exact = [path for path in candidates if path.parts[-len(parts) :] == parts]
        if len(exact) > 1:
            raise DataError(
                f"{visible(annotations.path)}: two files match the name {visible(image.file_name, 100)}",
                next_step="Include the folder in file_name.",
            )
        if exact:
            found[image.file_name] = exact[0]
        else:
            rest.append((image.file_name, candidates))
    taken = set(found.values())
    found.update({name: candidates[0] for name, candidates in rest if len(candidates) == 1 and candidates[0] not in taken})
    return found


def files_of(annotations: CocoAnnotations, paths: Sequence[Path], folder: Path) -> dict[Path, AnnotatedImage]:
    """Return the annotated files among `paths`, in order, with their annotations.

    `paths` may be a part of the files in `folder`, and the annotations may include other parts.

    Raises:
        DataError: an image is not in the folder, or its name is ambiguous.
    """
    found = _matched(annotations, paths)
    missing = [image.file_name for image in annotations.images if image.file_name not in found]
    if missing:
        elsewhere = _matched(annotations, find_images(folder).paths)
        missing = [name for name in missing if name not in elsewhere]
    if missing or not found:
        named = ", ".join(visible(name, 100) for name in missing[:5]) + (", …" if len(missing) > 5 else "")
        raise DataError(
            f"{len(missing)} of the {len(annotations.images)} images of {visible(annotations.path)} are not in"
            f" {visible(folder)}{': ' if named else ''}{named}",
            next_step="Add them to the folder, or remove them from the file.",
        )
    images = {found[image.file_name]: image for image in annotations.images if image.file_name in found}
    return {path: images[path] for path in paths if path in images}
