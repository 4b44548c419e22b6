"""The configuration: composing it, checking what was typed for it, and explaining errors in one line."""

from dlmkit.config.composition import (
    LONGEST_NAME,
    choices_of,
    compose,
    conf_dir,
    group_name,
    is_group,
    micro_size,
    num_steps,
    register_resolvers,
    run_name,
)
from dlmkit.config.errors import explain
from dlmkit.config.overrides import check_overrides
from dlmkit.config.precision import keep_precision, precision_here, settle_precision
from dlmkit.config.values import check_values
from dlmkit.text_hints import nearest

__all__ = [
    "LONGEST_NAME",
    "check_overrides",
    "check_values",
    "choices_of",
    "compose",
    "conf_dir",
    "explain",
    "group_name",
    "is_group",
    "keep_precision",
    "micro_size",
    "nearest",
    "num_steps",
    "precision_here",
    "register_resolvers",
    "run_name",
    "settle_precision",
]
