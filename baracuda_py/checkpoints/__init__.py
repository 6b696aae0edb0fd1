"""4-bit checkpoints: folders in the style of the Hugging Face hub, read lazily into typed packed layers.

    checkpoint = checkpoints.open("models/some-awq")
    layer = checkpoint["model.layers.0.mlp.up_proj"]        # headers checked, nothing read
    operands = layer.gemm_operands(AwqWeightLayout.OC_MAJOR)
"""

from baracuda_py.checkpoints.checkpoint import Checkpoint
from baracuda_py.checkpoints.checkpoint import open_checkpoint as open
from baracuda_py.checkpoints.codecs import unpack
from baracuda_py.checkpoints.config import QuantizationConfig
from baracuda_py.checkpoints.convert import convert
from baracuda_py.checkpoints.folder import Folder
from baracuda_py.checkpoints.formats import PackedFormat
from baracuda_py.checkpoints.inspection import Inspection, inspect
from baracuda_py.checkpoints.layer import PackedLayer
from baracuda_py.checkpoints.nibbles import LossReport, Nibbles
from baracuda_py.checkpoints.shard import legal_degrees, shard, shard_fused
from baracuda_py.checkpoints.transcode import GemmOperands, transcode
from baracuda_py.checkpoints.write import Saved, save

__all__ = [
    "Checkpoint",
    "Folder",
    "GemmOperands",
    "Inspection",
    "LossReport",
    "Nibbles",
    "PackedFormat",
    "PackedLayer",
    "QuantizationConfig",
    "Saved",
    "convert",
    "inspect",
    "legal_degrees",
    "open",
    "save",
    "shard",
    "shard_fused",
    "transcode",
    "unpack",
]
