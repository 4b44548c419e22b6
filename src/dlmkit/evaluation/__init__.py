"""Evaluation: the bound on held-out text, with its standard error."""
