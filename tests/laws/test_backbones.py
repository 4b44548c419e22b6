"""Backbones: which predictions depend on which tokens, to the last bit, in every family and kernel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlmkit.backbones.attention import annealed_visibility, attention_mask
from dlmkit.backbones.hf.families import FAMILIES
from dlmkit.objectives.autoregressive import Autoregressive
from dlmkit.processes.none import NoNoise
from dlmkit.types import Attention, NetworkInput, Noised
from networks import (
    BOS,
    DIFFERENTIABLE,
    EITHER_BOS,
    EITHER_WAY,
    HF,
    MASK,
    NETWORKS,
    L,
    V,
    differ,
    everywhere,
    hidden,
    network,
    some_tokens,
)

# What a prediction depends on


@EITHER_BOS
@EITHER_WAY
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_predictions_depend_on_later_tokens_iff_bidirectional(family, attention, causal, bos):
    backbone, x_t = network(family, attention, causal, bos), some_tokens(1, L)
    before = hidden(backbone, x_t)
    scored = torch.arange(L) >= (0 if backbone.predicts_first else 1)
    for j in range(L):
        changed = x_t.clone()
        changed[0, j] = (changed[0, j] + 1) % V
        moved = differ(hidden(backbone, changed), before)
        expected = torch.arange(L) > j if causal else torch.ones(L, dtype=torch.bool)
        if bos == "none":
            # Without BOS the last token is an input whose own output is not used, and row 0 is a copy of row 1's.
            expected[0] = expected[1]
            assert torch.equal(before[:, 0], before[:, 1])
        assert torch.equal(moved[scored], expected[scored]), f"token {j} moves {moved.nonzero()[:, 0].tolist()}"


@EITHER_BOS
@EITHER_WAY
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_documents_do_not_leak(family, attention, causal, bos):
    """Bit for bit, both ways: whatever the tokens of one document, the predictions of another's stay.

    A document's last token is its EOS. The first token of the next document is predicted from it, so it belongs there
    as an input: a shifted network has it in place of a BOS, and it carries nothing of the document that it ends.
    """
    backbone = network(family, attention, causal, bos)
    documents = [slice(0, 3), slice(3, 7), slice(7, L)]
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    x_t = some_tokens(1, L)
    ends = [document.stop - 1 for document in documents]
    x_t[0, ends] = BOS
    before = hidden(backbone, x_t, segments)
    first = 0 if backbone.predicts_first else 1
    for document in documents:
        inside = torch.zeros(L, dtype=torch.bool)
        inside[document] = True
        others = ~inside & (torch.arange(L) >= first)
        for seed in range(5):
            changed = torch.where(inside, some_tokens(1, L, seed=seed + 1), x_t)
            changed[0, ends] = BOS
            moved = differ(hidden(backbone, changed, segments), before)
            assert not moved[others].any(), f"{document} leaks into {moved.nonzero()[:, 0].tolist()}"
        far = x_t.clone()
        far[0, document.start] = (x_t[0, document.start] + 1) % V
        if document.start not in ends:
            assert differ(hidden(backbone, far, segments), before)[inside].any()  # it is read at all


@EITHER_BOS
@EITHER_WAY
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_an_eos_is_an_input_of_the_next_document(family, attention, causal, bos):
    backbone, x_t = network(family, attention, causal, bos), some_tokens(1, L)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    changed = x_t.clone()
    changed[0, 3] = (changed[0, 3] + 1) % V
    moved = differ(hidden(backbone, changed, segments), hidden(backbone, x_t, segments))
    assert moved[4:].all()
    assert not moved[1:4].any()


@EITHER_BOS
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_one_document_equals_no_document_masks(family, attention, bos):
    for causal in (False, True):
        backbone, x_t = network(family, attention, causal, bos), some_tokens(2, L)
        torch.testing.assert_close(
            hidden(backbone, x_t, torch.zeros_like(x_t)), hidden(backbone, x_t), rtol=1e-4, atol=1e-5
        )


def test_without_segments_documents_do_leak():
    """The law above can fail."""
    backbone, x_t = network("gpt2"), some_tokens(1, L)
    changed = x_t.clone()
    changed[0, 0] = (changed[0, 0] + 1) % V
    assert differ(hidden(backbone, changed), hidden(backbone, x_t))[3:].all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "family",
    [name for name, known in FAMILIES.items() if known.window == "none" and not known.takes_positions],
)
def test_bidirectional_equals_a_mask_of_ones(family, attention):
    """Two ways to the same network: the configuration's flag, and a 4-D mask given to the causal one."""
    ids = some_tokens(2, L)
    flag, masked = network(family, attention, causal=False), network(family, attention, causal=True)
    full = torch.zeros(1, 1, L, L) if attention == "eager" else torch.ones(1, 1, L, L, dtype=torch.bool)
    with torch.no_grad():
        by_flag = flag.model(input_ids=ids).logits
        by_mask = masked.model(input_ids=ids, attention_mask=full).logits
        causal = masked.model(input_ids=ids).logits
    torch.testing.assert_close(by_flag, by_mask, rtol=1e-4, atol=1e-5)
    assert (by_flag - causal).abs().max() > 0.1


# Annealing


@EITHER_BOS
@pytest.mark.parametrize("documents", [False, True], ids=["sequence", "documents"])
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_annealing_runs_from_causal_to_bidirectional(family, attention, documents, bos):
    x_t = some_tokens(2, L)
    segments = torch.tensor([[0] * 4 + [1] * 5] * 2) if documents else None
    backbone = network(family, attention, causal=False, bos=bos)
    full = hidden(backbone, x_t, segments)
    causal = hidden(network(family, attention, causal=True, bos=bos), x_t, segments)
    start = slice(0 if backbone.predicts_first else 1, None)

    def annealed(ratio: float, seed: int) -> Tensor:
        return hidden(backbone, x_t, segments, Attention(ratio, seed=seed))

    torch.testing.assert_close(annealed(0.0, seed=3)[:, start], causal[:, start], rtol=1e-4, atol=1e-5)
    assert torch.equal(annealed(1.0, seed=3), full)
    half = annealed(0.5, seed=3)
    assert not torch.allclose(half, full, atol=1e-3)
    assert not torch.allclose(half[:, start], causal[:, start], atol=1e-3)
    assert torch.equal(annealed(0.5, seed=3), half)  # the same draw for the same seed
    assert not torch.equal(annealed(0.5, seed=4), half)


@EITHER_BOS
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_a_causal_network_ignores_annealing(family, attention, bos):
    backbone, x_t = network(family, attention, causal=True, bos=bos), some_tokens(1, L)
    assert torch.equal(hidden(backbone, x_t, attention=Attention(0.5)), hidden(backbone, x_t))


def test_annealed_share_of_the_future_is_the_ratio():
    for ratio in (0.0, 0.1, 0.7):
        visible = annealed_visibility(300, Attention(ratio), "cpu")
        mask = attention_mask(300, "cpu", causal=False, visible=visible)[0, 0]
        assert mask.tril().sum() == 300 * 301 / 2  # the past and the position itself, always
        future = mask[torch.ones(300, 300).triu(1) > 0].double()
        assert float(future.mean()) == pytest.approx(ratio, abs=5 * (ratio * (1 - ratio) / len(future)) ** 0.5)
    assert annealed_visibility(300, Attention(1.0), "cpu") is None  # no mask, so that the flash kernel runs


def test_blocks_grow_from_one_token_to_the_whole_length():
    for ratio, size in ((0.0, 1), (0.25, 2), (0.5, 4), (0.99, 8)):
        visible = annealed_visibility(8, Attention(ratio, "blocks"), "cpu")
        mask = attention_mask(8, "cpu", causal=False, visible=visible)[0, 0]
        expected = [[key <= query or key // size == query // size for key in range(8)] for query in range(8)]
        assert mask.tolist() == expected
    assert annealed_visibility(8, Attention(1.0, "blocks"), "cpu") is None
    with pytest.raises(ValueError, match="bernoulli, blocks"):
        annealed_visibility(8, Attention(0.5, "rows"), "cpu")


def test_mask_is_none_where_the_plain_kernel_suffices():
    for causal in (False, True):
        assert attention_mask(4, "cpu", causal=causal) is None


# Predictions


@EITHER_BOS
@EITHER_WAY
@pytest.mark.parametrize(("family", "attention"), HF)
def test_logits_are_the_models_own(family, attention, causal, bos):
    backbone, x_t = network(family, attention, causal, bos), some_tokens(3, L)
    with torch.no_grad():
        mine = backbone(NetworkInput(x_t, torch.zeros(3))).logits(everywhere(x_t)).unflatten(0, x_t.shape)
        ids = torch.cat([torch.full((3, 1), BOS), x_t], 1) if bos == "prepend" else x_t
        own = backbone.model(input_ids=ids).logits
    assert (mine[..., MASK] == float("-inf")).all()
    kept = torch.arange(V) != MASK
    if bos == "prepend":
        torch.testing.assert_close(mine[..., kept], own[:, :L, kept], rtol=1e-5, atol=1e-5)
    else:  # row i predicts token i: the output at i - 1
        torch.testing.assert_close(mine[:, 1:, kept], own[:, : L - 1, kept], rtol=1e-5, atol=1e-5)


@EITHER_BOS
@pytest.mark.parametrize("mask_id", [None, MASK], ids=["no_mask", "mask"])
@pytest.mark.parametrize(("family", "attention"), DIFFERENTIABLE)
def test_autoregressive_loss_is_torchs_cross_entropy(family, attention, mask_id, bos):
    backbone = network(family, attention, causal=True, bos=bos, mask_id=mask_id)
    x = some_tokens(4, L)
    x[x == MASK] = 0
    scored = everywhere(x)
    scored[:, 0] = backbone.predicts_first
    scored[0, 4:6] = False  # a prompt, padding
    t = torch.ones(4, dtype=torch.float64)

    noised = Noised(x, x, t, scored, t)
    mine = Autoregressive()(backbone(NetworkInput(x, t)), noised, NoNoise(V, mask_id))
    ids = torch.cat([torch.full((4, 1), BOS), x[:, :-1]], 1) if bos == "prepend" else x[:, :-1]
    logits = backbone.model(input_ids=ids).logits
    if mask_id is not None:
        logits = logits.index_fill(-1, torch.tensor([mask_id]), float("-inf"))
    targets = x if bos == "prepend" else x[:, 1:]
    reference = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    reference = reference if bos == "prepend" else F.pad(reference, (1, 0))
    torch.testing.assert_close(mine.nll, reference.detach() * scored, rtol=1e-5, atol=1e-5)

    def gradients(loss: Tensor) -> list[Tensor]:
        return [g for g in torch.autograd.grad(loss, list(backbone.parameters()), allow_unused=True) if g is not None]

    for one, other in zip(gradients(mine.loss.sum()), gradients((reference * scored).sum()), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
