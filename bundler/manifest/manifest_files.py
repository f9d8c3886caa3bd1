"""Reading and writing `manifest.json`, and its JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from bundler.errors import BundleDamagedError
from bundler.manifest.records import MANIFEST_BYTES, MANIFEST_SCHEMA, Manifest
from bundler.plain_files import read_regular
from bundler.strict_json import parse_json

__all__ = ["json_schema", "parse_manifest", "read_manifest", "write_manifest"]


def json_schema() -> str:
    """Return the JSON Schema (draft 2020-12) of the manifest, as it is published in the repository."""
    schema = Manifest.model_json_schema(by_alias=True)
    document = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": MANIFEST_SCHEMA, **schema}
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write the manifest as indented JSON, keys by alias."""
    path.write_text(manifest.model_dump_json(by_alias=True, indent=2) + "\n", encoding="utf-8")


def read_manifest(bundle: Path) -> Manifest:
    """Read `manifest.json` of a bundle, without checking any other file of it (bundler/packaging/reading.py does).

    Raises:
        BundleDamagedError: it is missing, is not a regular file of at most 8 MiB, or as `parse_manifest`.
    """
    path = bundle / "manifest.json"
    try:
        content = read_regular(path, limit=MANIFEST_BYTES)
    except OSError as error:
        raise _not_a_manifest(path, error.strerror or str(error)) from error
    return parse_manifest(content, path)


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Return the manifest in the bytes that were read from `path`.

    Raises:
        BundleDamagedError: they are not unambiguous JSON (bundler/strict_json.py), or do not follow the schema.
    """
    try:
        document = parse_json(content)
    except ValueError as error:
        raise _not_a_manifest(path, str(error)) from error
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise _not_a_manifest(path, f"{where}: {first['msg']}") from error


def _not_a_manifest(path: Path, reason: str) -> BundleDamagedError:
    return BundleDamagedError(
        f"{path} is not a manifest: {reason}", next_step="Build the bundle again: `bundler bundle MODEL --target TARGET`."
    )
