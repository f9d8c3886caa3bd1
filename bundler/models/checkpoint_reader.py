"""The child process that parses untrusted checkpoint files under limits; it returns JSON and bytes, never objects.

bundler/models/checkpoint_file.py starts it with `python -I -S`. `main` reads a task as JSON from stdin, which names inherited
file descriptors. This module and its imports need only the standard library.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from dataclasses import asdict
from typing import Any, BinaryIO

from bundler.models.archived_files import checkpoints_in, unpack
from bundler.models.file_kinds import identify
from bundler.models.pickle_interpreter import UnreadableError
from bundler.models.pickle_json import to_json
from bundler.models.safetensors_files import read_safetensors_header
from bundler.models.torch_files import Place, open_zip, read_legacy_file, read_storage, read_torch_zip

__all__ = ["answer", "main"]

_LONGEST_ANSWER = 48 * 2**20  # characters


def main() -> None:
    """Execute the task on stdin under its limits, and write the answer to stdout as JSON."""
    task = json.load(sys.stdin)
    _limit(task)
    gc.disable()  # it would traverse the description repeatedly, and memory is limited anyway
    text = json.dumps(answer(task))
    if len(text) > _LONGEST_ANSWER:
        text = json.dumps({"unreadable": f"the description of its pickle has more than {_LONGEST_ANSWER >> 20} MiB"})
    with os.fdopen(1, "w") as pipe:
        pipe.write(text)


def answer(task: dict[str, Any]) -> dict[str, Any]:
    """Execute a task and return its answer; the reason for a failure has the key "unreadable"."""
    try:
        return _TASKS[task["task"]](task)
    except UnreadableError as error:
        return {"unreadable": str(error)}
    except MemoryError:
        return {"unreadable": f"reading it needs more than {task['memory'] >> 20:,} MiB of memory"}
    except RecursionError:
        return {"unreadable": "it is nested too deeply"}
    except OSError as error:
        return {"unreadable": error.strerror or str(error)}


def _limit(task: dict[str, Any]) -> None:
    """Set the resource limits of this process; `output` is the size limit of the shared memory that it writes."""
    for kind, value in (
        (resource.RLIMIT_AS, task["memory"]),
        (resource.RLIMIT_CPU, task["seconds"]),
        (resource.RLIMIT_FSIZE, task.get("output", 0)),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        _, hard = resource.getrlimit(kind)
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (allowed, allowed))


def _describe(task: dict[str, Any]) -> dict[str, Any]:
    with _opened(task["file"], "rb") as file:
        size = os.fstat(file.fileno()).st_size
        kind = identify(file, size)
        found: dict[str, Any] = {"kind": kind.name}
        if kind.refusal:
            return found | {"refusal": kind.refusal, "next_step": kind.next_step}
        if kind.name in ("torch zip", "torch legacy"):
            read = read_torch_zip(open_zip(file)) if kind.name == "torch zip" else read_legacy_file(file, size)
            found["description"] = to_json(read.description)
            found["places"] = {key: asdict(place) for key, place in read.places.items()}
        elif kind.name == "safetensors":
            found["tensors"] = {name: asdict(tensor) for name, tensor in read_safetensors_header(file, size).items()}
        elif kind.name in ("zip", "tar", "gzip"):
            found["members"] = checkpoints_in(file, kind.name)
    return found


def _unpack(task: dict[str, Any]) -> dict[str, Any]:
    with _opened(task["file"], "rb") as file, _opened(task["target"], "wb") as target:
        unpack(file, task["kind"], task["member"], target, most=task["output"])
    return {}


def _extract(task: dict[str, Any]) -> dict[str, Any]:
    places = [Place(**place) for place in task["places"]]
    with _opened(task["file"], "rb") as file, _opened(task["target"], "wb") as target:
        archive = open_zip(file) if any(place.member is not None for place in places) else None
        for place, position in zip(places, task["positions"], strict=True):
            target.seek(position)
            read_storage(file, archive, place, target)
    return {}


def _opened(descriptor: int, mode: str) -> BinaryIO:
    file: BinaryIO = os.fdopen(descriptor, mode)  # type: ignore[assignment]
    return file


_TASKS = {"describe": _describe, "unpack": _unpack, "extract": _extract}
