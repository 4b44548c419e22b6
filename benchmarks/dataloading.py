"""Whether data loading could ever hold a training step up: batches per second of the loader alone.

    python -m benchmarks.dataloading [--out DIR]

A packed file of random tokens is read as a run reads its corpus: memory-mapped, in a random order, without worker
processes, to int64 batches. Seconds are processor time. The needed rate is the fastest step that this kit is measured
at; on a GPU the loader works while the device computes, so that it must only be faster than the step.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch.utils.data import DataLoader

from benchmarks.common import write_result
from benchmarks.train_step import describe_machine
from dlmkit.data.order import BatchPlan, TrainOrder
from dlmkit.data.sequences import ArrowSequences, SequenceDataset, sequence_schema

SHAPES = {"quickstart": (128, 16), "gpt2_127m": (512, 8), "gpt2_355m": (1024, 16), "llama_7b": (2048, 8)}
"""Tokens of a sequence, sequences of a micro-batch."""
NUM_SEQUENCES, NUM_BATCHES, ROUNDS = 4096, 200, 5
NEEDED = 1_000_000
"""Tokens per second: more than a 127M step takes on one H100-class GPU at 60% of its peak (0.98e15 FLOP/s in bf16)."""


def packed_file(folder: Path, length: int) -> Path:
    """Write sequences of random tokens, each of one document."""
    tokens = np.random.default_rng(0).integers(50_000, size=(NUM_SEQUENCES, length), dtype=np.int32)
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), length) for part in (tokens, 0 * tokens)]
    path, schema = folder / f"{length}.arrow", sequence_schema(length)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        arrays = [column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)]
        writer.write_batch(pa.record_batch(arrays, schema=schema))
    return path


def measure(length: int, batch: int) -> dict[str, Any]:
    """Return tokens per second of the loader alone: the median of a few rounds, and all of them."""
    with tempfile.TemporaryDirectory() as folder:
        sequences = ArrowSequences(packed_file(Path(folder), length))
        plan = BatchPlan(batch, 1, ROUNDS * NUM_BATCHES)
        dataset = SequenceDataset(sequences, document_masking=False)
        loader = iter(DataLoader(dataset, batch_sampler=TrainOrder(len(sequences), plan, 0, 1), collate_fn=lambda b: b))
        rates = []
        for _ in range(ROUNDS):
            begin = time.process_time()
            for _ in range(NUM_BATCHES):
                next(loader)
            rates.append(NUM_BATCHES * batch * length / (time.process_time() - begin))
    return {"length": length, "batch": batch, "tokens_per_second": statistics.median(rates), "rounds": rates}


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    machine = result["machine"]
    lines = [
        f"# Data loading, {result['date']}",
        "",
        f"{machine['kind']}; torch {machine['torch']}; commit {machine['git_commit']}. One process, no workers;"
        f" processor time. A 127M step on an H100-class GPU needs fewer than {NEEDED:,} tokens per second.",
        "",
        "| shape | sequences of | batch | tokens/s | times what a GPU needs |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, shape in result["shapes"].items():
        rate = shape["tokens_per_second"]
        lines.append(f"| {name} | {shape['length']} | {shape['batch']} | {rate:,.0f} | {rate / NEEDED:.0f} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write both files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine("cpu"),
        "shapes": {name: measure(*shape) for name, shape in SHAPES.items()},
    }
    write_result(result, "dataloading", table(result), options.out)
    print(table(result))


if __name__ == "__main__":
    main()
