"""Planted errors in block diffusion: objective, attention mask and sampler."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from dlmkit.backbones.attention import Mask
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.block_layout import Layout, block_layout
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.hf import HFBackbone
from dlmkit.laws import objectives as objective_laws
from dlmkit.laws import samplers as sampler_laws
from dlmkit.laws.backbones import law_block_masking, with_random_weights
from dlmkit.laws.objectives import law_blocks
from dlmkit.laws.pairing import WORDS
from dlmkit.laws.samplers import law_distribution, law_rows_apart
from dlmkit.objectives.block import BlockElbo
from dlmkit.objectives.masked import MaskedElbo
from dlmkit.samplers.ancestral import Ancestral
from dlmkit.samplers.blockwise import Blockwise
from laws.mutants.base import ABSORBING, Mutant, RightPart


class OneTimeForAllBlocks(BlockElbo):
    """Weights every block by the first one's time."""

    def __call__(self, prediction, noised, process):
        times = noised.t.reshape(len(noised.t), -1)
        return super().__call__(prediction, replace(noised, t=times[:, :1].expand_as(times)), process)


class AttendsToMore(Backbone):
    """A pass over [x_t | x_0] with more than the layout's mask."""

    def trunk_input(self, inputs):
        trunk = super().trunk_input(inputs)
        if inputs.context is None:
            return trunk
        length, size = inputs.x_t.shape[1], inputs.context.block_size
        layout = block_layout(length, size, self.shift, self.alignment.has_bos, inputs.context.last, trunk.ids.device)
        return replace(trunk, mask=Mask(trunk.mask.visible | self.also_visible(layout), trunk.positions))

    @abstractmethod
    def also_visible(self, layout: Layout) -> Tensor:
        """Return the pairs of slots, bool [Q, Q], that attend besides those of the layout."""


class AttendsToItsCleanTokens(AttendsToMore):
    """A noisy slot attends to the clean slots of its own block beside those before it."""

    def also_visible(self, layout):
        return layout.is_context[None, :] & (layout.blocks[None, :] == layout.blocks[:, None])


class AttendsToLaterBlocks(AttendsToMore):
    """A clean slot attends to all clean slots."""

    def also_visible(self, layout):
        return layout.is_context[None, :] & layout.is_context[:, None]


class DiTWithItsCleanTokens(AttendsToItsCleanTokens, DiT):
    pass


class DiTWithLaterBlocks(AttendsToLaterBlocks, DiT):
    pass


class LlamaWithItsCleanTokens(AttendsToItsCleanTokens, HFBackbone):
    pass


class LlamaWithLaterBlocks(AttendsToLaterBlocks, HFBackbone):
    pass


class BlocksOfAnotherText(Blockwise):
    """Each block is drawn given the clean blocks of the sequence before it in the batch."""

    def context(self, denoiser, x_t, block, cache):
        return super().context(denoiser, x_t.roll(1, 0), block, cache)


def dit(kind: type[DiT], shift: bool) -> Backbone:
    """Return a tiny network of which every weight matters."""
    torch.manual_seed(0)
    bos_id = WORDS.bos_id if shift else None
    return with_random_weights(kind(WORDS.vocab_size, WORDS.mask_id, 16, 16, 2, 2, 8, shift=shift, bos_id=bos_id))


def llama(kind: type[HFBackbone]) -> Backbone:
    """Return a tiny Llama of which every weight matters."""
    torch.manual_seed(0)
    made = kind(
        vocab_size=WORDS.vocab_size,
        mask_id=WORDS.mask_id,
        bos_id=WORDS.bos_id,
        causal=False,
        shift=True,
        bos="prepend",
        attention="sdpa",
        attention_with_mask=None,
        gradient_checkpointing=False,
        lora={"rank": 0},
        name=None,
        config={
            "model_type": "llama",
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "max_position_embeddings": 16,
        },
    )
    return with_random_weights(made)


WITHIN = Ancestral(1.0, None, 1.0)

MUTANTS = [
    Mutant(OneTimeForAllBlocks, (2, MaskedElbo()), (ABSORBING,), caught_by=(law_blocks,)),
    *(
        Mutant(dit, (kind, shift), caught_by=(law_block_masking,), title=f"{kind.__name__}-shift={shift}")
        for kind in (DiTWithItsCleanTokens, DiTWithLaterBlocks)
        for shift in (False, True)
    ),
    *(
        Mutant(llama, (kind,), caught_by=(law_block_masking,), title=kind.__name__)
        for kind in (LlamaWithItsCleanTokens, LlamaWithLaterBlocks)
    ),
    *(
        Mutant(
            BlocksOfAnotherText,
            (size, WITHIN),
            (ABSORBING,),
            caught_by=(law_distribution, law_rows_apart),
            title=f"OtherText-{size}",
        )
        for size in (1, 2)
    ),
]

RIGHT_PARTS = [
    RightPart(BlockElbo, (2, MaskedElbo()), (ABSORBING,), passes=tuple(objective_laws.LAWS)),
    *(RightPart(dit, (DiT, shift), passes=(law_block_masking,), title=f"DiT-shift={shift}") for shift in (False, True)),
    RightPart(llama, (HFBackbone,), passes=(law_block_masking,)),
    *(
        RightPart(Blockwise, (size, WITHIN), (ABSORBING,), passes=tuple(sampler_laws.LAWS), title=f"Blockwise-{size}")
        for size in (1, 2)
    ),
]
