"""Device images: base, runtime and application layers, written without executing anything foreign, loaded and tagged."""
