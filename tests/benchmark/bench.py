"""`make bench`: how long things take, each next to the bare minimum, in one run on this machine.

- `bundler bundle mobilenet_v2` for arm64 at 224 pixels with a warm base image, without the emulated runs, against plain torch
  doing calibrate + convert + two exports. The profile used is arm64-qnnpack with `native` as its only CPU, which no x86 host
  can run: everything else is done, the device image included.
- `bundler --help` and `bundler models` against `python -c "import click"`.

The median of several runs each, taken in turn, so that a machine whose speed drifts slows both alike.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bundler import console
from bundler.data.calibration_images import synthetic_images
from bundler.data.preprocessing import Preprocessing
from bundler.models.initialization import random_state_dict
from bundler.models.mobilenet_v2 import mobilenet_v2
from bundler.resources import resource

BUNDLER = str(Path(sys.executable).with_name("bundler"))
INCOMPLETE = 3


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="edge-bundler-bench-") as text:
        folder = Path(text)
        rows = [_compare("bundle mobilenet_v2, not proved", *_bundle_commands(folder), runs=5, codes=(0, INCOMPLETE), goal=1.5)]
    click = [sys.executable, "-c", "import click"]
    rows.append(_compare("bundler --help", [BUNDLER, "--help"], click, runs=21, codes=(0,), goal=2.0))
    rows.append(_compare("bundler models", [BUNDLER, "models"], click, runs=21, codes=(0,), goal=2.0))
    console.table(("what", "ours", "bare", "ratio", "goal"), rows)


def _bundle_commands(folder: Path) -> tuple[list[str], list[str]]:
    preprocessing = Preprocessing(resize=224, crop=224, interpolation="bilinear")
    weights = folder / "weights.pth"
    pictures = torch.from_numpy(synthetic_images(preprocessing, count=16, seed=0).pictures)
    torch.save(dict(random_state_dict(mobilenet_v2, pictures, seed=0)), weights)
    photographs = folder / "pictures"
    photographs.mkdir()
    generator = np.random.default_rng(0)
    for index in range(68):
        coarse = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(photographs / f"{index:03}.jpg")
    profile = folder / "arm64-unproved.toml"
    text = resource("targets", "arm64-qnnpack.toml").read_text(encoding="utf-8")
    before_cpus = text[: text.index("[[verification.cpus]]")]
    before_cpus = re.sub(r"^also_verify_on = .*$", "also_verify_on = []", before_cpus, flags=re.MULTILINE)
    profile.write_text(re.sub(r"^#.*\n", "", before_cpus, flags=re.MULTILINE) + _NATIVE_ONLY, encoding="utf-8")
    ours = [
        *(BUNDLER, "bundle", "mobilenet_v2", "--target", str(profile), "--weights", str(weights)),
        *("--calibration", str(photographs), "--output", str(folder / "dist")),
    ]
    plain = [sys.executable, str(Path(__file__).with_name("plain.py")), str(weights), str(photographs), str(folder)]
    return ours, plain


_NATIVE_ONLY = """
[[verification.cpus]]
name = "native"
present = []
absent = []
"""


def _compare(
    what: str, ours: Sequence[str], bare: Sequence[str], *, runs: int, codes: tuple[int, ...], goal: float
) -> tuple[str, str, str, str, str]:
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with console.progress(what, 2 * (runs + 1)) as advance:
        for run in range(runs + 1):
            for name, command in (("ours", ours), ("bare", bare)):
                elapsed = _seconds(command, codes if name == "ours" else (0,))
                if run:  # the first one warms the caches
                    seconds[name].append(elapsed)
                advance(1)
    ratio = statistics.median(mine / theirs for mine, theirs in zip(seconds["ours"], seconds["bare"], strict=True))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return what, f"{medians['ours']:.3f} s", f"{medians['bare']:.3f} s", f"{ratio:.2f}", f"{goal}"


def _seconds(command: Sequence[str], codes: tuple[int, ...]) -> float:
    start = time.perf_counter()
    run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    elapsed = time.perf_counter() - start
    if run.returncode not in codes:
        sys.exit(f"{' '.join(command)} ended with {run.returncode}:\n{run.stderr[-2000:]}")
    return elapsed


if __name__ == "__main__":
    main()
