"""The order of the steps: `build` makes a bundle and proves it, `verify` proves one again."""
