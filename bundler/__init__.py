"""Edge Bundler: a model and a target go in, a package that proved itself on the target's CPUs comes out."""

__version__ = "0.1.0"
