"""Readers of quantised checkpoints: folders in the style of the Hugging Face hub, into NumPy arrays."""

from baracuda_py.checkpoints.awq import AwqConfig, AwqLayer, read_config, read_layer

__all__ = ["AwqConfig", "AwqLayer", "read_config", "read_layer"]
