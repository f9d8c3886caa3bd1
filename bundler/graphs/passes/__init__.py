"""Rewrites of an exported graph, one per file."""
