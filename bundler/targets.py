"""TargetProfile: the whole truth about a target, read from one TOML file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from bundler.architecture import Architecture
from bundler.device.runner_json import OptimizationLevel
from bundler.errors import TargetProfileError, UnknownTargetError
from bundler.plain_files import read_regular
from bundler.resources import resource

__all__ = [
    "CpuName",
    "CpuProfile",
    "Name",
    "OptimizationLevel",
    "QuantizationProfile",
    "Ranges",
    "RecoveryStep",
    "Refinement",
    "TargetProfile",
    "Tolerances",
    "find_target",
    "load_target",
    "load_targets",
]

# Every field of a profile has an alphabet and a bound: other programs get them as arguments.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]  # also the tag of an image
CpuName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,=+-]*$", max_length=200)]  # QEMU: `max,sve=off`
Feature = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=64)]
Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$", max_length=128)]  # Debian Policy 5.6.1
Suite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]
Requirement = Annotated[  # PEP 508's name and PEP 440's version, pinned
    str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*$", max_length=128)
]
WheelPlatform = Annotated[str, Field(pattern=r"^[a-z0-9]+(?:_[a-z0-9]+)+$", max_length=64)]
Decibel = Annotated[float, Field(ge=-1000, le=1000)]
_PROFILE_BYTES: Final = 256 * 2**10  # at most; ours have 4 KB


class _Profile(BaseModel):
    """Frozen, and strict about its keys: one that is missing or unknown is an error, never a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Ranges = Literal["minmax-ranges", "mse-ranges", "percentile-ranges", "entropy-ranges"]
Refinement = (
    Literal[
        "8-bit-activations",
        "per-channel-weights",
        "saturation-free-weights",
        "equalized-channels",
        "compensated-rounding",
        "corrected-biases",
    ]
    | Ranges
)
RecoveryStep = Refinement | Literal["more-pictures", "float-layers"]

_RANGES: tuple[Ranges, ...] = get_args(Ranges)
_NEEDED: dict[str, tuple[Refinement, ...]] = {"compensated-rounding": ("per-channel-weights", "saturation-free-weights")}


class QuantizationProfile(_Profile):
    """What picks torch's engine and qconfig (specification, `get_platform_aware_qconfig`), and what is changed in that qconfig.

    Without `refinements` it is torch's default of that name. `recovery` is what may be tried beyond them, in that order, where
    INT8 loses more accuracy than is allowed.
    """

    engine: Literal["fbgemm", "qnnpack"]
    qconfig: Literal["fbgemm", "qnnpack"]
    refinements: tuple[Refinement, ...]
    recovery: tuple[RecoveryStep, ...]

    @property
    def ranges(self) -> Ranges | None:
        """How the ranges of activations are chosen; None is torch's own, as `mse-ranges`."""
        chosen = (ranges for ranges in _RANGES if ranges in self.refinements)
        return next(chosen, None)

    def refined(self, refinement: Refinement) -> QuantizationProfile:
        """Return the profile with one refinement more, and what that needs; of two ways to choose ranges, the new one."""
        kept = [item for item in self.refinements if refinement not in _RANGES or item not in _RANGES]
        added = [item for item in (*_NEEDED.get(refinement, ()), refinement) if item not in kept]
        return self.model_copy(update={"refinements": (*kept, *added)})

    @model_validator(mode="after")
    def _fits_together(self) -> QuantizationProfile:
        for item in self.refinements:
            lacking = [needed for needed in _NEEDED.get(item, ()) if needed not in self.refinements]
            if lacking:
                raise ValueError(f"{item} needs {' and '.join(lacking)}")
        if sum(item in _RANGES for item in self.refinements) > 1:
            raise ValueError("ranges can be chosen in one way only")
        return self


class ExportProfile(_Profile):
    opset: Annotated[int, Field(ge=13, le=100)]
    torch_max_steps: Annotated[int, Field(ge=1, le=255)]
    torch_sqnr_loss_db: Annotated[float, Field(ge=0, le=1000)]
    fp32_min_sqnr_db: Decibel


class RuntimeProfile(_Profile):
    """What is laid into the image to run the models."""

    python: Annotated[str, Field(pattern=r"^3\.[0-9]{1,2}$")]
    requirements: Annotated[tuple[Requirement, ...], Field(min_length=1, max_length=50)]
    wheel_platforms: Annotated[tuple[WheelPlatform, ...], Field(min_length=1, max_length=50)]
    graph_optimization_level: OptimizationLevel


class ImageProfile(_Profile):
    suite: Suite
    packages: Annotated[tuple[Package, ...], Field(max_length=500)]
    user: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}:[1-9][0-9]{0,8}$")]


class Tolerances(_Profile):
    max_steps: Annotated[int, Field(ge=0, le=255)]
    sqnr_loss_db: Annotated[float, Field(ge=0, le=1000)]
    fp32_min_sqnr_db: Decibel


class CpuProfile(_Profile):
    """A CPU to prove: `native`, or a name that QEMU's `-cpu` takes."""

    name: CpuName
    present: Annotated[tuple[Feature, ...], Field(max_length=200)]
    absent: Annotated[tuple[Feature, ...], Field(max_length=200)]


class VerificationProfile(_Profile):
    timeout_seconds: Annotated[int, Field(ge=1, le=7 * 24 * 3600)]
    memory_mib: Annotated[int, Field(ge=64, le=2**20)]
    emulator_minimum: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.]*$", max_length=30)]
    golden_inputs: Annotated[int, Field(ge=2, le=1000)]
    golden_inputs_fp32: Annotated[int, Field(ge=1, le=1000)]
    fleet: Annotated[tuple[Name, ...], Field(max_length=20)]
    tolerances: Tolerances
    cpus: Annotated[tuple[CpuProfile, ...], Field(min_length=1, max_length=50)]

    @field_validator("emulator_minimum")
    @classmethod
    def _is_version(cls, text: str) -> str:
        Version(text)
        return text


class TargetProfile(_Profile):
    """A target: platform, quantized engine, runtime, image, and the CPUs on which a bundle proves itself."""

    name: Name
    aliases: Annotated[tuple[Name, ...], Field(max_length=20)]
    summary: Annotated[str, Field(max_length=500)]
    platform: Annotated[str, Field(max_length=30)]
    quantization: QuantizationProfile
    export: ExportProfile
    runtime: RuntimeProfile
    image: ImageProfile
    verification: VerificationProfile

    @field_validator("summary")
    @classmethod
    def _is_printable(cls, text: str) -> str:
        if not text.isprintable():
            raise ValueError("control characters and line breaks are not allowed")
        return text

    @field_validator("platform")
    @classmethod
    def _is_known(cls, text: str) -> str:
        return Architecture.parse(text).platform

    @property
    def architecture(self) -> Architecture:
        return Architecture.parse(self.platform)


def load_target(path: Path) -> TargetProfile:
    """Read and validate one profile.

    Raises:
        TargetProfileError: the file cannot be read, is not TOML, or a key is missing, unknown or out of range.
    """
    try:
        text = read_regular(path, limit=_PROFILE_BYTES, follow_links=True).decode()
        return TargetProfile.model_validate(tomllib.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TargetProfileError(path, f"{key}: {first['msg']}") from error
    except UnicodeDecodeError as error:
        raise TargetProfileError(path, f"it is not UTF-8 (byte {error.start})") from error
    except RecursionError as error:
        raise TargetProfileError(path, "it is nested too deeply") from error
    except OSError as error:
        raise TargetProfileError(path, error.strerror or str(error)) from error
    except ValueError as error:  # TOMLDecodeError, and a date or number that Python cannot hold
        raise TargetProfileError(path, str(error)) from error


def load_targets() -> tuple[TargetProfile, ...]:
    """Return every profile of `targets/`, by name."""
    return tuple(load_target(path) for path in sorted(resource("targets").glob("*.toml")))


def find_target(name: str) -> TargetProfile:
    """Return the target of that name or alias, or the one in that TOML file.

    Raises:
        UnknownTargetError: no target is called that; it carries the nearest names.
    """
    if re.search(r"[/\\]|\.toml$", name):
        return load_target(Path(name))
    targets = load_targets()
    for target in targets:
        if name.lower() in (target.name, *target.aliases):
            return target
    raise UnknownTargetError(name, [known for target in targets for known in (target.name, *target.aliases)])
