"""Files: reproducible tar files, atomic writes and SHA-256 digests."""
