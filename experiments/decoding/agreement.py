"""How close predictions with approximate caches are to those without, on the adapted model of `experiment=decoding`.

    python experiments/decoding/agreement.py runs/decoding [--texts N] [--out DIR]

In held-out texts: the blocks before a block are revealed, it and all later ones are masked, and the cache is made; then
half of the block is revealed, and its other half is predicted with and without the cache.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

import torch
from measure import BLOCK_LENGTH, held_out
from torch import Tensor

from dlmkit import LoadedModel, load
from dlmkit.evaluation.cache_agreement import Agreement, State, cache_agreement


def agreement(model: LoadedModel, texts: Tensor, around: str) -> Agreement:
    """Return the agreement over all blocks of the texts."""
    found = [at_block(model, texts, start, around) for start in range(0, texts.shape[1], BLOCK_LENGTH)]
    num = sum(one.num_positions for one in found)
    same = sum(one.same_argmax * one.num_positions for one in found) / num
    return Agreement(same, sum(one.kl * one.num_positions for one in found) / num, num)


def at_block(model: LoadedModel, texts: Tensor, start: int, around: str) -> Agreement:
    """Return the agreement in the block that begins at `start`, half of which was revealed since the cache was made."""
    assert model.process.mask_id is not None
    length, stop = texts.shape[1], start + BLOCK_LENGTH
    at = torch.arange(length)
    t = torch.full((len(texts),), 1.0 - start / length, dtype=torch.float64)
    beginning = texts.masked_fill(at >= start, model.process.mask_id)
    end = stop if around == "both" else length
    cache = model.backbone.freeze(beginning, t, start, end, around)
    masked = (at >= stop) | ((at >= start) & (at % 2 == 1))
    where = (masked & (at < stop)).expand(texts.shape)
    state = State(texts.masked_fill(masked, model.process.mask_id), t, where)
    return cache_agreement(model.backbone, cache, end - start, [state])


@torch.no_grad()
def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load(options.runs / "family=adapted")
    texts = held_out(model, options.texts)
    result = {
        around: {"same_argmax": found.same_argmax, "kl": found.kl, "positions": found.num_positions}
        for around in ("prefix", "both")
        for found in [agreement(model, texts, around)]
    }
    path = options.out / f"{datetime.date.today().isoformat()}-agreement.json"
    path.write_text(json.dumps({"texts": len(texts), "block_length": BLOCK_LENGTH, **result}, indent=1) + "\n")
    sys.stdout.write(path.read_text())


if __name__ == "__main__":
    main()
