"""Records of runs that were never trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dlmkit.runs import RunSummary


def toy_summary(**changes: Any) -> RunSummary:
    """The record of a finished run of four steps, with changes."""
    finished = RunSummary(
        experiment="quickstart",
        name="family=absorbing",
        family="absorbing",
        objective="masked",
        process="absorbing",
        schedule="linear",
        backbone="hf",
        sampler="ancestral",
        t_sampler="stratified",
        data="kjv",
        precision="32-true",
        params=957_184,
        init_from=None,
        nll_is_exact=False,
        entropy_per_token=None,
        seed=0,
        git_commit="fe8a4b9",
        data_fingerprint="bd20",
        dlmkit_version="0.1.0",
        steps=4,
        tokens_seen=4_000,
        total_tokens=4_000,
        flops=24_000.0,
        total_flops=24_000.0,
        tokens_per_second=15_000.0,
        peak_memory_bytes=2**30,
        wall_seconds=75.0,
        val_nll=5.0,
        val_nll_stderr=0.01,
        val_reconstruction=0.0,
        val_prior=0.0,
        val_ppl=148.4,
        val_bpb=2.3,
        val_tokens=66_048,
        val_t_grid=8,
        status="finished",
    )
    return replace(finished, **changes)
