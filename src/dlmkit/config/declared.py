"""Types and ranges of the keys that no constructor of the kit declares: sections, and objects of libraries."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from dlmkit.ranges import DROPOUT, Count, LoraAlpha, LoraRank, Range, Seed, Tokens, Workers

Layers = Annotated[int, Range("[1, 1024]", "give the number of layers, such as 4")]
Heads = Annotated[int, Range("[1, 1024]", "give the number of heads, such as 4")]
Width = Annotated[int, Range("[1, 65536]", "give a multiple of the number of heads, such as 128")]
Share = Annotated[float, DROPOUT]
Id = Annotated[int, Range("[0, 2147483647]", "leave it to the tokenizer")] | None
Beta = Annotated[float, Range("[0, 1)", "it is what a step leaves of the average before, such as 0.9")]

Budget = Annotated[int, Range("[1, 1000000000000000]", "give the number of training tokens")]

TABLE: dict[str, Any] = {
    # conf/train.yaml
    "seed": Seed,
    "length": Tokens,
    "member": str | None,
    "init_from": str | dict[str, Any] | None,
    "causal": bool,
    "compile": bool | Literal["auto"],
    "ar_weight": Annotated[float, Range("[0, 1e6]", "use 0 for no auxiliary loss")],
    "if_exists": str,
    "run_dir": str,
    "num_steps": Count,
    "batch.size": Count,
    "batch.accumulate": Count,
    "batch.micro_size": Count,
    "batch.num_workers": Workers,
    "budget.tokens": Budget,
    "budget.of.*": Budget,
    "validation.every_steps": Count,
    "validation.at_start": bool,
    "validation.check_times": Annotated[int, Range("[1, 1000000]", "give a number of times, such as 2")],
    "validation.num_times": Annotated[int, Range("[1, 1000000]", "give a number of times, such as 16")],
    "vocab.*": Id,
    # lightning.Trainer
    "trainer.accelerator": str,
    "trainer.devices": Annotated[int, Range("[1, 1024]", "give the number of devices, such as 1")],
    "trainer.num_nodes": Annotated[int, Range("[1, 65536]", "give the number of nodes, such as 1")],
    "trainer.strategy": str,
    "trainer.strategy.*_parallel_size": Count | Literal["auto"],
    "trainer.precision": str | Literal[16, 32, 64] | None,
    "trainer.gradient_clip_val": Annotated[float, Range("[0, 1e6]", "use null or 0 for no clipping")] | None,
    "trainer.log_every_n_steps": Count,
    "trainer.detect_anomaly": bool,
    # torch.optim
    "optimizer.lr": Annotated[float, Range("[0, 100]", "try 2e-3")],
    "optimizer.betas": tuple[Beta, Beta],
    "optimizer.eps": Annotated[float, Range("(0, 1]", "try 1e-8")],
    "optimizer.weight_decay": Annotated[float, Range("[0, 100]", "use 0 for none, or try 0.1")],
    "optimizer.fused": bool | None,
    "optimizer._partial_": bool,
    # lightning.pytorch.callbacks
    "callbacks.checkpoint.dirpath": str,
    "callbacks.checkpoint.filename": str | None,
    "callbacks.checkpoint.every_n_epochs": Count | None,
    "callbacks.checkpoint.save_on_train_epoch_end": bool | None,
    "callbacks.checkpoint.save_top_k": Annotated[int, Range("[-1, 1000000]", "use -1 to keep all, 1 for the newest")],
    "callbacks.checkpoint.save_last": bool | None,
    "callbacks.checkpoint.enable_version_counter": bool,
    "callbacks.ema.decay": Annotated[float, Range("[0, 1]", "it is what a step leaves of the average, try 0.999")],
    "callbacks.ema.update_every_n_steps": Count,
    "callbacks.lr.logging_interval": Literal["step", "epoch"] | None,
    # lightning.pytorch.loggers
    "logger.wandb.mode": Literal["offline", "online"],
    "logger.wandb.*": str | None,
    # transformers' configurations
    "backbone.config.model_type": str,
    "backbone.config.n_layer": Layers,
    "backbone.config.num_hidden_layers": Layers,
    "backbone.config.n_head": Heads,
    "backbone.config.num_attention_heads": Heads,
    "backbone.config.num_key_value_heads": Heads | None,
    "backbone.config.n_embd": Width,
    "backbone.config.hidden_size": Width,
    "backbone.config.head_dim": Width | None,
    "backbone.config.n_inner": Width | None,
    "backbone.config.intermediate_size": Annotated[int, Range("[1, 1048576]", "give a width, such as 352")],
    "backbone.config.n_positions": Tokens,
    "backbone.config.max_position_embeddings": Tokens,
    "backbone.config.*_pdrop": Share,
    "backbone.config.*_dropout": Share,
    "backbone.config.dropout": Share,
    "backbone.config.tie_word_embeddings": bool,
    "backbone.config.*_epsilon": Annotated[float, Range("(0, 1]", "try 1e-5")],
    "backbone.config.*_eps": Annotated[float, Range("(0, 1]", "try 1e-5")],
    "backbone.config.initializer_range": Annotated[float, Range("[0, 1]", "try 0.02")],
    # others
    "backbone.lora.rank": LoraRank,
    "backbone.lora.alpha": LoraAlpha,
    "backbone.lora.dropout": Share,
    "backbone.lora.train_embeddings": bool,
    "backbone.lora.quantize": Literal["4bit"] | None,
    "data.sources.*.weight": Annotated[float, Range("(0, 1e12]", "give a share, or leave the source out")],
    "*._target_": str,
    "*._partial_": bool,
}
"""Key, with * for any part of it -> type, with its range where it is a number; the first that matches holds."""


def declared(key: str, annotation: Any) -> Any:
    """Return the type of a key: that of the table, or else the annotation of its constructor."""
    return next((hint for pattern, hint in TABLE.items() if fnmatchcase(key, pattern)), annotation)
