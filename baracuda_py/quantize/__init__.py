"""Quantised weights from floating-point ones: plain rounding, and activation-aware (AWQ)."""

from baracuda_py.quantize.activations import ActivationStatistics
from baracuda_py.quantize.awq import AwqResult, quantize_awq, quantize_awq_group
from baracuda_py.quantize.calibration import save_activations
from baracuda_py.quantize.checkpoint import quantize_checkpoint
from baracuda_py.quantize.folding import fold_into_linear, fold_into_norm
from baracuda_py.quantize.rounding import Rounded, round_to_nearest

__all__ = [
    "ActivationStatistics",
    "AwqResult",
    "Rounded",
    "fold_into_linear",
    "fold_into_norm",
    "quantize_awq",
    "quantize_awq_group",
    "quantize_checkpoint",
    "round_to_nearest",
    "save_activations",
]
