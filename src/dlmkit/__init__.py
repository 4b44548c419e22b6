"""dlmkit: a Lightning kit for experiments with diffusion language models.

Parts live in one folder per seam (schedules, processes, objectives, t_samplers, backbones, samplers, data); importing
this package imports none of them, so that `import dlmkit` stays quick.
"""

__version__ = "0.1.0"
