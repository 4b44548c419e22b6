"""Corruption: how the noise of a training batch is drawn, for one and the same forward process."""
