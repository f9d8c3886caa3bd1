"""Device images: base, runtime and application layers, the cache of layers, and loading and tagging in an engine."""
