"""Moved to :mod:`speakerkit.weights`."""

from speakerkit.weights import load_checkpoint, model_of

__all__ = ["load_checkpoint", "model_of"]
