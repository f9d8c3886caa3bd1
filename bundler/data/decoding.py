"""Decode the bytes of one image file to upright 8-bit RGB, within limits; run as a program, in a process of its own.

`bundler.data.image_files` starts this file as a child process: decoders are written in C, and their input is anybody's. It
imports nothing of bundler, so that the child is small and starts in a tenth of a second.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import resource
import struct
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "MAX_ASPECT_RATIO",
    "MAX_CPU_SECONDS",
    "MAX_MEMORY",
    "MAX_PIXELS",
    "START_BYTES",
    "UndecodableError",
    "bands",
    "decode",
    "format_of",
    "what_it_is",
]

MAX_PIXELS = 100_000_000  # of an image, from its header; Pillow keeps 4 bytes for each pixel of RGB
MAX_ASPECT_RATIO = 50  # of the longer side to the shorter: resizing 1 x 40,000 pixels to 224 wide takes 8 GB
MAX_MEMORY = 2 << 30  # bytes of the child's address space; a progressive CMYK JPEG of 100 megapixels takes 1.2 GB
MAX_CPU_SECONDS = 30  # for one image; an AVIF of 100 megapixels takes 5
BAND_BYTES = 1 << 26  # of pixels that are copied at a time
START_BYTES = 512  # of a file, from which its format is recognized

_MIB = 1 << 20
_EIGHT_BIT = frozenset({"1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_UPRIGHT = {  # by the value of EXIF's Orientation; 1 is upright already
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITMAP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})  # their lengths, by the versions of BMP
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image: run `git lfs pull`"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000 is not supported; convert it to PNG"),
    (b"\xff\x4f\xff\x51", "JPEG 2000 is not supported; convert it to PNG"),
    (b"\0\0\0\x0cJXL ", "JPEG XL is not supported; convert it to PNG"),
    (b"\xff\x0a", "JPEG XL is not supported; convert it to PNG"),
    (b"%!PS", "PostScript is not supported; convert it to PNG"),
    (b"\xc5\xd0\xd3\xc6", "PostScript is not supported; convert it to PNG"),
    (b"%PDF", "PDF is not supported; convert it to PNG"),
    (b"8BPS", "Photoshop's format is not supported; convert it to PNG"),
    (b"\x76\x2f\x31\x01", "OpenEXR is not supported; convert it to PNG"),
    (b"SIMPLE  =", "FITS is not supported; convert it to TIFF"),
    (b"\0\0\1\0", "an icon is not supported; convert it to PNG"),
    (b"\x93NUMPY", "it is a NumPy array, not an image"),
    (b"PK\3\4", "it is a ZIP archive, not an image"),
    (b"\x1f\x8b", "it is compressed with gzip"),
    (b"\x1aE\xdf\xa3", "it is a video, not an image"),
)
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


class UndecodableError(Exception):
    """An image that is not decoded, with the reason in a few words."""


def format_of(start: bytes) -> str | None:
    """Return Pillow's name of the format of a file that starts so (`START_BYTES`), of those that are read; otherwise None."""
    for magic, name in _STARTS:
        if start.startswith(magic):
            return name
    if start[:2] == b"BM" and len(start) >= 18 and int.from_bytes(start[14:18], "little") in _BITMAP_HEADERS:
        return "BMP"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    if start[:2] in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf") and start[2:3] in (b" ", b"\t", b"\n", b"\r"):
        return "PPM"
    brands = _brands(start)
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    if brands & _HEIC and "HEIF" in Image.OPEN:  # where a plug-in of Pillow reads it
        return "HEIF"
    return None


def _brands(start: bytes) -> set[bytes]:
    """Return the brands of a file of the ISO base media format (ISO/IEC 14496-12), the major one among them."""
    if start[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(start[:4], "big"), len(start))
    return {start[8:12], *(start[place : place + 4] for place in range(16, end - 3, 4))}


def what_it_is(start: bytes) -> str:
    """Return in a few words what a file is that starts so and is in none of the formats that are read."""
    if not start:
        return "the file is empty"
    for magic, words in _OTHERS:
        if start.startswith(magic):
            return words
    brands = _brands(start)
    if brands:
        return "HEIC is not supported; convert it to JPEG" if brands & _HEIC else "it is a video, not an image"
    if start[128:132] == b"DICM":
        return "DICOM is not supported; convert it to PNG"
    if not any(start):
        return "it holds zeros, not an image"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg", b"<!doctype html", b"<html")):
        return "SVG is not supported; convert it to PNG" if b"<svg" in text else "it is a page of HTML or XML, not an image"
    return "it is not an image in a format that is read (JPEG, PNG, BMP, WebP, TIFF, GIF, PPM, AVIF)"


def decode(content: bytes) -> Image.Image:
    """Return the image in a file's bytes as 8-bit RGB, upright; of several frames or pages, the first.

    What each of Pillow's modes becomes:

    - `1`, `L`, `LA`, `P`, `PA`, `RGB`, `RGBA`, `CMYK` (Adobe's inverted one too), `YCbCr`, `LAB`, `HSV`: what Pillow's
      `convert("RGB")` gives, as torchvision's loader does. Transparency is dropped, not blended.
    - `I;16` in either byte order: 16-bit grey, 0 to 65535; divided by 257 and rounded.
    - `I` of a PNG or PPM file: likewise, as these formats have no more than 16 bits. (Pillow itself reads 16-bit colour as its
      higher 8 bits.)
    - `I` of other files, 32-bit or signed integers, and `F`, floats: their range is not stored. Floats within 0 to 1 are
      multiplied by 255, and numbers within 0 to 255 are taken as they are, both rounded; others are refused.

    Orientation is EXIF's (tag 0x0112), all eight values; what cannot be read of EXIF counts as upright. Malformed metadata that
    Pillow itself insists on is an error.

    Raises:
        UndecodableError: it is none of the formats that are read, is damaged, has more than `MAX_PIXELS` or an aspect ratio
            beyond `MAX_ASPECT_RATIO`, or numbers of an unknown range.
    """
    kind = format_of(content[:START_BYTES])
    if kind is None:
        raise UndecodableError(what_it_is(content[:START_BYTES]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata, or of sizes, which are checked here
            with Image.open(io.BytesIO(content), formats=[kind]) as image:
                _require_size(image)
                image.load()
                _require_size(image)
                return _upright(_as_rgb(image), _orientation(image))
    except UndecodableError:
        raise
    except MemoryError as error:
        raise UndecodableError(f"it takes more than {MAX_MEMORY // _MIB} MiB of memory to decode") from error
    except UnidentifiedImageError as error:
        raise UndecodableError(f"it starts like {kind} and is damaged, or of a kind of {kind} that is not read") from error
    except Exception as error:  # whatever a plug-in of Pillow raises: OSError, SyntaxError, struct.error, KeyError, …
        raise UndecodableError(f"it is damaged: {_one_line(error)}") from error


def _require_size(image: Image.Image) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise UndecodableError(f"it has {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise UndecodableError(
            f"it has {width} x {height} pixels, more than the limit of {MAX_PIXELS / 1e6:g} megapixels; make it smaller"
        )
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise UndecodableError(
            f"it has {width} x {height} pixels, beyond the limit of {MAX_ASPECT_RATIO}:1 for the aspect ratio; cut it to pieces"
        )


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _EIGHT_BIT:
        if image.mode in ("La", "RGBa"):  # premultiplied with their transparency, from which there is no direct way
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _grey(_from_sixteen_bits(image))
    if image.mode in ("I", "F"):
        return _grey(_from_unknown_range(image))
    raise UndecodableError(f"Pillow's mode {image.mode} is not supported; convert it to 8-bit RGB")


def _grey(levels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(levels).convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> NDArray[np.uint8]:
    import numpy as np  # noqa: PLC0415  few images need it, and it takes most of the child's start

    table = np.rint(np.arange(65536) / 257).astype(np.uint8)
    levels: NDArray[np.uint8] = table[np.asarray(image).clip(0, 65535)]
    return levels


def _from_unknown_range(image: Image.Image) -> NDArray[np.uint8]:
    import numpy as np  # noqa: PLC0415

    numbers = np.asarray(image)
    lowest, highest = numbers.min(), numbers.max()
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UndecodableError("it holds numbers that are not finite")
    if lowest < 0 or highest > 255:
        raise UndecodableError(
            f"its numbers are {lowest:g} to {highest:g}, of an unknown range; convert it to 8 or 16 bits (floats: 0 to 1)"
        )
    if image.mode == "F" and highest <= 1:
        numbers = numbers * np.float32(255)
    levels: NDArray[np.uint8] = np.rint(numbers).astype(np.uint8)
    return levels


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8, of an image that was loaded; Pillow turns TIFF by itself."""
    exif = image.info.get("exif")
    raw = image.info.get("Raw profile type exif")  # as ImageMagick writes it into PNG: a name, a length, and hexadecimal
    if exif is None and isinstance(raw, str):
        try:
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            return 1
    return _orientation_in(exif) if isinstance(exif, bytes) and image.format != "TIFF" else 1


def _orientation_in(exif: bytes) -> int:
    """Find the orientation among the entries of the first directory.

    Pillow's reader fails with an entry that is damaged, and copies each of 65,535 that say they are as long as the file.
    """
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        for place in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, place)
            if tag == 0x0112:
                (value,) = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", tiff, place + 8)
                return int(value)
    except struct.error:
        pass
    return 1


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def bands(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Divide an image into bands, each with left, top, right and bottom: all at once would be one more copy of it."""
    rows = max(BAND_BYTES // (3 * width), 1)
    for top in range(0, height, rows):
        yield 0, top, width, min(top + rows, height)


def _limit_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY if hard == resource.RLIM_INFINITY else min(MAX_MEMORY, hard), hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + MAX_CPU_SECONDS
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard == resource.RLIM_INFINITY else min(seconds, hard), hard))


def _answer(memory: int, length: int) -> dict[str, Any]:
    image = decode(os.pread(memory, length, 0))
    place = 0
    for band in bands(*image.size):
        place += os.pwrite(memory, image.crop(band).tobytes(), place)
    return {"width": image.width, "height": image.height}


def serve(memory: int, requests: BinaryIO, answers: BinaryIO) -> None:
    """Turn files' bytes into pixels until there are no more: both lie in shared memory, the file descriptor `memory`.

    A request is the number of bytes, a line. An answer is a line of JSON, `{"width": W, "height": H}` for W x H x 3 bytes of
    pixels or `{"error": "…"}`.
    """
    for line in requests:
        _limit_time()
        try:
            answer = _answer(memory, int(line))
        except UndecodableError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _limit_memory()
    Image.MAX_IMAGE_PIXELS = None  # the limit here is lower, and an error
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with contextlib.suppress(ImportError):  # of Pillow before 11.3
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each takes address space
    with contextlib.suppress(ImportError):  # whoever has installed it wants HEIC read
        importlib.import_module("pillow_heif").register_heif_opener()
    serve(int(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
