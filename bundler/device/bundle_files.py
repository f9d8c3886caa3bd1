"""Bundle: the bundle that contains this program, and the checksums of its files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .device_error import DAMAGED, UNUSABLE, DeviceError
from .runner_json import PROGRAM, RUNNER_JSON, BundleMode, RunnerDocument, parse_runner_document

__all__ = ["Bundle", "read_bundle"]

FOLDER: Final = Path(__file__).resolve().parents[2]  # of the archive that this module is in


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle's folder, its runner.json, and the SHA-256 of that file."""

    root: Path
    document: RunnerDocument
    sha256: str

    def modes(self, names: Sequence[str] | None) -> tuple[BundleMode, ...]:
        """Return the modes of these names, each once; None for all.

        Raises:
            DeviceError: there is no such mode.
        """
        known: dict[str, BundleMode] = {mode.name: mode for mode in self.document.modes}
        for name in names or ():
            if name not in known:
                raise DeviceError(UNUSABLE, f"this bundle has no mode {name!r}", f"Its modes: {', '.join(known)}.")
        return tuple(known[name] for name in dict.fromkeys(names)) if names else self.document.modes

    def require_identity(self, beginning: str) -> None:
        """Check that the SHA-256 of runner.json begins with `beginning`.

        Raises:
            DeviceError: it does not.
        """
        if not self.sha256.startswith(beginning):
            reason = f"this is another bundle: the SHA-256 of its {RUNNER_JSON} is {self.sha256}, not {beginning}…"
            raise DeviceError(
                DAMAGED, reason, "Run the image that README.md names, or build it again from the bundle's folder."
            )

    def check_files(self, names: Iterable[str]) -> None:
        """Check these files and this program against their checksums.

        Raises:
            DeviceError: a file is missing, changed, or has no checksum; each one is named.
        """
        problems = []
        for name in sorted({PROGRAM, *names}):
            try:
                digest = hashlib.sha256((self.root / name).read_bytes()).hexdigest()
            except OSError as error:
                problems.append(f"{name} cannot be read ({error.strerror})")
                continue
            if digest != self.document.files.get(name):
                problems.append(f"{name} is changed, or has no checksum")
        if problems:
            raise DeviceError(
                DAMAGED, "; ".join(problems), "Copy the bundle again; its results would not be those that were verified."
            )

    def check_all_files(self) -> None:
        """Check every file that has a checksum, and every file that this program opens.

        Raises:
            DeviceError: as `check_files`.
        """
        self.check_files({*self.document.files, *self.document.opened})


def read_bundle() -> Bundle:
    """Read the runner.json beside this program.

    Raises:
        DeviceError: it cannot be read, or does not follow the schema of this version.
    """
    try:
        content = (FOLDER / RUNNER_JSON).read_bytes()
        document = parse_runner_document(json.loads(content))
    except (OSError, ValueError, RecursionError) as error:
        raise DeviceError(DAMAGED, f"{FOLDER / RUNNER_JSON} is not usable: {error}", "Copy the bundle again.") from error
    return Bundle(root=FOLDER, document=document, sha256=hashlib.sha256(content).hexdigest())
