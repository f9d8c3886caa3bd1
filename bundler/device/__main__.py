"""Start the device program: `python3 device.pyz COMMAND` in a bundle, `python3 -m bundler.device COMMAND` on the build host."""

from __future__ import annotations

import sys

__all__ = ["start"]


def start() -> int:
    """Run the command line and return the exit code."""
    if sys.version_info < (3, 10):  # noqa: UP036  an older Python starts this file, too
        print(f"error: this program needs Python 3.10 or newer, found {sys.version.split()[0]}", file=sys.stderr)
        print("  next: Use a newer Python, or the container image that README.md names.", file=sys.stderr)
        return 4
    from .command_line import main  # noqa: PLC0415  an older Python cannot import it

    return main()


if __name__ == "__main__":
    sys.exit(start())
