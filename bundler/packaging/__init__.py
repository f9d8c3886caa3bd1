"""Bundles: staging, documents, checksums, archive and atomic installation; reading and checking of existing ones."""
