"""Models that other packages offer through entry points of the group `bundler.models`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Container
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points

from bundler.models.specs import ModelSpec

__all__ = ["GROUP", "BrokenModel", "UserModel", "user_models"]

GROUP = "bundler.models"
PARAMETERS = ("weights", "progress", "quantize", "is_qat", "target")  # of a model parser function, all keyword-only
NAME = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*")  # a bundle's folder and its image are called that


@dataclass(frozen=True, kw_only=True)
class UserModel:
    """A parser that a package offers; `package` is its name and version."""

    name: str
    package: str
    spec: ModelSpec


@dataclass(frozen=True, kw_only=True)
class BrokenModel:
    """An entry point that cannot be used, and why."""

    name: str
    package: str
    reason: str


def user_models(*, taken: Container[str]) -> list[UserModel | BrokenModel]:
    """Import what the entry points name, and return one entry for each, sorted by name.

    An entry point is a model parser function (specification). It may carry a `ModelSpec` as its attribute `model_spec`, for
    another input than 224 pixels cut from 256; the entry point's own name and place win over what stands in there.

    Args:
        taken: names that are not to be had any more.
    """
    found: list[UserModel | BrokenModel] = []
    seen: set[str] = set()
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "a package without a name"
        spec = f"the name {entry.name} is taken" if entry.name in taken or entry.name in seen else _loaded(entry)
        if isinstance(spec, str):
            found.append(BrokenModel(name=entry.name, package=package, reason=spec))
            continue
        seen.add(entry.name)
        found.append(UserModel(name=entry.name, package=package, spec=spec))
    return found


def _loaded(entry: EntryPoint) -> ModelSpec | str:
    """Return the spec that the parser asks for, or why it cannot be used."""
    if not NAME.fullmatch(entry.name):
        return f"{entry.name!r} names no image; take lower-case letters and digits, with - _ . between them"
    if not entry.pattern.match(entry.value):
        return f"{entry.value} is not of the form package.module:function"
    try:
        with redirect_stdout(sys.stderr):  # stdout is for results
            parser = entry.load()
        accepted = inspect.signature(parser).parameters
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever a foreign package does when it is imported
        return f"{entry.value} cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())})"
    lacking = [name for name in PARAMETERS if name not in accepted or accepted[name].kind is not inspect.Parameter.KEYWORD_ONLY]
    if lacking:
        return f"{entry.value} does not take {', '.join(lacking)} as keyword-only parameters"
    if all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in accepted.values()):
        return f"{entry.value} does not take **kwargs"
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [name for name, item in accepted.items() if item.default is item.empty and item.kind not in variadic]
    if required:
        return f"{entry.value} cannot be called without {', '.join(required)}"
    usual = ModelSpec(name=entry.name, parser=f"{entry.module}:{entry.attr}", resize=256, crop=224)
    asked = getattr(parser, "model_spec", usual)
    if not isinstance(asked, ModelSpec):
        return f"model_spec of {entry.value} is no ModelSpec"
    return replace(asked, name=usual.name, parser=usual.parser)
