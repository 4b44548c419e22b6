"""Planted errors in backbones: what is read, what is attended to, and what is predicted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dlmkit.backbones.alignment import Alignment
from dlmkit.backbones.attention import Mask, annealed_visibility
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.head import HeadPrediction
from dlmkit.backbones.kv_cache import KeyValueCache, KeyValues, Stored
from dlmkit.laws import backbones as laws
from dlmkit.laws.backbones import (
    law_annealing_keeps_the_past,
    law_attends_where_it_may,
    law_document_masking,
    law_frozen_tokens_are_right_at_first,
    law_mask_is_never_predicted,
    law_prefix_is_equivalent,
    with_random_weights,
)
from dlmkit.laws.pairing import WORDS
from dlmkit.prefix import TokenPrefix
from laws.mutants.base import Mutant, RightPart


def network(kind: type[DiT], causal: bool) -> Backbone:
    """Return a tiny shifted network of which every weight matters."""
    torch.manual_seed(0)
    keywords = {"causal": causal, "shift": True, "bos_id": WORDS.bos_id, "time_conditioned": not causal}
    made = kind(WORDS.vocab_size, WORDS.mask_id, 16, 16, 2, 2, 8, **keywords)
    return with_random_weights(made)


# Alignment


class OutputsOneLate(Alignment):
    def outputs(self, hidden, length):
        return torch.cat([hidden[:, :1], hidden[:, : length - 1]], dim=1)


class ShiftsTwice(DiT):
    """The output at i - 2 predicts token i."""

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.alignment = OutputsOneLate(self.causal, self.shift, self.bos_id)


class ReadsItsToken(Alignment):
    def ids(self, tokens):
        return tokens

    def segments(self, segments):
        return segments


class ForgetsTheShift(DiT):
    """Position i reads token i and predicts it: a copy."""

    def __init__(self, *arguments, **keywords) -> None:
        super().__init__(*arguments, **keywords)
        self.alignment = ReadsItsToken(self.causal, self.shift, self.bos_id)


# Attention


class PacksWithoutMask(DiT):
    """Documents attend to each other."""

    def forward(self, inputs):
        return super().forward(replace(inputs, segments=None))


class AnnealsThePast(DiT):
    """Attends to the pairs that were drawn alone, and not to all of the past besides."""

    def trunk_input(self, inputs):
        trunk = super().trunk_input(inputs)
        length = trunk.ids.shape[1]
        drawn = annealed_visibility(length, inputs.attention, trunk.ids.device)
        if drawn is None:
            return trunk
        return replace(trunk, mask=Mask((drawn | torch.eye(length, dtype=torch.bool))[None, None], trunk.positions))


# Predictions


class LeavesTheMaskIn(DiT):
    def forward(self, inputs):
        return HeadPrediction(super().forward(inputs).hidden, self.head, None)


class ForgetsTheFirstPiece(DiT):
    """A prefix that is handed over in two pieces loses the first one."""

    def prefill(self, tokens, block_size=None, cache=None):
        return TokenPrefix(tokens, block_size)


# Keys and values of a prefix


class KeepsThePredictedTokens(DiT):
    """A position keeps the token that its output predicts, not the one that it reads."""

    def run_trunk(self, trunk, keep=False):
        return super().run_trunk(replace(trunk, ids=trunk.ids.roll(-1, dims=1)) if keep else trunk, keep)


class CountsFromTheCache(DiT):
    """Positions of what follows a prefix begin at 0 again."""

    def trunk_input(self, inputs):
        trunk = super().trunk_input(inputs)
        return trunk if trunk.past is None else replace(trunk, positions=trunk.positions - trunk.positions[0])


class CausalFromTheTop(DiT):
    """Queries behind a prefix attend to as many keys as they are, as a kernel's causal flag has it."""

    def trunk_input(self, inputs):
        trunk = super().trunk_input(inputs)
        if trunk.past is None or trunk.mask is None:
            return trunk
        mask = trunk.mask
        return replace(trunk, mask=replace(mask, visible=torch.ones_like(mask.visible).tril()))


class NoisyPrefix(DiT):
    """The clean blocks are read as of the time of the first noisy one."""

    def run_trunk(self, trunk, keep=False):
        return super().run_trunk(replace(trunk, t=trunk.t + 0.5) if keep else trunk, keep)


class BlocksInOnePiece(DiT):
    """Clean blocks that are handed over together attend to each other both ways."""

    def run_trunk(self, trunk, keep=False):
        return super().run_trunk(replace(trunk, mask=None) if keep else trunk, keep)


@dataclass(frozen=True, eq=False)
class SameRows(KeyValueCache):
    def select(self, rows):
        return replace(super().select(torch.arange(len(rows)) % 2), text=self.text.select(rows))


class SelectsTokensAlone(DiT):
    """Rows of a cache have the tokens of theirs and the keys of others."""

    def prefill(self, tokens, block_size=None, cache=None):
        kept = super().prefill(tokens, block_size, cache)
        return SameRows(**vars(kept)) if isinstance(kept, KeyValueCache) else kept


class LengthensInPlace(DiT):
    """What follows a prefix is written into the cache that was given."""

    def prefill(self, tokens, block_size=None, cache=None):
        kept = super().prefill(tokens, block_size, cache)
        if isinstance(cache, KeyValueCache) and isinstance(kept, KeyValueCache):
            vars(cache).update(vars(kept))
        return kept


class FreezesAsClean(DiT):
    """What is frozen is read as of t = 0."""

    def freeze(self, tokens, t, start, stop, around):
        return super().freeze(tokens, torch.zeros_like(t), start, stop, around)


class RunsWithoutTheInputBefore(DiT):
    """The run begins where its first token stands, not at the input that predicts it."""

    def freeze(self, tokens, t, start, stop, around):
        kept = super().freeze(tokens, t, start, stop, around)
        return replace(kept, first=kept.first + 1)


class AttendsTwice(DiT):
    """What is frozen is there twice."""

    def freeze(self, tokens, t, start, stop, around):
        kept = super().freeze(tokens, t, start, stop, around)
        layers = tuple(KeyValues(*(torch.cat([each, each], dim=2) for each in layer)) for layer in kept.stored.layers)
        return replace(kept, stored=Stored(torch.cat([kept.stored.positions] * 2), layers))


class FreezesOneSideOnly(DiT):
    """What comes after the run is left out."""

    def freeze(self, tokens, t, start, stop, around):
        return super().freeze(tokens[:, :stop], t, start, stop, around)


def mutant(kind: type[DiT], causal: bool, *caught_by) -> Mutant:
    title = f"{kind.__name__}-{'causal' if causal else 'bidirectional'}"
    return Mutant(network, (kind, causal), caught_by=caught_by, title=title)


MUTANTS = [
    mutant(ShiftsTwice, True, law_attends_where_it_may),
    mutant(ForgetsTheShift, True, law_attends_where_it_may),
    mutant(PacksWithoutMask, False, law_document_masking),
    mutant(PacksWithoutMask, True, law_document_masking),
    mutant(AnnealsThePast, False, law_annealing_keeps_the_past),
    mutant(LeavesTheMaskIn, False, law_mask_is_never_predicted),
    mutant(ForgetsTheFirstPiece, False, law_prefix_is_equivalent),
    mutant(ForgetsTheFirstPiece, True, law_prefix_is_equivalent),
    mutant(KeepsThePredictedTokens, False, law_prefix_is_equivalent),
    mutant(KeepsThePredictedTokens, True, law_prefix_is_equivalent),
    mutant(CountsFromTheCache, False, law_prefix_is_equivalent),
    mutant(CountsFromTheCache, True, law_prefix_is_equivalent),
    mutant(CausalFromTheTop, True, law_prefix_is_equivalent),
    mutant(NoisyPrefix, False, law_prefix_is_equivalent),
    mutant(BlocksInOnePiece, False, law_prefix_is_equivalent),
    mutant(SelectsTokensAlone, False, law_prefix_is_equivalent),
    mutant(SelectsTokensAlone, True, law_prefix_is_equivalent),
    mutant(LengthensInPlace, False, law_prefix_is_equivalent),
    mutant(LengthensInPlace, True, law_prefix_is_equivalent),
    mutant(FreezesAsClean, False, law_frozen_tokens_are_right_at_first),
    mutant(RunsWithoutTheInputBefore, False, law_frozen_tokens_are_right_at_first),
    mutant(AttendsTwice, False, law_frozen_tokens_are_right_at_first),
    mutant(FreezesOneSideOnly, False, law_frozen_tokens_are_right_at_first),
]

RIGHT_PARTS = [
    RightPart(network, (DiT, causal), passes=tuple(laws.LAWS), title=f"DiT-causal={causal}") for causal in (False, True)
]
