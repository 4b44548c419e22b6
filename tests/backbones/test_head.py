"""The head: log-probabilities and their gradients, computed in pieces, are those of the plain route."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dlmkit.backbones import fused_log_prob, weighted_nll
from dlmkit.backbones import head as head_module
from dlmkit.backbones.head import Head, HeadPrediction
from dlmkit.types import NetworkInput
from networks import DIFFERENTIABLE, MASK, L, V, everywhere, network, some_tokens


@pytest.fixture(params=["whole", "pieces"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pieces":
        in_pieces(monkeypatch)


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest pieces: 64 rows of 143 (the softmax row by row), 256 columns of 601 where logits are recomputed."""
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(fused_log_prob, "TILE_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(weighted_nll, "ROWS_ELEMENTS", {"cpu": 1})
    monkeypatch.setattr(weighted_nll, "TILE_ELEMENTS", 1)
    monkeypatch.setattr(weighted_nll, "ROW_ALIGNMENT", {"cpu": 64})


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

    def prediction(self) -> HeadPrediction:
        return HeadPrediction(self.hidden, self.head, self.mask_id)

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
def test_weighted_nll_and_its_gradients(keywords, chunked):
    """The sum's gradient, computed with the values, is that of the plain route, whatever the sum is multiplied by."""
    case = Case(**keywords)
    reference = -case.reference()
    for factor in (1.0, -0.25):
        total, values = case.prediction().weighted_nll(case.tokens, case.where, case.upstream)
        torch.testing.assert_close(values.double(), reference, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(total.double(), reference @ case.upstream.double(), rtol=1e-5, atol=1e-4)
        expected = torch.autograd.grad(factor * (reference @ case.upstream.double()), case.leaves, retain_graph=True)
        for one, other in zip(torch.autograd.grad(factor * total, case.leaves), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("keywords", CASES)
def test_other_gradients_of_weighted_nll(keywords, chunked):
    """The values may go into another loss, beside the sum or alone, and be differentiated twice."""
    case = Case(**keywords)
    other = torch.rand(case.upstream.shape)
    reference = -case.reference()
    total, values = case.prediction().weighted_nll(case.tokens, case.where, case.upstream)
    losses = {
        "values": ((values * other).sum(), (reference * other).sum()),
        "both": (total + (values * other).sum(), (reference * (case.upstream + other)).sum()),
        "total": (total, (reference * case.upstream).sum()),
        "again": (total, (reference * case.upstream).sum()),
    }
    for mine, plain in losses.values():
        got = torch.autograd.grad(mine, case.leaves, retain_graph=True)
        want = torch.autograd.grad(plain, case.leaves, retain_graph=True)
        for one, expected in zip(got, want, strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_a_frozen_tensor_gets_no_gradient_and_the_others_theirs(frozen):
    case = Case(bias=True)
    getattr(case, frozen).requires_grad_(False)
    leaves = [leaf for leaf in case.leaves if leaf.requires_grad]
    reference = -case.reference() @ case.upstream.double()
    total, values = case.prediction().weighted_nll(case.tokens, case.where, case.upstream)
    for mine in ((values * case.upstream).sum(), total):
        got = torch.autograd.grad(mine, leaves, retain_graph=True)
        for one, expected in zip(got, torch.autograd.grad(reference, leaves, retain_graph=True), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("keywords", CASES)
def test_log_probabilities_under_autocast(keywords, weighted, chunked):
    """bfloat16 has 8 bits: products are good to half a percent of their largest terms."""
    case = Case(**keywords)
    with torch.autocast("cpu", torch.bfloat16):
        if weighted:
            total, values = case.prediction().weighted_nll(case.tokens, case.where, -case.upstream)
            mine = -values
        else:
            mine = case.prediction().token_log_prob(case.tokens, case.where)
            total = (mine * case.upstream).sum()
    reference = case.reference()
    assert mine.dtype == total.dtype == torch.float32
    torch.testing.assert_close(mine.double(), reference, rtol=0.02, atol=0.1)
    for one, other in zip(torch.autograd.grad(total, case.leaves), case.gradients(reference), strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm() / other.norm()) < 0.02


@pytest.mark.parametrize("mask_id", [None, 3])
def test_the_expression_that_is_compiled_on_a_gpu_is_the_softmax_in_tiles(mask_id):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 64, generator=generator)
    tokens = torch.randint(4, 61, (5,), generator=generator)
    in_tiles, whole = logits.clone(), logits.clone()
    values = weighted_nll._softmax_in_tiles(in_tiles, tokens, 61, mask_id)
    torch.testing.assert_close(weighted_nll._softmax_whole(whole, tokens, 61, mask_id), values)
    torch.testing.assert_close(whole, in_tiles)
    assert (whole[:, 61:] == 0).all()


def test_token_log_prob_with_bfloat16_weights(chunked):
    case = Case(bias=True)
    low = Case(bias=True)
    with torch.no_grad():
        low.hidden, low.weight, low.bias = (leaf.bfloat16().requires_grad_(True) for leaf in case.leaves)
    low.head = Head(low.weight, low.bias)
    values = low.prediction().token_log_prob(low.tokens, low.where)
    total, negative = low.prediction().weighted_nll(low.tokens, low.where, -low.upstream)
    for mine, loss in ((values, (values * low.upstream).sum()), (-negative, total)):
        torch.testing.assert_close(mine.double(), case.reference(), rtol=0.02, atol=0.1)
        for one, other in zip(torch.autograd.grad(loss, low.leaves), case.gradients(case.reference()), strict=True):
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


def test_no_selected_position_is_an_empty_result(chunked):
    case = Case(bias=True)
    case.where = torch.zeros_like(case.where)
    case.upstream = torch.zeros(0)
    log_prob = case.prediction().token_log_prob(case.tokens, case.where)
    total, values = case.prediction().weighted_nll(case.tokens, case.where, case.upstream)
    assert log_prob.shape == values.shape == (0,)
    for gradients in (case.gradients(log_prob), torch.autograd.grad(total, case.leaves)):
        assert all((gradient == 0).all() for gradient in gradients)


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation made, backward too."""

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

    def largest(compute: Callable[[], Tensor]) -> int:
        with LargestTensor() as recorded:
            case.gradients(compute())
        return recorded.elements

    def one(logits: Tensor, token: Tensor) -> Tensor:
        return logits.log_softmax(-1).gather(-1, token[:, None])[:, 0]

    ways = [
        lambda: case.prediction().token_log_prob(case.tokens, case.where),
        lambda: case.prediction().weighted_nll(case.tokens, case.where, case.upstream).values,
        lambda: case.prediction().map_logits(one, case.where, case.tokens[case.where]),
    ]
    assert all(largest(way) >= all_logits for way in ways)  # small enough to be in memory at once
    in_pieces(monkeypatch)
    assert all(largest(way) < all_logits / 2 for way in ways)


@pytest.mark.parametrize(("family", "attention"), DIFFERENTIABLE)
def test_tied_head_gets_both_gradients(family, attention):
    """The fused head's gradient at a tied weight adds to the embedding's."""
    backbone = network(family, attention)
    assert isinstance(backbone.model.get_output_embeddings(), nn.Linear)
    x, t = some_tokens(2, L), torch.zeros(2)
    targets = (x + 1) % V
    targets[targets == MASK] = 0
    parameters = list(backbone.parameters())
    fused = backbone(NetworkInput(x, t)).token_log_prob(targets, everywhere(x)).sum()
    plain = (
        backbone(NetworkInput(x, t)).logits(everywhere(x)).log_softmax(-1).gather(-1, targets.flatten()[:, None]).sum()
    )
    for one, other in zip(torch.autograd.grad(fused, parameters), torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
