"""Parameterizations: what the raw output of a network means."""
