"""alpha(t) = 1 - cos(pi/2 (1 - t))."""

import math

from torch import Tensor, cos, sin

from dlmkit.schedules.base import Schedule


class Cosine(Schedule):
    """alpha(t) = 1 - cos(pi/2 (1 - t)): fast near the data (slope -pi/2), slow near the noise (slope 0).

    Source: arXiv 2406.04329 (MD4), section 3. Not `cosine_mdlm`, which other code also calls "cosine".
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Return 1 - cos(pi/2 (1 - t))."""
        return 1.0 - cos(0.5 * math.pi * (1.0 - t))

    def derivative(self, t: Tensor) -> Tensor:
        """Return -pi/2 sin(pi/2 (1 - t))."""
        return -0.5 * math.pi * sin(0.5 * math.pi * (1.0 - t))
