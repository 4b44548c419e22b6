"""Checkpoints: reading a finished or interrupted run back."""
