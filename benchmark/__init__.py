"""A reproducible benchmark of any-to-any multimodal generative models."""

__version__ = "0.1.0"
