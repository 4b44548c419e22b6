"""Names that users typed in earlier releases, and what they are called now. An old name is refused with the new one."""

from __future__ import annotations

import re

KEYS: dict[str, str] = {
    "data.accumulate": "batch.accumulate",
    "data.keep_documents_apart": "data.document_masking",
    "data.micro_batch_size": "batch.micro_size",
    "data.num_steps": "num_steps",
    "data.num_train_blocks": "data.num_train_sequences",
    "data.num_val_blocks": "data.num_val_sequences",
    "data.num_workers": "batch.num_workers",
    "data.parts": "data.sources",
    "data.seed": "seed",
    "t_sampler.centred": "t_sampler.by_variance",
    "t_sampler.floor": "t_sampler.uniform_share",
    "process.min_share": "corruption.min_share",
}
"""Old key -> new key of the configuration, such as "data.parts" -> "data.sources"; keys below it move along."""

CHOICES: dict[str, str] = {
    "process=absorbing_complementary": "corruption=complementary",
    "process=absorbing_fixed_count": "corruption=fixed_count",
}
"""Old "group=name" -> new "group=name"."""


def renamed(override: str) -> str | None:
    """Return one line for an override that has an old name, or ``None``.

    Args:
        override: what was typed, such as "+data.parts.a.weight=2" or, with -m, "process=absorbing,uniform".
    """
    key, equals, value = override.lstrip("+~").partition("=")
    if equals:
        for name in re.split(r"[\[\],\s]+", value):
            if (choice := renamed_choice(key, name)) is not None:
                return choice
    return renamed_key(key)


def renamed_key(key: str) -> str | None:
    """Return one line for a dotted key that is renamed, or lies below one that is, or ``None``."""
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            return f"{key} is now {new}{key.removeprefix(old)}"
    return None


def renamed_choice(group: str, name: str) -> str | None:
    """Return one line for a renamed choice of a group, or ``None``."""
    old = f"{group}={name}"
    return f"{old} is now {CHOICES[old]}" if old in CHOICES else None
