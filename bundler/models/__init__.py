"""Models, one module per family, and the readers of their checkpoints; `registry` does not import torch."""
