"""RunnerDocument: `runner.json`, which the device runner reads: its models, golden arrays, bounds and checksums."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bundler.errors import BundleDamagedError
from bundler.manifest import Identifier, ReleaseNumber, Sha256, TensorName
from bundler.strict_json import parse_json
from bundler.targets import OptimizationLevel, Tolerances

__all__ = ["RUNNER_BYTES", "RunnerDocument", "parse_runner_document"]

RUNNER_BYTES: Final = 2**20  # at most; ours have 2 KB

# What the runner opens, relative to its own folder: nothing outside of these two folders can be named.
ModelPath = Annotated[str, Field(pattern=r"^models/[a-z0-9][a-z0-9-]*\.onnx$", max_length=60)]
GoldenPath = Annotated[str, Field(pattern=r"^golden/[a-z0-9][a-z0-9-]*\.npy$", max_length=60)]
GoldenModelPath = Annotated[str, Field(pattern=r"^golden/[a-z0-9][a-z0-9-]*\.onnx$", max_length=60)]
FilePath = Annotated[
    str,
    Field(pattern=r"^(?:runner\.py|(?:models|golden)/[a-z0-9][a-z0-9-]*\.onnx|golden/[a-z0-9][a-z0-9-]*\.npy)$", max_length=60),
]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=False, validate_by_alias=True, allow_inf_nan=False)


class GoldenFiles(_Document):
    inputs: GoldenPath
    reference: GoldenPath


class KnownAnswerFiles(_Document):
    model: GoldenModelPath
    inputs: GoldenPath
    expected: GoldenPath


class RunnerMode(_Document):
    """A mode's files, how many golden pictures its selftest runs, and what it is judged by (templates/runner.py)."""

    name: Literal["fp32", "int8-ptq", "int8-qat"]
    model: ModelPath
    expected: GoldenPath
    samples: Annotated[int, Field(ge=1, le=1000)]
    step: Annotated[float, Field(gt=0)] | None
    expected_sqnr_db: float | None


class RunnerDocument(_Document):
    """`runner.json`; every path that it names is in `files`, which holds the checksum of each file beside it in the image."""

    schema_: Literal["edge-bundler/runner/1"] = Field(alias="schema")
    bundle: Identifier
    input: TensorName
    output: TensorName
    task: Literal["classification", "detection"]
    graph_optimization_level: OptimizationLevel
    golden: GoldenFiles
    known_answer: KnownAnswerFiles
    modes: Annotated[tuple[RunnerMode, ...], Field(min_length=1, max_length=3)]
    tolerances: Tolerances
    onnxruntime_minimum: ReleaseNumber | None = None
    python_minimum: ReleaseNumber | None = None
    files: Annotated[dict[FilePath, Sha256], Field(max_length=100)]

    @property
    def named(self) -> frozenset[str]:
        """Every file that the runner opens, and itself."""
        of_modes = (path for mode in self.modes for path in (mode.model, mode.expected))
        known = self.known_answer
        return frozenset(
            {
                *("runner.py", self.golden.inputs, self.golden.reference, known.model, known.inputs, known.expected),
                *of_modes,
            }
        )

    @model_validator(mode="after")
    def _is_whole(self) -> RunnerDocument:
        names = [mode.name for mode in self.modes]
        if len(set(names)) < len(names):
            raise ValueError("a mode occurs twice")
        lacking = sorted(self.named - self.files.keys())
        if lacking:
            raise ValueError(f"`files` has no checksum of {', '.join(lacking)}")
        return self


def parse_runner_document(content: bytes, path: Path) -> RunnerDocument:
    """Return the document in the bytes that were read from `path`.

    Raises:
        BundleDamagedError: they are not JSON with one meaning (bundler/strict_json.py), or do not follow the schema.
    """
    try:
        return RunnerDocument.model_validate(parse_json(content))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = f"{where}: {first['msg']}" if where else first["msg"]
    except ValueError as error:
        reason = str(error)
    raise BundleDamagedError(
        f"{path} is not usable: {reason}", next_step="Restore the bundle from its .tar.gz, or build it again."
    )
