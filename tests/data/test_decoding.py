"""Decoding: what each of Pillow's modes becomes, which formats are read, which orientation, and what is refused."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundler.data.decoding import MAX_PIXELS, UndecodableError, decode, format_of, what_it_is

LEVELS = np.array([[0, 1, 127, 128, 254, 255]], np.uint8)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey_of(content: bytes) -> list[int]:
    """Return the first row, of which red, green and blue are the same."""
    pixels = np.asarray(decode(content))
    assert pixels.dtype == np.uint8
    assert (pixels == pixels[..., :1]).all()
    row: list[int] = pixels[0, :, 0].tolist()
    return row


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_by_their_range(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 128, 129, 257, 32767, 65535]], np.uint16))
    assert grey_of(encoded(image, kind)) == [0, 0, 1, 1, 127, 255]  # x / 257
    assert grey_of(encoded(Image.fromarray(LEVELS.astype(np.uint16) * 257), kind)) == LEVELS[0].tolist()


def test_sixteen_bits_of_another_byte_order_are_the_same() -> None:
    image = Image.frombytes("I;16B", (6, 1), (LEVELS.astype(">u2") * 257).tobytes())
    assert grey_of(encoded(image, "TIFF")) == LEVELS[0].tolist()


def test_sixteen_bit_ppm() -> None:
    assert grey_of(b"P5 6 1 65535\n" + (LEVELS.astype(">u2") * 257).tobytes()) == LEVELS[0].tolist()
    assert grey_of(b"P5 2 1 1023\n" + np.array([0, 1023], ">u2").tobytes()) == [0, 255]


def test_sixteen_bit_colour_and_transparency_of_png() -> None:
    def png(colour: int, samples: NDArray[Any]) -> bytes:
        def chunk(kind: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        header = struct.pack(">IIBBBBB", len(samples), 1, 16, colour, 0, 0, 0)
        data = zlib.compress(b"\0" + samples.astype(">u2").tobytes())
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")

    rgb = np.array([[0, 257 * 7, 65535], [257 * 200, 257, 0]])
    assert np.asarray(decode(png(2, rgb)))[0].tolist() == [[0, 7, 255], [200, 1, 0]]
    assert grey_of(png(4, np.array([[257 * 9, 0], [65535, 65535]]))) == [9, 255]


@pytest.mark.parametrize(
    ("numbers", "levels"),
    [
        (LEVELS.astype(np.float32) / 255, LEVELS[0].tolist()),  # 0 to 1
        (LEVELS.astype(np.float32), LEVELS[0].tolist()),  # 0 to 255
        (LEVELS.astype(np.int32), LEVELS[0].tolist()),
        (np.zeros((1, 3), np.float32), [0, 0, 0]),
        (np.ones((1, 3), np.int32), [1, 1, 1]),
    ],
)
def test_numbers_of_an_unknown_range_are_taken_where_the_range_is_plain(numbers: NDArray[Any], levels: list[int]) -> None:
    assert grey_of(encoded(Image.fromarray(numbers), "TIFF")) == levels


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([0, 256], "its values, 0 to 256, have an unknown range"),
        ([-1, 3], "its values, -1 to 3, have an unknown range"),
        ([0, np.nan], "NaN or infinite"),
        ([0, np.inf], "NaN or infinite"),
    ],
)
def test_other_numbers_are_refused(numbers: list[float], words: str) -> None:
    with pytest.raises(UndecodableError, match=words):
        decode(encoded(Image.fromarray(np.array([numbers], np.float32)), "TIFF"))


def test_signed_numbers_of_eight_bits_are_refused() -> None:
    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "TIFF", tiffinfo={339: 2})
    with pytest.raises(UndecodableError, match="its values are signed"):
        decode(content.getvalue())


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGB", "BMP"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("P", "GIF"),
     ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "TIFF"), ("LAB", "TIFF"), ("RGBA", "TIFF"), ("RGB", "PPM"), ("RGB", "MPO")],
)  # fmt: skip
def test_eight_bits_are_what_pillow_converts_them_to(mode: str, kind: str) -> None:
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    image = Image.merge("LAB", source.split()) if mode == "LAB" else source.convert(mode)
    content = encoded(image, kind)
    with Image.open(io.BytesIO(content)) as plain:
        assert np.array_equal(np.asarray(decode(content)), np.asarray(plain.convert("RGB")))


def test_a_palette_with_transparent_colours() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    content = encoded(image, "PNG", transparency=bytes([0, 128, 255]))
    assert np.asarray(decode(content))[0].tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(content).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [
        (1, None),
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_each_orientation_is_turned_upright(orientation: int, stored: Image.Transpose | None, kind: str) -> None:
    corners = np.zeros((16, 24, 3), np.uint8)
    corners[:8, :12], corners[8:, 12:] = (255, 0, 0), (0, 0, 255)
    upright = Image.fromarray(corners)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = upright if stored is None else upright.transpose(stored)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    decoded = decode(encoded(image, kind, exif=exif, **options))
    assert decoded.size == (24, 16)
    assert np.abs(np.asarray(decoded).astype(int) - corners).mean() < 10  # JPEG and AVIF lose some


@pytest.mark.parametrize(
    "exif",
    [
        b"",
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\x09\0\0",  # 9
        b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\0\0\0",  # 0
        b"\xff" * 60_000,
    ],
)
def test_malformed_orientations_count_as_upright(exif: bytes) -> None:
    content = encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert decode(content).size == (8, 4)


def test_an_orientation_after_a_damaged_entry_is_found() -> None:
    entries = struct.pack(">HHII", 0x0100, 2, 0xFFFFFFFF, 0xFFFFFFFF) + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\2" + entries
    assert decode(encoded(Image.new("RGB", (8, 4)), "JPEG", exif=exif)).size == (4, 8)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"MM\0+", "TIFF"),
        (b"P6\n8 8", "PPM"),
        (b"P6x", None),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avif", "AVIF"),
        (b"BM" + bytes(12) + b"\x28\0\0\0", "BMP"),
        (b"BMW and other cars, a list", None),
        (b"", None),
    ],
)
def test_formats_are_recognized_by_content(start: bytes, kind: str | None) -> None:
    assert format_of(start) == kind


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"", "the file is empty"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC is not supported; convert it to JPEG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "it is a video, not an image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer, not the image: run `git lfs pull`"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "PostScript is not supported; convert it to PNG"),
        (b"%PDF-1.7", "PDF is not supported; convert it to PNG"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x">', "SVG is not supported; convert it to PNG"),
        (b"<!DOCTYPE html><html>", "it is an HTML or XML document, not an image"),
        (bytes(100), "it contains only zeros"),
        (b"a note", "it is not an image in a supported format"),
    ],
)
def test_other_files_are_named_for_what_they_are(start: bytes, words: str) -> None:
    assert what_it_is(start).startswith(words)
    with pytest.raises(UndecodableError, match=words[:20]):
        decode(start)


def test_sizes_are_limited_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as in the child process

    def bitmap(width: int, height: int) -> bytes:  # without any pixels
        header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header

    with pytest.raises(
        UndecodableError, match=f"30000 x 30000 pixels, more than the limit of {MAX_PIXELS // 10**6} megapixels"
    ):
        decode(bitmap(30_000, 30_000))
    with pytest.raises(UndecodableError, match="1 x 51 pixels, an aspect ratio above the limit of 50:1"):
        decode(bitmap(1, 51))
    with pytest.raises(UndecodableError, match="it is damaged: image file is truncated"):
        decode(bitmap(1, 50))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM", "AVIF"])
def test_a_damaged_file_never_ends_in_anything_but_its_error(kind: str) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    content = encoded(image, kind)
    generator = np.random.default_rng(1)
    for _ in range(60):
        changed = bytearray(content[: generator.integers(len(content)) + 1])
        for place in generator.integers(0, len(changed), 3):
            changed[place] = generator.integers(256)
        with contextlib.suppress(UndecodableError):
            decode(bytes(changed))
