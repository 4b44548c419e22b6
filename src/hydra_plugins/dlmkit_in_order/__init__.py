"""A Hydra sweeper for sweeps in which some runs start from others."""
