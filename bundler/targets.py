"""TargetProfile: the whole truth about a target, read from one TOML file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal, get_args

from packaging.version import Version
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from bundler.architecture import Architecture
from bundler.errors import TargetProfileError, UnknownTargetError
from bundler.resources import resource

__all__ = [
    "CpuProfile",
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

OptimizationLevel = Literal["disabled", "basic", "extended", "all"]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")]


class _Profile(BaseModel):
    """Frozen, and strict about its keys: one that is missing or unknown is an error, never a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    opset: Annotated[int, Field(ge=13)]
    torch_max_steps: PositiveInt
    torch_sqnr_loss_db: Annotated[float, Field(ge=0)]
    fp32_min_sqnr_db: float


class RuntimeProfile(_Profile):
    """What is laid into the image to run the models."""

    python: Annotated[str, Field(pattern=r"^3\.\d+$")]
    requirements: tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[^=]+$")], ...]
    wheel_platforms: tuple[str, ...]
    graph_optimization_level: OptimizationLevel


class ImageProfile(_Profile):
    suite: str
    packages: tuple[str, ...]
    user: Annotated[str, Field(pattern=r"^[1-9]\d*:[1-9]\d*$")]


class Tolerances(_Profile):
    max_steps: Annotated[int, Field(ge=0)]
    sqnr_loss_db: Annotated[float, Field(ge=0)]
    fp32_min_sqnr_db: float


class CpuProfile(_Profile):
    """A CPU to prove: `native`, or a name that QEMU's `-cpu` takes."""

    name: str
    present: tuple[str, ...]
    absent: tuple[str, ...]


class VerificationProfile(_Profile):
    timeout_seconds: PositiveInt
    memory_mib: PositiveInt
    emulator_minimum: str
    golden_inputs: Annotated[int, Field(ge=2)]
    golden_inputs_fp32: PositiveInt
    fleet: tuple[Name, ...]
    tolerances: Tolerances
    cpus: Annotated[tuple[CpuProfile, ...], Field(min_length=1)]

    @field_validator("emulator_minimum")
    @classmethod
    def _is_version(cls, text: str) -> str:
        Version(text)
        return text


class TargetProfile(_Profile):
    """A target: platform, quantized engine, runtime, image, and the CPUs on which a bundle proves itself."""

    name: Name
    aliases: tuple[Name, ...]
    summary: str
    platform: str
    quantization: QuantizationProfile
    export: ExportProfile
    runtime: RuntimeProfile
    image: ImageProfile
    verification: VerificationProfile

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
        return TargetProfile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise TargetProfileError(path, f"{key}: {first['msg']}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
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
