"""One type that knows each processor architecture's names: OCI, Debian, wheel tag, QEMU, uname."""

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
        """What `uname -m`, wheel tags and QEMU's program names call it: `aarch64`."""
        return {Architecture.AMD64: "x86_64", Architecture.ARM64: "aarch64"}[self]

    @classmethod
    def parse(cls, name: str) -> Architecture:
        """Read any of its names, with or without `linux/` and a variant (`linux/arm64/v8`).

        Raises:
            ValueError: the name is none of ours.
        """
        bare = name.lower().removeprefix("linux/").removesuffix("/v8")
        for architecture in cls:
            if bare in (architecture.value, architecture.machine):
                return architecture
        msg = f"{name!r} is none of {', '.join(architecture.platform for architecture in cls)}"
        raise ValueError(msg)

    @classmethod
    def host(cls) -> Architecture | None:
        """Return the architecture this program runs on; None where it is none of ours."""
        try:
            return cls.parse(os.uname().machine)
        except ValueError:
            return None
