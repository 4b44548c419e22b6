"""Backbones: networks that read noisy tokens and predict clean ones."""
