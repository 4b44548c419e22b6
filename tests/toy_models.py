"""Models with initial weights and a tokenizer, as `dlmkit.load` returns them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dlmkit import LoadedModel
from dlmkit.backbones.dit import DiT
from dlmkit.data.tokenizers.base import Tokenizer
from dlmkit.data.tokenizers.bpe import BPE
from dlmkit.data.tokenizers.bytes import Bytes
from dlmkit.data.tokenizers.characters import Characters
from dlmkit.data.tokenizers.huggingface import HuggingFace
from dlmkit.objectives.autoregressive import Autoregressive as NextTokenLoss
from dlmkit.objectives.base import Objective
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.processes.absorbing import Absorbing
from dlmkit.processes.base import ForwardProcess
from dlmkit.processes.none import NoNoise
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.autoregressive import Autoregressive
from dlmkit.samplers.base import Sampler
from dlmkit.samplers.blockwise import Blockwise
from dlmkit.schedules.linear import Linear

WORDS = "In the beginning God created the heaven and the earth. And the Spirit of God moved upon the waters.\n"
BLOCK = 4


def toy_model(
    kind: str = "absorbing", tokenizer: Tokenizer | None = None, length: int = 24, bos: bool = True
) -> LoadedModel:
    """A model of initial weights that are large enough to matter.

    Args:
        kind: absorbing, ar or block.
        tokenizer: bytes by default.
        length: of training; texts may be four times as long.
        bos: whether the first token is predicted.
    """
    text = tokenizer or Bytes()
    vocab, mask = text.vocab_size, text.mask_id
    torch.manual_seed(0)
    bos_id = text.bos_id if bos else None
    network = DiT(vocab, mask, 4 * length, 16, 1, 2, 8, causal=kind == "ar", shift=True, bos_id=bos_id)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    noise = Absorbing(Linear(), vocab, mask)
    parts: dict[str, tuple[ForwardProcess, Objective[Any], Sampler[Any]]] = {
        "absorbing": (noise, MaskedElbo(), Ancestral()),
        "ar": (NoNoise(vocab, mask), NextTokenLoss(), Autoregressive()),
        "block": (noise, BlockElbo(BLOCK, MaskedElbo()), Blockwise(BLOCK, Ancestral())),
    }
    return LoadedModel(OmegaConf.create({"length": length}), network.eval(), *parts[kind], text)


def tokenizers_of(folder: Path) -> dict[str, Tokenizer]:
    """One tokenizer of every kind, learned from `WORDS` where it learns."""
    bpe, characters = BPE(300), Characters()
    for one in (bpe, characters):
        one.fit(lambda: [WORDS] * 4, folder / "cache")
    byte_level = Fast(models.BPE())
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    byte_level.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    metaspace = Fast(models.BPE(unk_token="<unk>"))
    metaspace.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    metaspace.decoder = decoders.Metaspace(prepend_scheme="always")
    metaspace.train_from_iterator([WORDS], trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"]))
    return {
        "bytes": Bytes(),
        "characters": characters,
        "bpe": bpe,
        "hf byte-level": _saved(byte_level, folder / "byte_level"),
        "hf metaspace": _saved(metaspace, folder / "metaspace"),
        "hf llama": _saved(_like_llama(), folder / "llama"),
    }


def _like_llama() -> Fast:
    """SentencePiece's BPE with a fallback to bytes, as LLaMA 2 has it."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted({*WORDS.replace(" ", "▁").replace("\n", "")})
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("G", "o"), ("Go", "d"), ("▁", "God"), ("▁", "I"), ("▁I", "n")]
    vocabulary = [*pieces, *letters, *("".join(pair) for pair in merges)]
    model = models.BPE(
        {piece: index for index, piece in enumerate(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True
    )
    fast = Fast(model)
    fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return fast


def _saved(fast: Fast, folder: Path) -> HuggingFace:
    PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", unk_token="<unk>").save_pretrained(folder)
    return HuggingFace(str(folder))
