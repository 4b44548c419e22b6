"""Planted errors: real parts with one error each, a file for each kind of part, and the laws that find them.

An error that no law finds is not tested for, so that a new law needs a mutant here (tests/laws/test_mutants.py).
"""

from laws.mutants import (
    backbones,
    blocks,
    boundary_terms,
    corruption,
    objectives,
    orders,
    parameterizations,
    processes,
    samplers,
    schedules,
    t_samplers,
)
from laws.mutants.base import Mutant, RightPart

MUTANTS: list[Mutant] = [
    *schedules.MUTANTS,
    *processes.MUTANTS,
    *parameterizations.MUTANTS,
    *corruption.MUTANTS,
    *objectives.MUTANTS,
    *boundary_terms.MUTANTS,
    *t_samplers.MUTANTS,
    *samplers.MUTANTS,
    *orders.MUTANTS,
    *backbones.MUTANTS,
    *blocks.MUTANTS,
]

RIGHT_PARTS: list[RightPart] = [
    *corruption.RIGHT_PARTS,
    *objectives.RIGHT_PARTS,
    *t_samplers.RIGHT_PARTS,
    *backbones.RIGHT_PARTS,
    *blocks.RIGHT_PARTS,
]

__all__ = ["MUTANTS", "RIGHT_PARTS", "Mutant", "RightPart"]
