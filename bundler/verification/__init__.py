"""Verification: the bundle's own runner, executed on every CPU of the profile, and the evidence it gives."""
