"""Hugging Face causal LMs as backbones; every Hugging Face quirk is in this folder."""

from dlmkit.backbones.hf.backbone import HFBackbone as HFBackbone
