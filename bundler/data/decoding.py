"""Decode image files to upright 8-bit RGB within limits; the program of the decoding child process.

`bundler.data.image_files` starts this file as a child process, because decoders are C code with untrusted input. It imports no
other module of bundler, so that the child is small and starts in 0.1 s.
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

MAX_PIXELS = 100_000_000  # of an image, from its header; Pillow uses 4 bytes per RGB pixel
MAX_ASPECT_RATIO = 50  # of the longer side to the shorter: resizing 1 x 40,000 pixels to 224 wide takes 8 GB
MAX_MEMORY = 2 << 30  # bytes of the child's address space; a progressive CMYK JPEG of 100 megapixels takes 1.2 GB
MAX_CPU_SECONDS = 30  # for one image; an AVIF of 100 megapixels takes 5
BAND_BYTES = 1 << 26  # of pixels that are copied at once
START_BYTES = 512  # of a file, from which its format is recognized

_MIB = 1 << 20
_EIGHT_BIT = frozenset({"1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr", "LAB", "HSV"})
_SIXTEEN_BIT = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_UPRIGHT = {  # by the value of EXIF's Orientation; 1 is upright
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
    """An image that cannot be decoded, with the reason."""


def format_of(start: bytes) -> str | None:
    """Return Pillow's name for the format of a file, from its first `START_BYTES`; None if it is not supported."""
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
    if brands & _HEIC and "HEIF" in Image.OPEN:  # if a Pillow plug-in reads it
        return "HEIF"
    return None


def _brands(start: bytes) -> set[bytes]:
    """Return the brands of a file in the ISO base media format (ISO/IEC 14496-12), including the major one."""
    if start[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(start[:4], "big"), len(start))
    return {start[8:12], *(start[place : place + 4] for place in range(16, end - 3, 4))}


def what_it_is(start: bytes) -> str:
    """Return what an unsupported file is, from its first `START_BYTES`, as a part of a message."""
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
        return "it contains only zeros"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg", b"<!doctype html", b"<html")):
        return "SVG is not supported; convert it to PNG" if b"<svg" in text else "it is an HTML or XML document, not an image"
    return "it is not an image in a supported format (JPEG, PNG, BMP, WebP, TIFF, GIF, PPM, AVIF)"


def decode(content: bytes) -> Image.Image:
    """Return the image in the bytes of a file as upright 8-bit RGB; of several frames or pages, the first.

    Conversion of Pillow's modes:

    - `1`, `L`, `LA`, `P`, `PA`, `RGB`, `RGBA`, `CMYK` (Adobe's inverted one too), `YCbCr`, `LAB`, `HSV`: Pillow's
      `convert("RGB")`, as in torchvision's loader. Transparency is dropped, not blended.
    - `I;16` in either byte order: 16-bit grey, 0 to 65535; divided by 257 and rounded.
    - `I` of a PNG or PPM file: the same, because these formats have at most 16 bits. (Pillow itself reads 16-bit colour as its
      upper 8 bits.)
    - `I` of other files (32-bit or signed integers) and `F` (floats): their range is not stored. Floats from 0 to 1 are
      multiplied by 255, values from 0 to 255 are kept, both rounded; other values are an error.
    - Signed 8-bit integers, which TIFF has: an error.

    All eight values of EXIF's orientation (tag 0x0112) are applied; unreadable EXIF data counts as upright. Malformed metadata
    that Pillow itself rejects is an error.

    Raises:
        UndecodableError: the format is not supported, the file is damaged, has more than `MAX_PIXELS` or an aspect ratio above
            `MAX_ASPECT_RATIO`, or values of an unknown range.
    """
    kind = format_of(content[:START_BYTES])
    if kind is None:
        raise UndecodableError(what_it_is(content[:START_BYTES]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged metadata, or about sizes, which are checked here
            with Image.open(io.BytesIO(content), formats=[kind]) as image:
                _require_size(image)
                image.load()
                _require_size(image)
                return _upright(_as_rgb(image), _orientation(image))
    except UndecodableError:
        raise
    except MemoryError as error:
        raise UndecodableError(f"decoding it needs more than {MAX_MEMORY // _MIB} MiB of memory") from error
    except UnidentifiedImageError as error:
        raise UndecodableError(f"it begins like a {kind} file, but is damaged or of an unsupported variant") from error
    except Exception as error:  # plug-ins of Pillow raise OSError, SyntaxError, struct.error, KeyError, …
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
            f"it has {width} x {height} pixels, an aspect ratio above the limit of {MAX_ASPECT_RATIO}:1; split the image"
        )


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _EIGHT_BIT:
        if _is_signed(image):
            raise UndecodableError("its values are signed 8-bit integers (-128 to 127); convert it to unsigned 8 bits")
        if image.mode in ("La", "RGBa"):  # premultiplied alpha, which has no direct conversion
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode in _SIXTEEN_BIT or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _grey(_from_sixteen_bits(image))
    if image.mode in ("I", "F"):
        return _grey(_from_unknown_range(image))
    raise UndecodableError(f"Pillow's mode {image.mode} is not supported; convert it to 8-bit RGB")


def _is_signed(image: Image.Image) -> bool:
    """Say whether a TIFF of 8 bits has signed numbers (tag 339, SampleFormat), which Pillow takes for unsigned ones."""
    formats = getattr(image, "tag_v2", {}).get(339, ())
    return image.mode != "LAB" and 2 in (formats if isinstance(formats, tuple) else (formats,))


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
        raise UndecodableError("it contains NaN or infinite values")
    if lowest < 0 or highest > 255:
        raise UndecodableError(
            f"its values, {lowest:g} to {highest:g}, have an unknown range; convert it to 8 or 16 bits (floats: 0 to 1)"
        )
    if image.mode == "F" and highest <= 1:
        numbers = numbers * np.float32(255)
    levels: NDArray[np.uint8] = np.rint(numbers).astype(np.uint8)
    return levels


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, 1 to 8, of a loaded image; 1 for TIFF, which Pillow transposes itself."""
    exif = image.info.get("exif")
    raw = image.info.get("Raw profile type exif")  # ImageMagick's form in PNG files: a name, a length, and hexadecimal digits
    if exif is None and isinstance(raw, str):
        try:
            exif = bytes.fromhex("".join(raw.split("\n")[3:]))
        except ValueError:
            return 1
    return _orientation_in(exif) if isinstance(exif, bytes) and image.format != "TIFF" else 1


def _orientation_in(exif: bytes) -> int:
    """Return the orientation in the first directory of EXIF data; 1 if there is none.

    Pillow's reader fails at damaged entries, and copies the whole file for each of 65,535 entries that claim to be as long.
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
    """Yield left, top, right and bottom of the bands in which an image is copied, to avoid a second copy of all pixels."""
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
    """Answer requests until their end; files and pixels are in shared memory, the file descriptor `memory`.

    A request is a line with the number of bytes of the file. An answer is a line of JSON:
    `{"width": W, "height": H}` for W x H x 3 bytes of pixels, or `{"error": "…"}`.
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
    Image.MAX_IMAGE_PIXELS = None  # the limit here is lower, and raises an error
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with contextlib.suppress(ImportError):  # of Pillow before 11.3
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread takes address space
    with contextlib.suppress(ImportError):  # HEIC is supported if this optional package is installed
        importlib.import_module("pillow_heif").register_heif_opener()
    serve(int(sys.argv[1]), sys.stdin.buffer, sys.stdout.buffer)
