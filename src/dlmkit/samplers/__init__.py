"""Samplers: one reverse step each; `generate` is the only loop."""
