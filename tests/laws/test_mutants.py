"""Every law finds the errors that are planted for it, and every law has one."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import dlmkit.laws
from dlmkit.laws.findings import Law, findings_of
from dlmkit.laws.objectives import law_closed_form
from dlmkit.laws.schedules import law_derivative
from laws.mutants import MUTANTS, RIGHT_PARTS, Mutant
from laws.mutants.base import ABSORBING
from laws.mutants.objectives import CrossEntropyEverywhere, NoWeight
from laws.mutants.schedules import DerivativeWithoutEps


def every_law() -> set[Law]:
    """Return the laws of all modules of dlmkit.laws, in a list of laws or not."""
    modules = [importlib.import_module(f"dlmkit.laws.{one.name}") for one in pkgutil.iter_modules(dlmkit.laws.__path__)]
    return {value for module in modules for value in vars(module).values() if isinstance(value, Law)}


def test_every_law_has_a_mutant():
    with_mutant = {law for mutant in MUTANTS for law in mutant.caught_by}
    assert sorted(law.name for law in every_law() - with_mutant) == []


def test_no_two_mutants_have_one_name():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("mutant", "law"),
    [pytest.param(mutant, law, id=f"{mutant.name}-{law}") for mutant in MUTANTS for law in mutant.caught_by],
)
def test_a_law_finds_the_error(mutant: Mutant, law: Law):
    """The law applies, raises nothing, and its meaning is one line."""
    parts = mutant.parts()
    assert law.why_not(*parts) is None
    failed = [finding for finding in law(*parts) if not finding.passed]
    assert failed
    for finding in failed:
        assert finding.meaning.strip()
        assert "\n" not in finding.meaning


@pytest.mark.parametrize(
    ("right", "law"),
    [pytest.param(right, law, id=f"{right.name}-{law}") for right in RIGHT_PARTS for law in right.passes],
)
def test_a_right_part_is_not_refused(right, law: Law):
    findings = findings_of(law, right.name, *right.parts())
    assert [finding for finding in findings if not finding.passed] == []


def meanings(law: Law, *parts: object) -> str:
    return "\n".join(finding.meaning for finding in law(*parts) if not finding.passed)


def test_the_meaning_names_the_error():
    assert "nll is p_mask = " in meanings(law_closed_form, NoWeight(), ABSORBING)
    assert "100% of them clean" in meanings(law_closed_form, CrossEntropyEverywhere(), ABSORBING)
    slope = meanings(law_derivative, DerivativeWithoutEps(0.1))
    assert "d alpha/dt is -1 " in slope
    assert "-0.9" in slope
