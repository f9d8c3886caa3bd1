"""TargetProfile: a build target (platform, quantization, runtime, device image, CPUs to verify on), read from one TOML file."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

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
    "FallbackStep",
    "Name",
    "OptimizationLevel",
    "QuantizationOption",
    "QuantizationProfile",
    "Ranges",
    "TargetProfile",
    "Tolerances",
    "find_target",
    "load_target",
    "load_targets",
]

# Every text field has a pattern and every field a bound, because the values become arguments of other programs.
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]  # also a tag of the device image
CpuName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,=+-]*$", max_length=200)]  # QEMU: `max,sve=off`
Feature = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.]*$", max_length=64)]
Package = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$", max_length=128)]  # Debian Policy 5.6.1
Suite = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=64)]
Requirement = Annotated[  # PEP 508's name and PEP 440's version, pinned
    str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?==[A-Za-z0-9][A-Za-z0-9.!+_-]*$", max_length=128)
]
WheelPlatform = Annotated[str, Field(pattern=r"^[a-z0-9]+(?:_[a-z0-9]+)+$", max_length=64)]
Decibel = Annotated[float, Field(ge=-1000, le=1000)]
_MAX_PROFILE_BYTES: Final = 256 * 2**10  # the profiles in targets/ have about 5 KB


class _Profile(BaseModel):
    """A frozen table of a profile in which every key is required and no other key is allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Ranges = Literal["minmax-ranges", "mse-ranges", "percentile-ranges", "entropy-ranges"]
QuantizationOption = (
    Literal[
        "8-bit-activations",
        "per-channel-weights",
        "saturation-free-weights",
        "cross-layer-equalization",
        "gptq",
        "bias-correction",
    ]
    | Ranges
)
FallbackStep = QuantizationOption | Literal["more-calibration-images", "mixed-precision"]

_RANGES: tuple[Ranges, ...] = get_args(Ranges)
_REQUIRED: dict[str, tuple[QuantizationOption, ...]] = {"gptq": ("per-channel-weights", "saturation-free-weights")}


class QuantizationProfile(_Profile):
    """The quantized engine and qconfig of torch, and what is done beyond that qconfig.

    Args:
        engine: `torch.backends.quantized.engine` for conversion and execution.
        qconfig: backend name for torch's `get_default_qconfig` and `get_default_qat_qconfig`.
        options: changes to that qconfig and further algorithms; empty for torch's default.
        fallback: accuracy fallback: what is tried, in this order, if INT8 loses more accuracy than is allowed.
    """

    engine: Literal["fbgemm", "qnnpack"]
    qconfig: Literal["fbgemm", "qnnpack"]
    options: tuple[QuantizationOption, ...]
    fallback: tuple[FallbackStep, ...]

    @property
    def ranges(self) -> Ranges | None:
        """The option that estimates activation ranges; None for the observer of torch's qconfig."""
        chosen = (ranges for ranges in _RANGES if ranges in self.options)
        return next(chosen, None)

    def with_option(self, option: QuantizationOption) -> QuantizationProfile:
        """Return a copy with one option and those that it requires added; a range option replaces the present one."""
        kept = [item for item in self.options if option not in _RANGES or item not in _RANGES]
        added = [item for item in (*_REQUIRED.get(option, ()), option) if item not in kept]
        return self.model_copy(update={"options": (*kept, *added)})

    @model_validator(mode="after")
    def _is_consistent(self) -> QuantizationProfile:
        for item in self.options:
            missing = [required for required in _REQUIRED.get(item, ()) if required not in self.options]
            if missing:
                raise ValueError(f"{item} requires {' and '.join(missing)}")
        chosen = [item for item in self.options if item in _RANGES]
        if len(chosen) > 1:
            raise ValueError(f"only one of the range options can be used (got {', '.join(chosen)})")
        return self


class ExportProfile(_Profile):
    """The ONNX opset, and the tolerances of ONNX Runtime against torch on the build host."""

    opset: Annotated[int, Field(ge=13, le=100)]
    torch_max_steps: Annotated[int, Field(ge=1, le=255)]
    torch_sqnr_loss_db: Annotated[float, Field(ge=0, le=1000)]
    fp32_min_sqnr_db: Decibel


class RuntimeProfile(_Profile):
    """What is installed in the device image to run the models."""

    python: Annotated[str, Field(pattern=r"^3\.[0-9]{1,2}$")]
    requirements: Annotated[tuple[Requirement, ...], Field(min_length=1, max_length=50)]
    wheel_platforms: Annotated[tuple[WheelPlatform, ...], Field(min_length=1, max_length=50)]
    graph_optimization_level: OptimizationLevel


class ImageProfile(_Profile):
    """The Debian base of the device image, and the `uid:gid` that it runs as."""

    suite: Suite
    packages: Annotated[tuple[Package, ...], Field(max_length=500)]
    user: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}:[1-9][0-9]{0,8}$")]


class Tolerances(_Profile):
    """The largest allowed difference between the outputs on a target CPU and the golden outputs."""

    max_steps: Annotated[int, Field(ge=0, le=255)]
    sqnr_loss_db: Annotated[float, Field(ge=0, le=1000)]
    fp32_min_sqnr_db: Decibel


class CpuProfile(_Profile):
    """A CPU to verify on: `native`, or a value of QEMU's `-cpu`, with the CPU features it must and must not report."""

    name: CpuName
    present: Annotated[tuple[Feature, ...], Field(max_length=200)]
    absent: Annotated[tuple[Feature, ...], Field(max_length=200)]


class VerificationProfile(_Profile):
    """How a bundle is executed on the CPUs of its target, and on those of other targets."""

    timeout_seconds: Annotated[int, Field(ge=1, le=7 * 24 * 3600)]
    memory_mib: Annotated[int, Field(ge=64, le=2**20)]
    emulator_minimum: Annotated[str, Field(pattern=r"^[0-9][0-9A-Za-z.]*$", max_length=30)]
    golden_inputs: Annotated[int, Field(ge=2, le=1000)]
    golden_inputs_fp32: Annotated[int, Field(ge=1, le=1000)]
    also_verify_on: Annotated[tuple[Name, ...], Field(max_length=20)]
    tolerances: Tolerances
    cpus: Annotated[tuple[CpuProfile, ...], Field(min_length=1, max_length=50)]

    @field_validator("emulator_minimum")
    @classmethod
    def _is_version(cls, text: str) -> str:
        Version(text)
        return text


class TargetProfile(_Profile):
    """A target: platform, quantization, ONNX export, runtime, device image, and verification."""

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


# Names that were replaced, for profiles written for an older version: table, old key, new key.
_RENAMED_KEYS: Final = (
    ("quantization", "refinements", "options"),
    ("quantization", "recovery", "fallback"),
    ("verification", "fleet", "also_verify_on"),
)
_RENAMED_VALUES: Final = {
    "equalized-channels": "cross-layer-equalization",
    "compensated-rounding": "gptq",
    "corrected-biases": "bias-correction",
    "more-pictures": "more-calibration-images",
    "float-layers": "mixed-precision",
}


def load_target(path: Path) -> TargetProfile:
    """Read and validate one profile.

    Raises:
        TargetProfileError: the file cannot be read, is not TOML, uses names of an older version, or a key is missing, unknown
            or out of range.
    """
    try:
        text = read_regular(path, limit=_MAX_PROFILE_BYTES, follow_links=True).decode()
        document = tomllib.loads(text)
        renamed = _renamed(document)
        if renamed:
            raise TargetProfileError(path, "; ".join(renamed))
        return TargetProfile.model_validate(document)
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


def _renamed(document: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each name in the document that has been replaced."""
    found = []
    for table, old, new in _RENAMED_KEYS:
        content = document.get(table)
        if isinstance(content, dict) and old in content:
            found.append(f"{table}.{old} was renamed to {table}.{new}")
    quantization = document.get("quantization")
    for key in ("refinements", "options", "recovery", "fallback"):
        values = quantization.get(key) if isinstance(quantization, dict) else None
        strings = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
        found += [
            f'quantization.{key}: "{value}" was renamed to "{_RENAMED_VALUES[value]}"'
            for value in strings
            if value in _RENAMED_VALUES
        ]
    return found


def load_targets() -> tuple[TargetProfile, ...]:
    """Return the profiles of `targets/`, sorted by file name."""
    return tuple(load_target(path) for path in sorted(resource("targets").glob("*.toml")))


def find_target(name: str) -> TargetProfile:
    """Return the target with this name or alias, or the one in the TOML file at this path.

    Raises:
        UnknownTargetError: no target has this name; the error suggests similar names.
        TargetProfileError: the file is not a valid profile.
    """
    if re.search(r"[/\\]|\.toml$", name):
        return load_target(Path(name))
    targets = load_targets()
    for target in targets:
        if name.lower() in (target.name, *target.aliases):
            return target
    raise UnknownTargetError(name, [known for target in targets for known in (target.name, *target.aliases)])
