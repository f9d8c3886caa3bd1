"""Architecture: the names of a processor architecture in OCI, Debian, wheel tags, QEMU and uname."""

from __future__ import annotations

import os
from enum import Enum

__all__ = ["Architecture"]


class Architecture(Enum):
    """A processor architecture; its value is the OCI name, as in the platform `linux/arm64`."""

    AMD64 = "amd64"
    ARM64 = "arm64"

    @property
    def platform(self) -> str:
        """The OCI platform, `linux/arm64`."""
        return f"linux/{self.value}"

    @property
    def debian(self) -> str:
        """Debian's name; the same as OCI's for both architectures."""
        return self.value

    @property
    def machine(self) -> str:
        """The name in `uname -m`, wheel tags and QEMU's program names: `aarch64`."""
        return {Architecture.AMD64: "x86_64", Architecture.ARM64: "aarch64"}[self]

    @classmethod
    def parse(cls, name: str) -> Architecture:
        """Return the architecture with the given name, with or without `linux/` and the variant of arm64 (`linux/arm64/v8`).

        Raises:
            ValueError: the architecture is not supported.
        """
        bare = name.lower().removeprefix("linux/").removesuffix("/v8")
        for architecture in cls:
            if bare in (architecture.value, architecture.machine):
                return architecture
        msg = f"{name!r} is not one of {', '.join(architecture.platform for architecture in cls)}"
        raise ValueError(msg)

    @classmethod
    def host(cls) -> Architecture | None:
        """Return the architecture of this machine; None if it is not supported."""
        try:
            return cls.parse(os.uname().machine)
        except ValueError:
            return None
