"""Image files: what is opened at all, the child that decodes, and names that do not break lines."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bundler.data import decoding, image_files
from bundler.data.image_files import digest_of, name_of, read_bytes, read_image
from bundler.errors import DataError, UnreadableImageError


def test_an_image_comes_back_as_it_was(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "no suffix", "PNG")
    assert np.array_equal(np.asarray(read_image(tmp_path / "no suffix")), pixels)


def test_an_image_of_many_bands_comes_back_as_it_was(tmp_path: Path) -> None:
    rows = decoding.BAND_BYTES // (3 * 9000) + 1
    pixels = np.resize(np.arange(251, dtype=np.uint8), (rows, 9000))
    Image.fromarray(pixels).save(tmp_path / "a.bmp")
    image = read_image(tmp_path / "a.bmp")
    assert image.size == (9000, rows)
    assert np.array_equal(np.asarray(image)[..., 1], pixels)


@pytest.mark.parametrize("suffix", ["jfif", "avif", "webp", "jpg", "txt"])
def test_the_suffix_says_nothing(tmp_path: Path, suffix: str) -> None:
    for kind in ("JPEG", "PNG", "AVIF", "TIFF"):
        Image.new("RGB", (8, 4)).save(tmp_path / f"{kind}.{suffix}", kind)
        assert read_image(tmp_path / f"{kind}.{suffix}").size == (8, 4)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("/dev/zero", "it is a character device, not a regular file"),
        ("/dev/tty", "it is a character device, not a regular file"),
        ("/nonexistent", "No such file or directory"),
        ("/", "it is a folder, not a regular file"),
        ("link.png", "Too many levels of symbolic links"),
        ("/etc/passwd", "it is not an image in a supported format"),
    ],
)
def test_what_links_lead_to_is_named(tmp_path: Path, target: str, words: str) -> None:
    (tmp_path / "link.png").symlink_to(target)
    with pytest.raises(UnreadableImageError, match=words) as refusal:
        read_image(tmp_path / "link.png")
    assert isinstance(refusal.value, DataError)
    assert refusal.value.exit_code == 7


def test_pipes_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImageError, match="it is a FIFO, not a regular file"):
        read_image(tmp_path / "pipe.png")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(UnreadableImageError, match="it is larger than the limit of 320 MiB"):
        read_image(tmp_path / "sparse.png")
    (tmp_path / "small").write_bytes(bytes(11))
    assert len(read_bytes(tmp_path / "small", limit=11)) == 11
    with pytest.raises(UnreadableImageError, match="larger"):
        read_bytes(tmp_path / "small", limit=10)


@pytest.mark.parametrize("name", ["x" * 300, "null\0byte"])
def test_impossible_names_are_errors_of_ours(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / name)


def test_a_decoder_that_dies_is_named_and_started_again(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == (8, 4)
    child = image_files._DECODER._child
    assert child is not None
    child.kill()
    child.wait()
    with pytest.raises(UnreadableImageError, match="its decoder ended with SIGKILL"):
        read_image(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").size == (8, 4)


def test_memory_of_the_decoder_is_limited(tmp_path: Path) -> None:
    tile = 45_000  # pixels of one side, of an image of 64
    entries = [(256, 64), (257, 64), (258, 8), (259, 1), (262, 1), (277, 1), (322, tile), (323, tile), (324, 8), (325, 64)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + bytes(4))
    with pytest.raises(UnreadableImageError):
        read_image(tmp_path / "a.tif")
    child = image_files._DECODER._child
    if child is not None:
        limits = Path(f"/proc/{child.pid}/limits").read_text()
        assert f"Max address space         {decoding.MAX_MEMORY}" in limits


def test_the_decoder_ends_with_its_parent() -> None:
    program = (
        "import io, os, sys; from pathlib import Path; from PIL import Image; from bundler.data import image_files as files;"
        "file = io.BytesIO(); Image.new('RGB', (8, 4)).save(file, 'PNG');"
        "files.decode_image(file.getvalue(), Path('a')); print(files._DECODER._child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    root = Path(image_files.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=root, timeout=60)
    child = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(200):
        if not child.exists() or child.read_text().rpartition(")")[2].split()[0] == "Z":
            break
        subprocess.run(["sleep", "0.05"], check=True)
    else:
        pytest.fail("it is still there")


def test_names_stay_on_one_line_and_differ(tmp_path: Path) -> None:
    names = [b"a\nb", b"a\\nb", b"\xff", b"\\xff", "\x85".encode(), b"\x85", b"\x1b[2J", b"caf\xc3\xa9 1.png", b"\r"]
    shown = [name_of(tmp_path / os.fsdecode(name), tmp_path) for name in names]
    assert shown == ["a\\nb", "a\\\\nb", "\\xff", "\\\\xff", "\\u0085", "\\x85", "\\x1b[2J", "café 1.png", "\\r"]
    assert len(set(shown)) == len(names)


def test_digests_of_ordinary_names_are_what_sha256sum_lists(tmp_path: Path) -> None:
    file = io.BytesIO(b"abc")
    line = digest_of(file.getvalue(), tmp_path / "a b" / "ü.png", tmp_path)
    assert line == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a b/ü.png"
