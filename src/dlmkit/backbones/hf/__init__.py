"""Hugging Face causal LMs as backbones; every Hugging Face quirk is in this folder."""

from dlmkit.extras import without_warnings

with without_warnings():  # transformers imports torchao where it is installed, which misses kernels for GPUs
    import transformers.modeling_utils as _  # noqa: F401

from dlmkit.backbones.hf.backbone import HFBackbone as HFBackbone
