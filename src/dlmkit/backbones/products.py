"""Matrix products of the output head, whose sums are wider than their factors."""

from __future__ import annotations

import torch
from torch import Tensor


def product_dtype(hidden: Tensor) -> torch.dtype:
    """Return the type of the head's products: autocast's where it is on, else that of `hidden`."""
    device_type = hidden.device.type
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else hidden.dtype


def product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Write left @ right to `out`, which may be float32 where these are not; fresh memory would cost a CPU more."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    elif out.is_cuda:
        torch.mm(left, right, out_dtype=out.dtype, out=out)
    else:
        out.copy_(left @ right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to `total` in place."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right
