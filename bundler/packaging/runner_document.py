"""Reading `runner.json` of a bundle that somebody else may have made: within bounds, and as the device program reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundler.device.runner_json import RunnerDocument, parse_runner_document
from bundler.errors import BundleDamagedError
from bundler.manifest import Identifier, ReleaseNumber, Sha256, TensorName
from bundler.strict_json import parse_json
from bundler.targets import OptimizationLevel, Tolerances

__all__ = ["RUNNER_BYTES", "read_runner_document"]

RUNNER_BYTES: Final = 2**20  # at most; ours have 4 KB

# What the device program opens, relative to the bundle: nothing outside of these two folders can be named.
ModelPath = Annotated[str, Field(pattern=r"^models/[a-z0-9][a-z0-9-]*\.onnx$", max_length=60)]
GoldenPath = Annotated[str, Field(pattern=r"^golden/[a-z0-9][a-z0-9-]*\.npy$", max_length=60)]
GoldenModelPath = Annotated[str, Field(pattern=r"^golden/[a-z0-9][a-z0-9-]*\.onnx$", max_length=60)]
FilePath = Annotated[
    str,
    Field(
        pattern=r"^(?:device\.pyz|(?:models|golden)/[a-z0-9][a-z0-9-]*\.onnx|golden/[a-z0-9][a-z0-9-]*\.npy)$",
        max_length=60,
    ),
]


class _Bounded(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False, validate_by_alias=True, allow_inf_nan=False)


class _GoldenFiles(_Bounded):
    inputs: GoldenPath
    reference: GoldenPath


class _KnownAnswerFiles(_Bounded):
    model: GoldenModelPath
    inputs: GoldenPath
    expected: GoldenPath


class _Mode(_Bounded):
    name: Literal["fp32", "int8-ptq", "int8-qat"]
    model: ModelPath
    expected: GoldenPath
    samples: Annotated[int, Field(ge=1, le=1000)]
    step: Annotated[float, Field(gt=0)] | None
    expected_sqnr_db: float | None


class _Document(_Bounded):
    """Bounds for what `bundler.device.runner_json` reads, which checks the schema version."""

    schema_: str = Field(alias="schema")
    bundle: Identifier
    input: TensorName
    output: TensorName
    task: Literal["classification", "detection"]
    graph_optimization_level: OptimizationLevel
    onnxruntime_minimum: ReleaseNumber
    python_minimum: ReleaseNumber
    golden: _GoldenFiles
    known_answer: _KnownAnswerFiles
    modes: Annotated[tuple[_Mode, ...], Field(min_length=1, max_length=3)]
    tolerances: Tolerances
    files: Annotated[dict[FilePath, Sha256], Field(max_length=100)]

    @model_validator(mode="after")
    def _names_each_mode_once(self) -> _Document:
        names = [mode.name for mode in self.modes]
        if len(set(names)) < len(names):
            raise ValueError("a mode occurs twice")
        return self


def read_runner_document(content: bytes, path: Path) -> RunnerDocument:
    """Return the document in the bytes that were read from `path`.

    Raises:
        BundleDamagedError: they are not JSON with one meaning (bundler/strict_json.py), do not follow the schema of this
            version, or lack the checksum of a file that the device program opens.
    """
    try:
        value = parse_json(content)
        document = parse_runner_document(value)
        _Document.model_validate(value)
        lacking = sorted(document.opened - document.files.keys())
        reason = f"`files` has no checksum of {', '.join(lacking)}" if lacking else ""
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
    except ValueError as error:
        reason = str(error)
    if reason:
        raise BundleDamagedError(
            f"{path} is not usable: {reason}", next_step="Restore the bundle from its .tar.gz, or build it again."
        )
    return document
