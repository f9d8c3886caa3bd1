"""Read image files within limits and decode them in a child process; no other module opens images.

Decoders are C code with untrusted input. They run in a child process (`bundler.data.decoding`) that is limited to `MAX_MEMORY`
bytes, and `MAX_CPU_SECONDS` for each image, and is restarted after a crash. Limits on bytes and pixels of a file would not
suffice: a TIFF of 2 MB and 64 x 64 pixels in one compressed tile takes 2 GB, and a progressive JPEG of 5 MB with 20,000 scans
of 100 megapixels takes minutes (`tests/attacks/hostile_images.py`). For an image of 500 x 375 pixels this costs 2 ms.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from PIL import Image

from bundler.data import decoding
from bundler.errors import UnreadableImageError
from bundler.plain_files import read_regular
from bundler.visible import visible

__all__ = [
    "MAX_BYTES",
    "decode_image",
    "digest_of",
    "name_of",
    "read_bytes",
    "read_image",
    "reason_of",
]

MAX_BYTES = 320 << 20  # of a file: an RGB image of `decoding.MAX_PIXELS` without compression fits


def name_of(path: Path, folder: Path) -> str:
    r"""Return a file's path relative to `folder` on one line, as in digests and manifests.

    A backslash becomes `\\`, and control characters and bytes that are not UTF-8 become `\n`, `\xNN` and the like, so that
    different files have different names. Other names are unchanged.
    """
    name = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    return "".join(_escaped(character) if _CONTROL.match(character) else character for character in name)


_CONTROL = re.compile(r"[\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # str.isprintable changes with Python's Unicode


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code <= 0x9F:
        return f"\\u{code:04x}"
    return character.encode("unicode_escape").decode("ascii")


def digest_of(content: bytes, path: Path, folder: Path) -> str:
    """Return the SHA-256 of a file's bytes and its name, in the format of `sha256sum`."""
    return f"{hashlib.sha256(content).hexdigest()}  {name_of(path, folder)}"


def read_image(path: Path) -> Image.Image:
    """Return the image in a file as upright 8-bit RGB; see `bundler.data.decoding.decode`.

    Raises:
        UnreadableImageError: it is not a regular file, cannot be read, is too large, or cannot be decoded.
    """
    return decode_image(read_bytes(path), path)


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Return the bytes of a regular file of at most `limit` bytes, or of one that a symbolic link points to.

    Raises:
        UnreadableImageError: it is a FIFO, socket, device or folder, has more bytes, or cannot be read.
    """
    try:
        return read_regular(path, limit=limit, follow_links=True)
    except OSError as error:
        too_large = f"it is larger than the limit of {limit >> 20} MiB; make it smaller"
        raise UnreadableImageError(visible(path), too_large if error.errno == errno.EFBIG else reason_of(error)) from error
    except ValueError as error:  # a null byte in the name
        raise UnreadableImageError(visible(path), visible(error)) from error


def reason_of(error: OSError) -> str:
    """Return why a file could not be opened or read."""
    return error.strerror or type(error).__name__


def decode_image(content: bytes, path: Path) -> Image.Image:
    """Return the image in the bytes of a file as upright 8-bit RGB; `path` names it in errors.

    Raises:
        UnreadableImageError: it cannot be decoded.
    """
    try:
        return _DECODER.decode(content)
    except decoding.UndecodableError as error:
        raise UnreadableImageError(visible(path), visible(error)) from error


class _Decoder:
    """The child process that decodes images; it is started on demand and restarted after a crash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._memory = -1  # shared memory: sending pixels through a pipe takes as long as decoding them

    def decode(self, content: bytes) -> Image.Image:
        with self._lock:
            child = self._child or self._start()
            try:
                return self._ask(child, content)
            except decoding.UndecodableError:
                raise  # the child is still running
            except MemoryError as error:
                self._stop(kill=True)
                raise decoding.UndecodableError("not enough memory") from error
            except (OSError, EOFError) as error:
                raise decoding.UndecodableError(self._stop()) from error
            except BaseException:  # interrupted: the pending answer would be read for the next image
                self._stop(kill=True)
                raise

    def _start(self) -> subprocess.Popen[bytes]:
        self._memory = os.memfd_create("images")
        # -P: bundler/data is not on sys.path. Own process group: Ctrl-C goes to the parent only; the child ends with its input.
        self._child = subprocess.Popen(
            [sys.executable, "-P", decoding.__file__, str(self._memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # each thread takes address space
            pass_fds=(self._memory,),
            process_group=0,
        )
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], content: bytes) -> Image.Image:
        assert child.stdin is not None  # noqa: S101
        assert child.stdout is not None  # noqa: S101
        if os.fstat(self._memory).st_size > _KEPT:
            os.ftruncate(self._memory, 0)
        with memoryview(content) as rest:
            written = 0
            while written < len(rest):
                written += os.pwrite(self._memory, rest[written:], written)
        child.stdin.write(b"%d\n" % len(content))
        child.stdin.flush()
        line = child.stdout.readline(_ANSWER)
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        if "error" in answer:
            raise decoding.UndecodableError(answer["error"])
        return self._pixels(answer["width"], answer["height"])

    def _pixels(self, width: int, height: int) -> Image.Image:
        if len(areas := list(decoding.bands(width, height))) == 1:
            return Image.frombytes("RGB", (width, height), os.pread(self._memory, 3 * width * height, 0))
        image = Image.new("RGB", (width, height))
        place = 0
        for left, top, right, bottom in areas:
            size = (right - left, bottom - top)
            band = os.pread(self._memory, 3 * size[0] * size[1], place)
            place += len(band)
            image.paste(Image.frombytes("RGB", size, band), (left, top))
        return image

    def _stop(self, *, kill: bool = False) -> str:
        """Stop the child; return the reason if it ended by itself."""
        child, self._child = self._child, None
        if child is None:
            return ""
        if kill:
            child.kill()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):  # buffered data cannot be written any more
                pipe.close()  # type: ignore[union-attr]
        os.close(self._memory)
        code = child.wait()
        if code == -signal.SIGXCPU:
            return f"it takes longer than the limit of {decoding.MAX_CPU_SECONDS} s to decode"
        return f"its decoder ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def close(self) -> None:
        with self._lock:
            self._stop(kill=True)


_KEPT = 64 << 20  # bytes of shared memory that are kept between images
_ANSWER = 4096  # longest answer in bytes

_DECODER = _Decoder()
atexit.register(_DECODER.close)
