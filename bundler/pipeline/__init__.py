"""The order of the steps: `build_bundle` makes a bundle and verifies it, `verify_bundle` verifies an existing one."""
