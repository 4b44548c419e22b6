"""Backbones: who sees whom, to the last bit, and a head that runs in pieces without changing its answer."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from dlmkit.backbones.families import FAMILIES
from dlmkit.backbones.prediction import Head, Prediction
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dlmkit.backbones import prediction as prediction_module
from dlmkit.backbones.attention import annealed_visibility, attention_mask
from dlmkit.backbones.base import Backbone
from dlmkit.backbones.dit import DiT
from dlmkit.backbones.hf import HFBackbone
from dlmkit.types import Noised
from laws import parts

V, MASK, BOS, L = 13, 5, 2, 9

LLAMA = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_size": 16,
    "intermediate_size": 24,
    "max_position_embeddings": 16,
}
NEOX = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
WINDOW = {"sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]}

SIZES = {
    "falcon": {**{k: v for k, v in NEOX.items() if k != "intermediate_size"}, "alibi": False, "num_kv_heads": 1},
    "gemma2": {**LLAMA, **WINDOW, "head_dim": 8, "final_logit_softcapping": 2.0},
    "gemma3_text": {**LLAMA, **WINDOW, "head_dim": 8, "final_logit_softcapping": 2.0},
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16},
    "gpt_neox": NEOX,
    "granite": {**LLAMA, "logits_scaling": 3.0, "residual_multiplier": 0.7, "embedding_multiplier": 2.0},
    "llama": LLAMA,
    "mistral": {**LLAMA, "sliding_window": 5},
    "olmo": LLAMA,
    "olmo2": LLAMA,
    "opt": {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_size": 16,
        "word_embed_proj_dim": 8,
        "ffn_dim": 24,
        "max_position_embeddings": 16,
        "dropout": 0.0,
    },
    "phi": LLAMA,
    "phi3": {**LLAMA, "sliding_window": 5},
    "qwen2": {**LLAMA, **WINDOW, "use_sliding_window": True},
    "qwen3": {**LLAMA, **WINDOW, "use_sliding_window": True, "head_dim": 8},
    "smollm3": {**LLAMA, **WINDOW, "use_sliding_window": True, "no_rope_layers": [1, 0]},
    "starcoder2": {**LLAMA, "sliding_window": 5},
}
"""A toy configuration for every model type of dlmkit.backbones.families; windows are shorter than the text."""

WITH_COMPILER = pytest.mark.skipif(shutil.which("g++") is None, reason="flex attention is compiled")

HF = [
    pytest.param(
        family,
        attention,
        id=f"{family}-{attention}",
        marks=[WITH_COMPILER] if attention == "flex_attention" else [],
    )
    for family, known in FAMILIES.items()
    for attention in ("eager", "sdpa", "flex_attention")
    if attention in known.kernels
]
DIFFERENTIABLE = [one for one in HF if "flex_attention" not in one.values]  # on a CPU flex attention has no backward
NETWORKS = [
    *HF,
    pytest.param("dit", "sdpa", id="dit"),
    pytest.param("dit", "flex_attention", id="dit-flex_attention", marks=[WITH_COMPILER]),
]
EITHER_BOS = pytest.mark.parametrize("bos", ["prepend", "none"])
EITHER_WAY = pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])


def network(
    family: str, attention: str = "sdpa", causal: bool = False, bos: str = "prepend", mask_id: int | None = MASK
) -> Backbone:
    """A tiny network whose every weight matters, the same for equal family whatever the rest."""
    torch.manual_seed(0)
    backbone: Backbone
    if family == "dit":
        bos_id = BOS if bos == "prepend" else None
        backbone = DiT(V, mask_id, 16, 16, 2, 2, 8, causal=causal, shift=True, bos_id=bos_id, attention=attention)
    else:
        backbone = HFBackbone(
            vocab_size=V,
            mask_id=mask_id,
            bos_id=BOS,
            causal=causal,
            shift=True,
            bos=bos,
            attention=attention,
            attention_with_mask=None,
            gradient_checkpointing=False,
            lora={"rank": 0},
            name=None,
            config={"model_type": family, **SIZES[family]},
        )
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return backbone.eval()


def some_tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def hidden(backbone: Backbone, x_t: Tensor, segments: Tensor | None = None) -> Tensor:
    """What the head reads, [B, L, D]; equal hidden states are equal predictions."""
    return backbone(x_t, torch.full((len(x_t),), 0.5, dtype=torch.float64), segments).hidden


def differ(a: Tensor, b: Tensor) -> Tensor:
    """bool [L]: where two predictions [1, L, D] differ in any bit."""
    return (a != b).any(-1)[0]


def everywhere(x: Tensor) -> Tensor:
    return torch.ones_like(x, dtype=torch.bool)


# Who sees whom


@EITHER_BOS
@EITHER_WAY
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_the_future_is_seen_if_and_only_if_bidirectional(family, attention, causal, bos):
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
    """Bit for bit, both ways: whatever the tokens of one document, the predictions about another stay.

    A document's last token is its EOS. The first token of the next document is predicted from it, so it belongs there
    as an input: it is what a shifted network has in place of a BOS, and of the document that it ends it tells nothing.
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
def test_an_eos_is_read_by_the_document_that_it_opens(family, attention, causal, bos):
    backbone, x_t = network(family, attention, causal, bos), some_tokens(1, L)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    changed = x_t.clone()
    changed[0, 3] = (changed[0, 3] + 1) % V
    moved = differ(hidden(backbone, changed, segments), hidden(backbone, x_t, segments))
    assert moved[4:].all()
    assert not moved[1:4].any()


@EITHER_BOS
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_one_document_alone_is_read_as_if_there_were_no_documents(family, attention, bos):
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
def test_bidirectional_equals_a_mask_that_shows_everything(family, attention):
    """Two ways to the same network: the configuration's flag, and a 4-D mask given to the causal one."""
    ids = some_tokens(2, L)
    flag, masked = network(family, attention, causal=False), network(family, attention, causal=True)
    shown = torch.zeros(1, 1, L, L) if attention == "eager" else torch.ones(1, 1, L, L, dtype=torch.bool)
    with torch.no_grad():
        by_flag = flag.model(input_ids=ids).logits
        by_mask = masked.model(input_ids=ids, attention_mask=shown).logits
        causal = masked.model(input_ids=ids).logits
    torch.testing.assert_close(by_flag, by_mask, rtol=1e-4, atol=1e-5)
    assert (by_flag - causal).abs().max() > 0.1


# Annealing


@EITHER_BOS
@pytest.mark.parametrize("documents", [False, True], ids=["block", "documents"])
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_annealing_runs_from_causal_to_bidirectional(family, attention, documents, bos):
    x_t = some_tokens(2, L)
    segments = torch.tensor([[0] * 4 + [1] * 5] * 2) if documents else None
    backbone = network(family, attention, causal=False, bos=bos)
    full = hidden(backbone, x_t, segments)
    causal = hidden(network(family, attention, causal=True, bos=bos), x_t, segments)
    start = slice(0 if backbone.predicts_first else 1, None)

    backbone.set_attention(0.0, seed=3)
    torch.testing.assert_close(hidden(backbone, x_t, segments)[:, start], causal[:, start], rtol=1e-4, atol=1e-5)
    backbone.set_attention(1.0, seed=3)
    assert torch.equal(hidden(backbone, x_t, segments), full)
    backbone.set_attention(0.5, seed=3)
    half = hidden(backbone, x_t, segments)
    assert not torch.allclose(half, full, atol=1e-3)
    assert not torch.allclose(half[:, start], causal[:, start], atol=1e-3)
    assert torch.equal(hidden(backbone, x_t, segments), half)  # the same draw for the same seed
    backbone.set_attention(0.5, seed=4)
    assert not torch.equal(hidden(backbone, x_t, segments), half)


@EITHER_BOS
@pytest.mark.parametrize(("family", "attention"), NETWORKS)
def test_a_causal_network_has_nothing_to_anneal(family, attention, bos):
    backbone, x_t = network(family, attention, causal=True, bos=bos), some_tokens(1, L)
    before = hidden(backbone, x_t)
    backbone.set_attention(0.5, seed=0)
    assert torch.equal(hidden(backbone, x_t), before)


def test_annealed_share_of_the_future_is_the_ratio():
    for ratio in (0.0, 0.1, 0.7):
        visible = annealed_visibility(300, ratio, 0, "cpu")
        mask = attention_mask(300, "cpu", causal=False, visible=visible)[0, 0]
        assert mask.tril().sum() == 300 * 301 / 2  # the past and oneself, always
        future = mask[torch.ones(300, 300).triu(1) > 0].double()
        assert float(future.mean()) == pytest.approx(ratio, abs=5 * (ratio * (1 - ratio) / len(future)) ** 0.5)
    assert annealed_visibility(300, 1.0, 0, "cpu") is None  # no mask, so that the flash kernel runs


def test_blocks_grow_from_one_token_to_the_whole_length():
    for ratio, size in ((0.0, 1), (0.25, 2), (0.5, 4), (0.99, 8)):
        visible = annealed_visibility(8, ratio, 0, "cpu", "blocks")
        seen = attention_mask(8, "cpu", causal=False, visible=visible)[0, 0]
        expected = [[key <= query or key // size == query // size for key in range(8)] for query in range(8)]
        assert seen.tolist() == expected
    assert annealed_visibility(8, 1.0, 0, "cpu", "blocks") is None
    with pytest.raises(ValueError, match="bernoulli, blocks"):
        annealed_visibility(8, 0.5, 0, "cpu", "rows")


def test_mask_is_none_where_a_plain_kernel_will_do():
    for causal in (False, True):
        assert attention_mask(4, "cpu", causal=causal) is None


# What a prediction says


@EITHER_BOS
@EITHER_WAY
@pytest.mark.parametrize(("family", "attention"), HF)
def test_logits_are_the_models_own(family, attention, causal, bos):
    backbone, x_t = network(family, attention, causal, bos), some_tokens(3, L)
    with torch.no_grad():
        mine = backbone(x_t, torch.zeros(3)).logits(everywhere(x_t)).unflatten(0, x_t.shape)
        read = torch.cat([torch.full((3, 1), BOS), x_t], 1) if bos == "prepend" else x_t
        own = backbone.model(input_ids=read).logits
    assert (mine[..., MASK] == float("-inf")).all()
    kept = torch.arange(V) != MASK
    if bos == "prepend":
        torch.testing.assert_close(mine[..., kept], own[:, :L, kept], rtol=1e-5, atol=1e-5)
    else:  # row i is about token i: the output at i - 1
        torch.testing.assert_close(mine[:, 1:, kept], own[:, : L - 1, kept], rtol=1e-5, atol=1e-5)


@EITHER_BOS
@pytest.mark.parametrize("mask_id", [None, MASK], ids=["no_mask", "mask"])
@pytest.mark.parametrize(("family", "attention"), DIFFERENTIABLE)
def test_autoregressive_loss_is_torchs_cross_entropy(family, attention, mask_id, bos):
    backbone = network(family, attention, causal=True, bos=bos, mask_id=mask_id)
    process, objective = parts.process("none", vocab_size=V, mask_id=mask_id), parts.objective("autoregressive")
    x = some_tokens(4, L)
    x[x == MASK] = 0
    scored = everywhere(x)
    scored[:, 0] = backbone.predicts_first
    scored[0, 4:6] = False  # a prompt, padding
    t = torch.ones(4, dtype=torch.float64)

    mine = objective(backbone(x, t), Noised(x, x, t, scored, t), process)
    read = torch.cat([torch.full((4, 1), BOS), x[:, :-1]], 1) if bos == "prepend" else x[:, :-1]
    logits = backbone.model(input_ids=read).logits
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


# The head in pieces


@pytest.fixture(params=["whole", "pieces"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pieces":
        in_pieces(monkeypatch)


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest pieces there are: 64 rows of 143 for any function, 256 columns of 601 for log-probabilities."""
    monkeypatch.setattr(prediction_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(prediction_module, "TILE_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(prediction_module, "ROWS_ELEMENTS", {"cpu": 1})


class Case:
    """Hidden states, a head, tokens and positions: 143 of 150, V = 601, multiples of nothing."""

    def __init__(
        self,
        bias: bool,
        scale: float = 1.0,
        softcap: float | None = None,
        mask_id: int | None = 300,
        vocab_size: int = 601,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(10, 15, 8, generator=generator).requires_grad_(True)
        self.weight = torch.randn(vocab_size, 8, generator=generator).requires_grad_(True)
        self.bias = torch.randn(vocab_size, generator=generator).requires_grad_(True) if bias else None
        self.tokens = torch.randint(vocab_size - 1, (10, 15), generator=generator)
        self.tokens += self.tokens >= (vocab_size if mask_id is None else mask_id)
        self.where = torch.ones(10, 15, dtype=torch.bool)
        self.where[::3, 2] = self.where[4, 4:7] = False
        self.upstream = torch.randn(int(self.where.sum()), generator=generator)
        self.head = Head(self.weight, self.bias, scale, softcap)
        self.mask_id = mask_id

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def prediction(self) -> Prediction:
        return Prediction(self.hidden, self.head, self.mask_id)

    def reference(self) -> Tensor:
        """log p by the plainest route, in float64."""
        logits = self.hidden[self.where].double() @ self.weight.double().T
        if self.bias is not None:
            logits = logits + self.bias.double()
        logits = logits * self.head.scale
        if self.head.softcap is not None:
            logits = self.head.softcap * torch.tanh(logits / self.head.softcap)
        if self.mask_id is not None:
            logits = logits.index_fill(-1, torch.tensor([self.mask_id]), float("-inf"))
        return logits.log_softmax(-1).gather(-1, self.tokens[self.where][:, None])[:, 0]

    def gradients(self, log_prob: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad((log_prob * self.upstream.to(log_prob.dtype)).sum(), self.leaves))


CASES = [
    pytest.param({"bias": False}, id="plain"),
    pytest.param({"bias": True}, id="bias"),
    pytest.param({"bias": True, "scale": 0.25}, id="scale"),
    pytest.param({"bias": True, "scale": 0.5, "softcap": 3.0}, id="softcap"),
    pytest.param({"bias": False, "mask_id": None}, id="no_mask"),
    pytest.param({"bias": True, "mask_id": 512, "vocab_size": 513}, id="mask_alone_in_its_piece"),
    pytest.param({"bias": True, "mask_id": 0, "vocab_size": 256}, id="one_full_piece"),
]


@pytest.mark.parametrize("keywords", CASES)
def test_token_log_prob_and_its_gradients(keywords, chunked):
    case = Case(**keywords)
    assert int(case.where.sum()) == 143
    mine, reference = case.prediction().token_log_prob(case.tokens, case.where), case.reference()
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine.double(), reference, rtol=1e-5, atol=1e-5)
    for one, other in zip(case.gradients(mine), case.gradients(reference), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keywords", CASES)
def test_gradients_of_weighted_log_probabilities(keywords, chunked):
    """With the loss's weights known up to a factor, values and gradients are those of the plain route."""
    case = Case(**keywords)
    for factor in (1.0, -0.25):
        mine = case.prediction().token_log_prob(case.tokens, case.where, factor * case.upstream)
        torch.testing.assert_close(mine.double(), case.reference(), rtol=1e-5, atol=1e-5)
        for one, other in zip(case.gradients(mine), case.gradients(case.reference()), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keywords", CASES)
def test_a_weight_that_the_loss_does_not_keep_to(keywords, chunked):
    """The announced weight saves time and decides nothing; neither does it how often a gradient is asked for."""
    case = Case(**keywords)
    reference = case.gradients(case.reference())
    announced = case.upstream * (1 + 0.01 * torch.rand(case.upstream.shape))
    for weight in (torch.ones_like(case.upstream), announced, case.upstream):
        log_prob = case.prediction().token_log_prob(case.tokens, case.where, weight)
        for _ in range(2):
            loss = (log_prob * case.upstream).sum()
            for one, other in zip(torch.autograd.grad(loss, case.leaves, retain_graph=True), reference, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("keywords", CASES)
def test_token_log_prob_under_autocast(keywords, weighted, chunked):
    """bfloat16 has 8 bits: products are good to half a percent of their largest terms."""
    case = Case(**keywords)
    with torch.autocast("cpu", torch.bfloat16):
        mine = case.prediction().token_log_prob(case.tokens, case.where, case.upstream if weighted else None)
    reference = case.reference()
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine.double(), reference, rtol=0.02, atol=0.1)
    for one, other in zip(case.gradients(mine), case.gradients(reference), strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


def test_token_log_prob_with_bfloat16_weights(chunked):
    case = Case(bias=True)
    low = Case(bias=True)
    with torch.no_grad():
        low.hidden, low.weight, low.bias = (leaf.bfloat16().requires_grad_(True) for leaf in case.leaves)
    low.head = Head(low.weight, low.bias)
    mine = low.prediction().token_log_prob(low.tokens, low.where)
    torch.testing.assert_close(mine.double(), case.reference(), rtol=0.02, atol=0.1)
    for one, other in zip(low.gradients(mine), case.gradients(case.reference()), strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.float() - other).norm() / other.norm()) < 0.02


@pytest.mark.parametrize("keywords", CASES)
def test_token_log_prob_is_log_softmax_of_logits(keywords, chunked):
    case = Case(**keywords)
    with torch.no_grad():
        log_probs = case.prediction().logits(case.where).log_softmax(-1)
        mine = case.prediction().token_log_prob(case.tokens, case.where)
    torch.testing.assert_close(mine, log_probs.gather(-1, case.tokens[case.where][:, None])[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("keywords", CASES)
def test_map_logits_in_pieces_equals_the_whole(keywords, chunked):
    case = Case(**keywords)
    factor = torch.rand(143, dtype=torch.float64)

    def function(logits: Tensor, token: Tensor, factor: Tensor) -> Tensor:
        log_p = logits.log_softmax(-1)
        return log_p.gather(-1, token[:, None])[:, 0] * factor.to(log_p.dtype) + log_p.exp().square().sum(-1)

    mine = case.prediction().map_logits(function, case.where, case.tokens[case.where], factor)
    whole = function(case.prediction().logits(case.where), case.tokens[case.where], factor)
    torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-6)
    for one, other in zip(case.gradients(mine), case.gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        unrecorded = case.prediction().map_logits(function, case.where, case.tokens[case.where], factor)
    torch.testing.assert_close(unrecorded, mine.detach())


def test_head_runs_nowhere_when_nothing_is_asked(chunked):
    case = Case(bias=True)
    case.where = torch.zeros_like(case.where)
    case.upstream = torch.zeros(0)
    log_prob = case.prediction().token_log_prob(case.tokens, case.where)
    assert log_prob.shape == (0,)
    assert all((gradient == 0).all() for gradient in case.gradients(log_prob))


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made, backward too."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_logits_of_all_positions_never_exist(monkeypatch: pytest.MonkeyPatch):
    case = Case(bias=True)
    all_logits = 143 * 601

    def largest(ask: Callable[[], Tensor]) -> int:
        with LargestTensor() as made:
            case.gradients(ask())
        return made.elements

    def one(logits: Tensor, token: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]

    asks = [
        lambda: case.prediction().token_log_prob(case.tokens, case.where),
        lambda: case.prediction().token_log_prob(case.tokens, case.where, case.upstream),
        lambda: case.prediction().map_logits(one, case.where, case.tokens[case.where]),
    ]
    assert all(largest(ask) >= all_logits for ask in asks)  # small enough to be held at once
    in_pieces(monkeypatch)
    assert all(largest(ask) < all_logits / 2 for ask in asks)


@pytest.mark.parametrize(("family", "attention"), DIFFERENTIABLE)
def test_tied_head_gets_both_gradients(family, attention):
    """The fused head's gradient at a tied weight adds to the embedding's."""
    backbone = network(family, attention)
    assert isinstance(backbone.model.get_output_embeddings(), nn.Linear)
    x, t = some_tokens(2, L), torch.zeros(2)
    targets = (x + 1) % V
    targets[targets == MASK] = 0
    parameters = list(backbone.parameters())
    fused = backbone(x, t).token_log_prob(targets, everywhere(x)).sum()
    plain = backbone(x, t).logits(everywhere(x)).log_softmax(-1).gather(-1, targets.flatten()[:, None]).sum()
    for one, other in zip(torch.autograd.grad(fused, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
