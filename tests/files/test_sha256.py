from __future__ import annotations

from pathlib import Path

from bundler.files.sha256 import oci_digest, sha256_of

# FIPS 180-2, appendix B.1: the digest of "abc".
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_a_file_is_that_of_fips_180(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert sha256_of(tmp_path / "file") == ABC


def test_an_oci_digest_names_its_algorithm() -> None:
    assert oci_digest(b"abc") == f"sha256:{ABC}"
