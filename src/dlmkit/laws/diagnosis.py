"""What is wrong with an objective, in words: where and by which factor its nll differs from the generic bound's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlmkit.laws.findings import relative
from dlmkit.laws.predictions import TablePrediction
from dlmkit.laws.toys import a_batch, losses_of
from dlmkit.objectives.base import Objective
from dlmkit.objectives.elbo import GenericElbo
from dlmkit.processes.base import ForwardProcess

CONSTANT = "constant"


def diagnosis(objective: Objective[Any], process: ForwardProcess) -> str:
    """Return how the nll differs from the generic bound's: at which tokens, by which factor, at which t."""
    noised, logits = a_batch(process)
    mine = losses_of(objective, TablePrediction(logits), noised, process).nll.detach().double()
    generic = GenericElbo()(TablePrediction(logits), noised, process).nll
    due = generic > 1e-9
    extra = (mine.abs() > 1e-9) & ~due & noised.scored
    if extra.any():
        clean = float((noised.x_t == noised.x_0)[extra].double().mean())
        return (
            f"nll is not zero at {int(extra.sum())} positions where the bound is, {clean:.0%} of them clean (x_t = x_0)"
        )
    t = noised.t[:, None].expand(due.shape)[due]
    ratio = (mine[due] / generic[due]).nan_to_num(nan=float("inf"))
    if bool(((ratio - 1).abs() < 1e-6).all()):
        return "per token it equals the generic bound under this process: look at the process or its schedule"
    at = int((t - 0.3).abs().argmin())
    if (ratio[at] - 1).abs() < 1e-6:
        at = int((ratio - 1).abs().argmax())
    name = factor_name(process, t, ratio)
    if name == CONSTANT:
        return f"nll is {float(ratio[at]):.3g} times the generic bound's, at every t"
    factor = f"{name} = {float(ratio[at]):.3g}" if name else f"{float(ratio[at]):.3g}"
    return f"at t = {float(t[at]):.3g} nll is {factor} times the generic bound's"


def factor_name(process: ForwardProcess, t: Tensor, ratio: Tensor) -> str | None:
    """Return the name of the ratio [N] as a function of t [N], such as "1/p_mask" (p_mask = 1 - alpha), if any."""
    alpha = process.alpha(t)
    slope = torch.func.jvp(process.alpha, (t,), (torch.ones_like(t),))[1]
    plain = {"p_mask": 1 - alpha, "t": t, "alpha": alpha, "(-alpha')": -slope}
    plain["p_mask/(-alpha')"] = (1 - alpha) / -slope
    named = dict(plain)
    for name, value in plain.items():
        named[f"1/{name}" if "/" not in name else "(-alpha')/p_mask"] = 1 / value
        named[f"{name}^2"] = value**2
    for name, value in named.items():
        if bool((relative(ratio, value, 1e-6) < 1e-6).all()) and not bool(((value - 1).abs() < 1e-9).all()):
            return name
    constant = float(ratio.median())
    return CONSTANT if bool(((ratio / constant - 1).abs() < 1e-6).all()) else None
