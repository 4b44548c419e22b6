"""What bf16 is worth on this machine: matrix products and a small training step in float32 and in bf16."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from dlmkit.build import build_module
from dlmkit.config import compose, precision_here
from dlmkit.randomness import generator_for
from dlmkit.rates import best_seconds, product_rate
from dlmkit.step import losses
from dlmkit.types import Batch, TimeDraw

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PAYS = 1.1
"""A step that is faster by less is not worth its rounding."""
VOCAB = 4096
SHAPE = (
    "length=128",
    "num_steps=20",
    "family=absorbing",
    "backbone.config={n_layer: 2, n_head: 4, n_embd: 256}",
)
SEQUENCES = 4


@dataclass(frozen=True)
class Speeds:
    """What was measured, by "float32" and "bf16".

    Attributes:
        products: FLOP/s of a square matrix product.
        steps: training tokens per second of a small network.
    """

    products: dict[str, float]
    steps: dict[str, float]

    def table(self) -> Table:
        """Return both as a table."""
        table = Table("precision", "matrix product, GFLOP/s", "training step, tokens/s", title="float32 and bf16")
        for name in DTYPES:
            table.add_row(name, f"{self.products[name] / 1e9:,.0f}", f"{self.steps[name]:,.0f}")
        return table

    @property
    def gain(self) -> float:
        """How many times as fast the step is in bf16."""
        return self.steps["bf16"] / self.steps["float32"]


def verdict(speeds: Speeds) -> str:
    """Return one line: whether bf16-mixed pays here, and what trainer.precision=auto is."""
    auto, pays = precision_here("auto"), speeds.gain >= PAYS
    advice = {
        ("32-true", True): "; set trainer.precision=bf16-mixed for it",
        ("bf16-mixed", False): "; set trainer.precision=32-true",
    }.get((auto, pays), "")
    ratio = f"a small training step is {speeds.gain:.1f} times as fast as in float32"
    return f"bf16-mixed {'pays' if pays else 'does not pay'} here: {ratio}; trainer.precision=auto is {auto}{advice}"


def measured() -> Speeds:
    """Measure both in both precisions, in seconds of the processor, or of a GPU's work."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    products = {name: product_rate(device, dtype) for name, dtype in DTYPES.items()}
    return Speeds(products, {name: _step_rate(device, dtype) for name, dtype in DTYPES.items()})


def _step_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Return training tokens per second of steps on random tokens, under autocast where `dtype` is not float32."""
    config = compose([*SHAPE, f"batch.size={SEQUENCES}"], Path("."))
    config.vocab = {"size": VOCAB, "mask_id": VOCAB - 1, "bos_id": VOCAB - 2, "eos_id": VOCAB - 2}
    module = build_module(config, bytes_per_token=None).to(device)
    tokens = torch.randint(VOCAB - 2, (SEQUENCES, config.length), device=device)
    batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool))
    optimizer = module.make_optimizer([{"params": list(module.parameters())}])
    draw = module.t_sampler.sample(len(batch), generator_for("cpu", 0))
    times = TimeDraw(draw.t.to(device), draw.weight.to(device))
    noised = module.corruption.draw(module.process, batch, times, range(len(batch)), "doctor")

    def step() -> None:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = losses(module.objective, module.process, module.backbone, noised).total
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return tokens.numel() / best_seconds(step, device)
