"""What a package looks like from outside whose own requirement is missing."""

raise ImportError("broken_net needs a library that is not here")
