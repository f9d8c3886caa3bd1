"""Plug-in models: model parsers that other packages provide as entry points of the group `bundler.models`."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Container
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import get_args

from bundler.data.preprocessing import Fit, Interpolation
from bundler.models.specs import ModelSpec, Task

__all__ = ["GROUP", "BrokenModel", "UserModel", "user_models"]

GROUP = "bundler.models"
PARAMETERS = ("weights", "progress", "quantize", "is_qat", "target")  # of a model parser function, all keyword-only
NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")  # also the name of the bundle's folder and of its device image
LONGEST = 100  # characters of a name
LARGEST = 8192  # pixels of an input side; a tenth of the largest number of classes


@dataclass(frozen=True, kw_only=True)
class UserModel:
    """A model parser that a package provides; `package` is the package's name and version."""

    name: str
    package: str
    spec: ModelSpec


@dataclass(frozen=True, kw_only=True)
class BrokenModel:
    """An entry point that cannot be used, and the reason."""

    name: str
    package: str
    reason: str


def user_models(*, taken: Container[str]) -> list[UserModel | BrokenModel]:
    """Import the entry points and return a result for each, sorted by name.

    An entry point is a model parser function (docs/specification.md). Its attribute `model_spec`, a `ModelSpec`, can change the
    default preprocessing (224 pixels cropped from 256); `name` and `parser` in it are replaced by those of the entry point.

    Args:
        taken: names that are already in use.
    """
    entries, found = _entries()
    seen: set[str] = set()
    for entry in sorted(entries, key=lambda entry: (entry.name, entry.value)):
        package = _package(entry.dist)
        spec = f"the name {entry.name} is already in use" if entry.name in taken or entry.name in seen else _loaded(entry)
        if isinstance(spec, str):
            found.append(BrokenModel(name=entry.name, package=package, reason=spec))
            continue
        seen.add(entry.name)
        found.append(UserModel(name=entry.name, package=package, spec=spec))
    return found


def _entries() -> tuple[list[EntryPoint], list[UserModel | BrokenModel]]:
    """Return all entry points of the group, and a broken model for each package whose entry points cannot be read."""
    with suppress(Exception):  # importlib.metadata fails at the first package with broken metadata
        return list(entry_points(group=GROUP)), []
    entries: dict[tuple[str, str], EntryPoint] = {}
    broken: list[UserModel | BrokenModel] = []
    for distribution in distributions():
        try:
            for entry in distribution.entry_points.select(group=GROUP):
                entries.setdefault((entry.name, entry.value), entry)
        except Exception as error:  # noqa: BLE001  as above
            reason = f"its entry points cannot be read ({_described(error)})"
            broken.append(BrokenModel(name="every model", package=_package(distribution), reason=reason))
    return list(entries.values()), broken


def _package(distribution: Distribution | None) -> str:
    try:
        name, version = (distribution.name, distribution.version) if distribution else (None, None)
    except Exception:  # noqa: BLE001  its METADATA may be missing or unreadable
        name = version = None
    return f"{name} {version}" if name and version else "an unnamed package"


def _described(error: BaseException) -> str:
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001  a foreign package's own exception
        text = ""
    return f"{type(error).__name__}: {text}"


def _loaded(entry: EntryPoint) -> ModelSpec | str:
    """Return the spec of the parser, or the reason why it cannot be used."""
    if not NAME.fullmatch(entry.name) or len(entry.name) > LONGEST:
        return f"{entry.name!r} is not a valid image name; use lower-case letters and digits, separated by - _ or ."
    if not entry.pattern.match(entry.value):
        return f"{entry.value} is not of the form package.module:function"
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            parser = entry.load()
        accepted = inspect.signature(parser).parameters
        usual = ModelSpec(name=entry.name, parser=f"{entry.module}:{entry.attr}", resize=256, crop=224)
        asked = getattr(parser, "model_spec", usual)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  importing another package can raise anything
        return f"{entry.value} cannot be loaded ({_described(error)})"
    lacking = [name for name in PARAMETERS if name not in accepted or accepted[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    if lacking:
        return f"{entry.value} does not take {', '.join(lacking)} as keyword-only parameters"
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()):
        return f"{entry.value} does not take **kwargs"
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [name for name, item in accepted.items() if item.default is item.empty and item.kind not in variadic]
    if required:
        return f"{entry.value} cannot be called without {', '.join(required)}"
    if not isinstance(asked, ModelSpec):
        return f"model_spec of {entry.value} is not a ModelSpec"
    problem = _spec_problem(asked)
    return f"model_spec of {entry.value}: {problem}" if problem else replace(asked, name=usual.name, parser=usual.parser)


def _spec_problem(spec: ModelSpec) -> str:
    """Return which field has an invalid value; an empty string if none has."""
    for name in ("resize", "crop", "num_classes"):
        value, most = getattr(spec, name), 10 * LARGEST if name == "num_classes" else LARGEST
        if type(value) is not int or not 1 <= value <= most:
            return f"{name} is {value!r:.100}, not an integer from 1 to {most}"
    for name, known in (("interpolation", Interpolation), ("fit", Fit), ("task", Task)):
        if getattr(spec, name) not in get_args(known):
            return f"{name} is {getattr(spec, name)!r:.100}, not {' or '.join(get_args(known))}"
    for name in ("mean", "std"):
        value = getattr(spec, name)
        if not isinstance(value, tuple | list) or len(value) != 3 or not all(_is_number(item) for item in value):
            return f"{name} is {value!r:.100}, not three numbers"
    return "" if all(spec.std) else "std contains 0"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
