"""Recognize the format of a checkpoint file by its content; its name is ignored.

Runs in the child process (bundler/models/checkpoint_reader.py): only the standard library is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO

from bundler.models.torch_files import is_legacy, open_zip

__all__ = ["HEAD", "FileKind", "identify", "looks_like_checkpoint"]

HEAD = 4096  # bytes from which a format is recognized

_GIVE_TORCH = "Pass PyTorch weights: torch.save(model.state_dict(), FILE), or a .safetensors file."
_DOWNLOAD = "Download or copy the file again."
_UNPACK = "Unpack it, and pass the checkpoint itself."
_EXPORTED = "ONNX and other exported graphs cannot be quantized here. " + _GIVE_TORCH


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """A file format. For an unsupported one, `refusal` is a predicate of "the checkpoint FILE"."""

    name: str
    refusal: str = ""
    next_step: str = ""


def _refused(name: str, refusal: str, next_step: str) -> FileKind:
    return FileKind(name=name, refusal=refusal, next_step=next_step)


# Magic numbers with their offsets.
_MAGIC: tuple[tuple[int, bytes, FileKind], ...] = (
    (
        0,
        b"version https://git-lfs.github.com/spec/",
        _refused(
            "Git LFS pointer",
            "is a Git LFS pointer, not the file itself",
            "Run `git lfs pull` in its repository, or download the file from its web page.",
        ),
    ),
    (0, b"\x89HDF\r\n\x1a\n", _refused("HDF5", "is an HDF5 file, as Keras and TensorFlow write it", _GIVE_TORCH)),
    (0, b"\x93NUMPY", _refused("NumPy", "is a NumPy array (.npy)", _GIVE_TORCH)),
    (4, b"TFL3", _refused("TFLite", "is a TensorFlow Lite model", _EXPORTED)),
    (0, b"GGUF", _refused("GGUF", "is a GGUF file", _GIVE_TORCH)),
    (0, b"ftrt", _refused("TensorRT", "is a TensorRT engine", _EXPORTED)),
    (0, b"ptrt", _refused("TensorRT", "is a TensorRT engine", _EXPORTED)),
    (0, b"7767517", _refused("ncnn", "is an ncnn graph (.param)", _EXPORTED)),
    (0, b"7z\xbc\xaf\x27\x1c", _refused("7z", "is a 7z archive", _UNPACK)),
    (0, b"Rar!", _refused("RAR", "is a RAR archive", _UNPACK)),
    (0, b"\x28\xb5\x2f\xfd", _refused("zstd", "is compressed with zstd", _UNPACK)),
    (0, b"\x04\x22\x4d\x18", _refused("lz4", "is compressed with lz4", _UNPACK)),
    (0, b"\x7fELF", _refused("program", "is a program or a shared library", _GIVE_TORCH)),
    (0, b"MZ", _refused("program", "is a program for Windows", _GIVE_TORCH)),
    (0, b"%PDF", _refused("PDF", "is a PDF document", _DOWNLOAD)),
    (0, b"\x89PNG", _refused("image", "is an image (PNG)", _GIVE_TORCH)),
    (0, b"\xff\xd8\xff", _refused("image", "is an image (JPEG)", _GIVE_TORCH)),
    (0, b"\x1f\x8b", FileKind(name="gzip")),
    (0, b"BZh", FileKind(name="tar")),
    (0, b"\xfd7zXZ\x00", FileKind(name="tar")),
    (257, b"ustar", FileKind(name="tar")),
)
_HTML = re.compile(rb"\s*<(!doctype|html|head|\?xml|!--|body|script|error)", re.IGNORECASE)
_ONNX = re.compile(rb"\x08[\x01-\x14](\x12|\x3a|\x42|\x1a)", re.DOTALL)  # ir_version, then producer_name, graph or opset_import
_OPENVINO_XML = re.compile(rb"<net[\s>]")
_LONGEST_HEADER = 100_000_000  # of a safetensors header in bytes, as in the format's own reader


def identify(file: BinaryIO, size: int) -> FileKind:  # noqa: C901  one case for each kind
    """Return the format of a file of `size` bytes.

    Raises:
        UnreadableError: it begins like a zip archive and is damaged.
    """
    file.seek(0)
    head = file.read(HEAD)
    if size == 0:
        return _refused("empty", "is empty (0 bytes)", _DOWNLOAD)
    if head.startswith(b"PK"):
        return _zip_kind(file)
    for offset, magic, kind in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    if is_legacy(head):
        return FileKind(name="torch legacy")
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _HTML.match(text):
        what = "an OpenVINO graph (.xml)" if _OPENVINO_XML.search(text) else "a web page or an XML document, not a checkpoint"
        return _refused("HTML", f"is {what}", "Open it in a browser to see why, and download the file itself.")
    if safetensors_header_size(head) is not None:
        return FileKind(name="safetensors")
    if re.match(rb"\x80[\x02-\x05]", head):
        return _refused(
            "pickle",
            "is a plain pickle (pickle.dump), which torch.save did not write",
            "Save the tensors again: torch.save(model.state_dict(), FILE). Pickled code is never executed.",
        )
    if _ONNX.match(head) and size > 100:
        return _refused("ONNX", "is an ONNX model or another exported graph (protobuf)", _EXPORTED)
    if not head.strip(b"\0"):
        return FileKind(name="zeros")
    return _text_kind(text, size) or FileKind(name="unknown")


def safetensors_header_size(head: bytes) -> int | None:
    """Return the length of a safetensors header in bytes; None if the file does not begin with one."""
    length = int.from_bytes(head[:8], "little")
    if len(head) > 8 and head[8:9] in (b"{", b" ", b"[") and length >= 2 and (head[8:9] == b"{" or length <= _LONGEST_HEADER):
        return length
    return None


def _text_kind(text: bytes, size: int) -> FileKind | None:
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        if error.start < len(text) - 4:  # a character may be cut at the end
            return None
        decoded = text[: error.start].decode()
    if not all(character.isprintable() or character.isspace() for character in decoded):
        return None
    begins = " ".join(decoded.split())[:40]
    if re.match(r"\[(net|network)\]", begins):
        return _refused(
            "cfg", "is a Darknet cfg, which contains no weights", "Pass the .weights file, and this one with --cfg."
        )
    if decoded.lstrip()[:1] in ("{", "["):
        if '"weight_map"' in decoded:
            return _refused(
                "index",
                "is the index of a checkpoint that is split into several files; it contains no tensors",
                "Load all parts, and save one file: torch.save(model.state_dict(), FILE).",
            )
        return _refused("JSON", f"is a JSON text ({size:,} bytes), not a checkpoint", _DOWNLOAD)
    return _refused("text", f"is a text file that begins with {begins!r}, not a checkpoint", _DOWNLOAD)


def _zip_kind(file: BinaryIO) -> FileKind:
    archive = open_zip(file)
    names = archive.namelist()
    last = {name.rpartition("/")[2] for name in names}
    if any(name.endswith((".npy",)) for name in names) and all(name.endswith(".npy") for name in names):
        return _refused("NumPy", "contains NumPy arrays (.npz), not a PyTorch checkpoint", _GIVE_TORCH)
    if "data.pkl" in last:
        if "constants.pkl" in last or any("/code/" in f"/{name}" for name in names):
            return _refused(
                "TorchScript",
                "is a TorchScript program (torch.jit.save), not a state dict",
                "Save its weights alone: torch.save(torch.jit.load(FILE).state_dict(), NEW).",
            )
        return FileKind(name="torch zip")
    if last & {"serialized_exported_program.json", "archive_format"}:
        return _refused("torch.export", "is a program of torch.export (.pt2)", _GIVE_TORCH)
    if "model.weights.h5" in last:
        return _refused("Keras", "is a Keras model (.keras)", _GIVE_TORCH)
    if last & {"saved_model.pb", "saved_model.pbtxt"}:
        return _refused("TensorFlow", "is a TensorFlow SavedModel", _GIVE_TORCH)
    if last & {"MODEL_MANIFEST"} or ("extra" in last and "version" in last):
        return _refused("mobile", "is a model of PyTorch Mobile or ExecuTorch", _GIVE_TORCH)
    return FileKind(name="zip")


def looks_like_checkpoint(name: str, head: bytes) -> bool:
    """Return whether a member of an archive is a checkpoint, by its first bytes; Darknet files are recognized by name."""
    if name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._"):
        return False
    if head.startswith(b"PK\x03\x04"):
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return first.endswith((b"/data.pkl", b"/.format_version", b"/version", b"/byteorder", b"/.storage_alignment"))
    if is_legacy(head) or safetensors_header_size(head) is not None:
        return True
    return re.search(r"\.weights$|\.conv\.\d+$", name) is not None
