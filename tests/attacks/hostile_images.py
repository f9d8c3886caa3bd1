"""Hostile images and labels, each read in a process of its own: `python tests/attacks/hostile_images.py [WORDS OF A NAME …]`.

For each case it makes a folder, loads it as `bundler bundle` would, and prints one line: what was tried, the exit code,
seconds, the peak memory of the largest process in MB, and whether it held: the exit code is 0 or 7 with a message of ours, good
images of the folder are read, nothing raw reaches the terminal, nothing is written beside the folder, and time and memory stay
within `SECONDS` and `MEGABYTES`.
"""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SECONDS = 60.0  # of a processor, for one case; half of it the limit of `bundler.data.decoding` for one image
MEGABYTES = 2300.0  # of the largest process: the limit of the child that decodes, and Python itself
GOOD = 4  # images in each folder that nothing is wrong with

Maker = Callable[[Path], None]


# --- files ---


def _good(path: Path, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *, rows: int, extra: bytes = b"") -> bytes:
    """Return a grey PNG of that size whose data has that many rows."""
    compress = zlib.compressobj(9)
    data = b"".join(compress.compress(bytes(width + 1)) for _ in range(rows)) + compress.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _tiff(entries: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """Return a little-endian TIFF: entries are tag, type, count and value or offset; `data` follows the directory."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return b"II*\0" + struct.pack("<I", 8) + directory + data


def _grey_tiff(width: int, height: int, extra: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1)]
    present = {entry[0] for entry in extra}
    return _tiff(sorted([entry for entry in entries if entry[0] not in present] + extra), data)


def _many_tags(entries: int) -> bytes:
    """Return a TIFF each of whose tags says that it is as long as the file."""
    size = 12 * entries
    extra = [(273, 4, 1, 8), (279, 4, 1, 64), *((1000 + tag, 1, size, 8) for tag in range(entries))]
    return _grey_tiff(8, 8, extra)


def _tile_of_zeros(side: int) -> bytes:
    """Return a TIFF of 64 x 64 pixels in one tile that is `side` wide and high, compressed."""
    tile = zlib.compress(bytes(side * side), 9)
    extra = [(259, 3, 1, 8), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, 8 + 2 + 12 * 9 + 4), (325, 4, 1, len(tile))]
    return _grey_tiff(64, 64, extra, tile)


def _scans(side: int, count: int) -> bytes:
    """Return a progressive JPEG, grey, in which each of many short scans goes over all of it."""

    def segment(marker: int, data: bytes) -> bytes:
        return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data

    blocks = ((side + 7) // 8) ** 2
    runs = -(-blocks // 32767)
    bits = "".join("0" + "1" * 14 for _ in range(runs))  # the only code, and the run's length
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    scan = segment(0xDA, bytes((1, 1, 0x00, 1, 63, 0))) + data
    table = segment(0xC4, bytes((0x10, 1, *([0] * 15), 0xE0)))
    quantization = segment(0xDB, bytes((0, *([1] * 64))))
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes((1, 0x11, 0)))
    return b"\xff\xd8" + quantization + frame + table + scan * count + b"\xff\xd9"


def _exif_of(entries: int, size: int) -> bytes:
    directory = b"".join(struct.pack("<HHII", 1000 + tag, 1, size, 8) for tag in range(entries))
    return b"II*\0" + struct.pack("<IH", 8, entries) + directory + bytes(size)


def _write(name: str, content: Callable[[], bytes]) -> Maker:
    return lambda folder: _put(folder / name, content())


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _small_avif_header(folder: Path) -> None:
    """Write an AVIF of 12,000 x 8,000 pixels that says it has 64 x 64."""
    Image.new("RGB", (12_000, 8_000)).save(folder / "x.avif", speed=10, quality=10)
    content = (folder / "x.avif").read_bytes()
    size = struct.pack(">II", 12_000, 8_000)
    assert size in content
    (folder / "x.avif").write_bytes(content.replace(size, struct.pack(">II", 64, 64)))


def _sparse(folder: Path) -> None:
    with (folder / "s.png").open("wb") as file:
        file.truncate(200 << 30)


def _devices(folder: Path) -> None:
    for name, target in (
        ("zero.png", "/dev/zero"),
        ("random.jpg", "/dev/urandom"),
        ("tty.png", "/dev/tty"),
        ("full", "/dev/full"),
    ):
        (folder / name).symlink_to(target)
    (folder / "passwd.png").symlink_to("/etc/passwd")
    (folder / "kmsg.png").symlink_to("/proc/kmsg")
    (folder / "dangling.png").symlink_to("/nonexistent")
    (folder / "itself.png").symlink_to("itself.png")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe")


def _links(folder: Path) -> None:
    """Make folders that link to one another: 2^30 paths without a loop, and loops."""
    for level in range(30):
        (folder / f"{level:02}").mkdir()
        for side in "ab":
            (folder / f"{level:02}" / side).symlink_to(folder / f"{level + 1:02}")
    (folder / "30").mkdir()
    (folder / "30" / "up").symlink_to(folder)
    (folder / "root").symlink_to("/")


def _deep(folder: Path) -> None:
    current = os.open(folder, os.O_RDONLY)
    for _ in range(40):  # longer than any path may be
        os.mkdir("x" * 200, dir_fd=current)
        below = os.open("x" * 200, os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    os.close(current)


def _names(folder: Path) -> None:
    escape = "\x1b]0;PWNED\x07\x1b[31mRED\x1b[2J"
    for name in (
        "a\nb.png",
        "<img src=x onerror=alert(1)>.png",
        "$(touch PWNED).png",
        "-rf.png",
        f"{escape}.png",
        "\u202egnp.exe.png",
        "x" * 240 + ".png",
        "back\\slash.png",
        "{{7*7}}.png",
    ):
        _put(folder / name, b"not an image")
    _put(Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe bad.png")), b"x")
    _good(folder / f"fine {escape}.png", 9)


def _others(folder: Path) -> None:
    for index in range(3000):
        _put(folder / f"{index}.bin", b"\0\1\2")
        _put(folder / f"{index}.jpg", b"\0\1\2")


def _damaged(folder: Path) -> None:
    """Write 300 images, of each format, with bytes changed or cut off."""
    generator = random.Random(0)  # noqa: S311
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    for index in range(300):
        suffix = ("jpg", "png", "bmp", "webp", "tif", "gif", "ppm", "avif")[index % 8]
        path = folder / f"{index}.{suffix}"
        image.save(path, **({"compression": "tiff_lzw"} if suffix == "tif" else {}))
        content = bytearray(path.read_bytes())
        for _ in range(generator.choice((1, 3, 30))):
            content[generator.randrange(len(content))] = generator.randrange(256)
        path.write_bytes(content[: generator.choice((len(content), generator.randrange(len(content))))])


def _polyglots(folder: Path) -> None:
    png = _good(folder / "good.png", 7)
    _put(folder / "page.png", png + b"<script>alert(1)</script>PK\x03\x04")
    _put(folder / "php.gif", b"GIF89a<?php system(1);?>")
    _put(folder / "post.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) (r) file\n")
    _put(folder / "vector.png", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>')
    _put(folder / "document.jpg", b"%PDF-1.7")
    _put(folder / "stars.tif", b"SIMPLE  =                    T")
    _put(folder / "phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    _put(folder / "pointer.jpg", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    _put(folder / "empty.jpg", b"")


# --- labels ---


def _classes(folder: Path) -> None:
    for name in ("a", "b"):
        for index in range(GOOD):
            _good(folder / name / f"{index}.png", index)


def _class_folders(folder: Path) -> None:
    _classes(folder)
    os.mkfifo(folder / "a" / "pipe.png")
    (folder / "a" / "loop").symlink_to(folder)
    (folder / "a" / "zero.png").symlink_to("/dev/zero")
    (folder / ".hidden").mkdir()
    (folder / "__MACOSX").mkdir()


def _table(text: bytes) -> Maker:
    def make(folder: Path) -> None:
        for index in range(GOOD):
            _good(folder / "images" / f"{index}.png", index)
        (folder / "labels.csv").write_bytes(text)

    return make


def _boxes(labels: bytes) -> Maker:
    def make(folder: Path) -> None:
        for index in range(GOOD):
            _good(folder / f"{index}.png", index)
            (folder / f"{index}.txt").write_bytes(labels)

    return make


def _annotations(document: bytes | object) -> Maker:
    def make(folder: Path) -> None:
        for index in range(GOOD):
            _good(folder / f"{index}.png", index)
        (folder / "_annotations.coco.json").write_bytes(
            document if isinstance(document, bytes) else json.dumps(document).encode()
        )

    return make


_IMAGES = [{"id": index, "file_name": f"{index}.png", "width": 80, "height": 80} for index in range(GOOD)]
_CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]


def _coco(**changed: object) -> object:
    annotation = {"id": 7, "image_id": 0, "category_id": 1, "bbox": [1, 2, 30, 40]}
    return {"images": _IMAGES, "categories": _CATEGORIES, "annotations": [annotation | changed]}


@dataclass(frozen=True)
class Case:
    """A folder, and as what it is read: images to calibrate with, class folders, or boxes. `code` is right, 0 or 7."""

    make: Maker
    kind: str = "calibration"
    code: int = 0


CASES: dict[str, Case] = {
    "png of 3600 megapixels": Case(_write("x.png", lambda: _png(60_000, 60_000, rows=10))),
    "png of 177 megapixels": Case(_write("x.png", lambda: _png(13_300, 13_300, rows=13_300))),
    "png of 100 megapixels": Case(_write("x.png", lambda: _png(10_000, 10_000, rows=10_000))),
    "png of 1 x 80000000": Case(_write("x.png", lambda: _png(1, 80_000_000, rows=10))),
    "png of 80000000 x 1": Case(_write("x.png", lambda: _png(80_000_000, 1, rows=1))),
    "png of 1 x 40000": Case(_write("x.png", lambda: _png(1, 40_000, rows=40_000))),
    "png of 0 x 0": Case(_write("x.png", lambda: _png(0, 0, rows=0))),
    "png, compressed text of 900 MB": Case(
        _write("x.png", lambda: _png(8, 8, rows=8, extra=_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(900_000_000), 9))))
    ),
    "png, colour profile of 900 MB": Case(
        _write("x.png", lambda: _png(8, 8, rows=8, extra=_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(900_000_000), 9))))
    ),
    "png, exif whose 60000 entries overlap": Case(
        _write("x.png", lambda: _png(8, 8, rows=8, extra=_chunk(b"eXIf", _exif_of(60_000, 1_000_000))))
    ),
    "tiff, 60000 tags as long as the file": Case(_write("x.tif", lambda: _many_tags(60_000))),
    "tiff, a tile of 2 GB of zeros": Case(_write("x.tif", lambda: _tile_of_zeros(45_000))),
    "tiff of 169 megapixels": Case(
        lambda folder: Image.new("1", (13_000, 13_000)).save(folder / "x.tif", compression="group4")
    ),
    "tiff, numbers of an unknown range": Case(
        lambda folder: Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(folder / "x.tif")
    ),
    "jpeg, 20000 scans of 100 megapixels": Case(_write("x.jpg", lambda: _scans(10_000, 20_000))),
    "avif that says it is smaller": Case(_small_avif_header),
    "300 damaged images": Case(_damaged),
    "devices, pipes and broken links": Case(_devices),
    "a sparse file of 200 GB": Case(_sparse),
    "2^30 paths and loops of links": Case(_links),
    "folders deeper than any path": Case(_deep),
    "names": Case(_names),
    "other formats under images' names": Case(_polyglots),
    "6000 files that are not images": Case(_others),
    "class folders with pipes and loops": Case(_class_folders, "classes"),
    "csv, a path out of the folder": Case(_table(b"filename,label\n../../etc/passwd,0\n"), "classes", 7),
    "csv, an absolute path": Case(_table(b"filename,label\n/etc/passwd,0\n"), "classes", 7),
    "csv, a quote that never ends": Case(_table(b'filename,label\n"' + b"x" * 5_000_000), "classes", 7),
    "csv, null bytes": Case(_table(b"filename,label\n0.png\0,0\n"), "classes", 7),
    "csv, 5000000 separators": Case(_table(b"," * 5_000_000), "classes", 7),
    "csv, numbers of 1000000 digits": Case(_table(b"0.png," + b"9" * 1_000_000), "classes", 7),
    "csv, escape sequences": Case(_table(b"filename,label\n\x1b[2Jx.png,0\n"), "classes", 7),
    "yolo, numbers that are none": Case(_boxes(b"0 nan inf -inf 1e999\n"), "boxes", 7),
    "yolo, a class of 400 digits": Case(_boxes(b"9" * 400 + b" 0.5 0.5 0.5 0.5\n"), "boxes", 7),
    "yolo, a polygon of 2000000 points": Case(_boxes(b"0" + b" 0.5 0.5" * 2_000_000), "boxes", 7),
    "yolo, escape sequences": Case(_boxes(b"\x1b[2J 0.5 0.5 0.5 0.5\n"), "boxes", 7),
    "coco, nested 1000000 times": Case(_annotations(b"[" * 1_000_000), "boxes", 7),
    "coco, 6000000 empty lists": Case(_annotations(b'{"images": [' + b"[]," * 6_000_000 + b"[]]}"), "boxes", 7),
    "coco, a number of 1000000 digits": Case(_annotations(b'{"images": ' + b"9" * 1_000_000 + b"}"), "boxes", 7),
    "coco, not UTF-8": Case(_annotations(b'{"images": "\xff\xfe"}'), "boxes", 7),
    "coco, a list": Case(_annotations([1, 2]), "boxes", 7),
    "coco, an image that is not there": Case(_annotations(_coco(image_id=99)), "boxes", 7),
    "coco, an image_id that is a list": Case(_annotations(_coco(image_id=[0])), "boxes", 7),
    "coco, bbox of null": Case(_annotations(_coco(bbox=None)), "boxes", 7),
    "coco, bbox of infinity": Case(_annotations(_coco(bbox=[0, 0, float("inf"), 1e308])), "boxes", 7),
    "coco, bbox outside of the image": Case(_annotations(_coco(bbox=[1000, 1000, 30, 40])), "boxes", 7),
    "coco, a path out of the folder": Case(
        _annotations({**json.loads(json.dumps(_coco())), "images": [{"id": 0, "file_name": "../../../etc/passwd"}]}), "boxes", 7
    ),
    "coco, half a surrogate and an escape": Case(
        _annotations(b'{"images": [{"id": 0, "file_name": "\\ud800\\u001b[2J"}], "annotations": [],'
                     b' "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "\\ud800"}]}'), "boxes", 7
    ),
    "yaml, names that do not end": Case(
        lambda folder: (_classes(folder), _put(folder / "data.yaml", b"names: [" + b"'a," * 200_000))[1], "boxes", 7  # type: ignore[func-returns-value]
    ),
}  # fmt: skip


# --- running ---


def _load(kind: str, folder: Path) -> str:
    """Read a folder as the product does, in this process."""
    from bundler.data.calibration_images import load_calibration_images
    from bundler.data.labelled_boxes import load_detection_images
    from bundler.data.labelled_images import load_validation
    from bundler.data.preprocessing import Preprocessing

    crop = Preprocessing(resize=256, crop=224, interpolation="bilinear")
    if kind == "calibration":
        images = load_calibration_images(folder, crop, count=2000, seed=0)
        return f"{len(images)} read, {len(images.skipped)} skipped"
    if kind == "classes":
        labelled = load_validation(folder, crop, num_classes=2)
        return f"{sum(len(labels) for _, labels in labelled.batches(8))} read"
    boxes = load_detection_images(
        folder, Preprocessing(resize=64, crop=64, interpolation="bilinear", fit="letterbox"), num_classes=2
    )
    return f"{sum(1 for _ in boxes)} read"


def _child(kind: str, folder: Path) -> int:
    from bundler.cli.failures import report

    try:
        sys.stdout.write(_load(kind, folder) + "\n")
    except Exception as error:  # noqa: BLE001  the command line ends so too
        return report(error, debug=False)
    return 0


@dataclass(frozen=True)
class Outcome:
    """What came of a case; `problem` is empty where it held."""

    problem: str
    code: int
    seconds: float
    megabytes: float


def _make(case: Case, folder: Path) -> int:
    try:
        if case.kind == "calibration":
            for index in range(GOOD):
                _good(folder / f"good{index}.png", index)
        case.make(folder)
    except Exception:  # noqa: BLE001  of a forked process
        traceback.print_exc()
        return 1
    return 0


def attack(case: Case, workplace: Path) -> Outcome:
    """Make a case's folder, read it in another process, and judge what happened."""
    folder = workplace / "data"
    folder.mkdir()
    if os.fork() == 0:  # so that what it takes to make the files is not counted
        os._exit(_make(case, folder))
    _, failed = os.wait()
    assert not failed, "the case's files could not be made"
    before = sorted(path.name for path in workplace.iterdir())
    start = time.monotonic()
    with (workplace / "output").open("w+b") as output:
        process = subprocess.Popen(
            [sys.executable, __file__, "--child", case.kind, str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=workplace,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        killer = threading.Timer(10 * SECONDS, process.kill)  # other programs may run
        killer.start()
        _, status, usage = os.wait4(process.pid, 0)
        killer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - start
        used = usage.ru_utime + usage.ru_stime
        output.seek(0)
        said = output.read()
    (workplace / "output").unlink()
    megabytes = usage.ru_maxrss / 1024
    problem = _problem(case, process.returncode, said, used, megabytes)
    if sorted(path.name for path in workplace.iterdir()) != before:
        problem = "it wrote something beside the folder"
    return Outcome(problem, process.returncode, seconds, megabytes)


def _problem(case: Case, code: int, said: bytes, seconds: float, megabytes: float) -> str:
    text = said.decode(errors="replace")
    if code != case.code:
        return f"exit code {code} instead of {case.code}: {text[-200:]!r}"
    if "Traceback" in text or "not foreseen" in text:
        return f"not foreseen: {text[-200:]!r}"
    if any(not (character.isprintable() or character == "\n") for character in text):
        return f"not printable: {text!r}"
    if len(text.splitlines()) > 14:
        return f"{len(text.splitlines())} lines of warnings"
    if code == 0 and int(text.splitlines()[-1].split()[0]) < GOOD:
        return f"good images were not read: {text[-200:]!r}"
    if seconds > SECONDS or megabytes > MEGABYTES:
        return "too long" if seconds > SECONDS else "too much memory"
    return ""


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        return _child(sys.argv[2], Path(sys.argv[3]))
    words = sys.argv[1:]
    chosen = {name: case for name, case in CASES.items() if name in words}  # a whole name, or else parts of names
    chosen = chosen or {name: case for name, case in CASES.items() if not words or any(word in name for word in words)}
    held = 0
    for name, case in chosen.items():
        with tempfile.TemporaryDirectory() as workplace:
            outcome = attack(case, Path(workplace))
        held += not outcome.problem
        verdict = "held" if not outcome.problem else f"NOT HELD: {outcome.problem}"
        print(f"{name:40} code {outcome.code:3} {outcome.seconds:6.1f} s {outcome.megabytes:7.0f} MB  {verdict}", flush=True)
    print(f"{len(chosen)} tried, {held} held")
    return 0 if held == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
