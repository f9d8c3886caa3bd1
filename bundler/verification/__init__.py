"""Verification: the bundle's own device program is executed on every CPU of the profile and gives evidence."""
