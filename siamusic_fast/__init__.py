"""Self-supervised pre-training of music encoders, at the speed of the GPU."""

__version__ = "0.1.0"
