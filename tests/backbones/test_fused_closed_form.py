"""A closed form of logits under a head: value and gradient, made in one pass, are those of the plain route."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dlmkit.backbones import fused_closed_form
from dlmkit.backbones.head import Head, HeadPrediction
from dlmkit.objectives.equal_mass import EqualMassDivergence
from dlmkit.tensors import scatter

V, MASK = 601, 300
FORM = EqualMassDivergence()


@pytest.fixture(params=["whole", "pieces"])
def chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pieces":
        in_pieces(monkeypatch)


def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest pieces there are: products of 64 rows of 143, in tiles of 5."""
    monkeypatch.setattr(fused_closed_form, "PRODUCT_BYTES", {"cpu": 1})
    monkeypatch.setattr(fused_closed_form, "TILE_ELEMENTS", {"cpu": 5 * V})


class Case:
    """Hidden states, a head, weights and arguments at 143 of 150 positions."""

    def __init__(self, dtype: torch.dtype, bias: bool, scale: float = 1.0, softcap: float | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(10, 15, 8, generator=generator).to(dtype).requires_grad_(True)
        self.weight = torch.randn(V, 8, generator=generator).to(dtype).requires_grad_(True)
        self.bias = torch.randn(V, generator=generator).to(dtype).requires_grad_(True) if bias else None
        self.head = Head(self.weight, self.bias, scale, softcap)
        self.where = torch.ones(10, 15, dtype=torch.bool)
        self.where[::3, 2] = self.where[4, 4:7] = False
        x_0, z = torch.randint(V - 1, (2, 143), generator=generator)
        z[::2] = x_0[::2]
        alpha = 0.01 + 0.98 * torch.rand(143, generator=generator, dtype=torch.float64)
        self.arguments = x_0 + (x_0 >= MASK), z + (z >= MASK), alpha, (1.0 - alpha) / (V - 1)
        self.factor, self.upstream = torch.randn(2, 143, generator=generator).to(dtype)

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for leaf in (self.hidden, self.weight, self.bias) if leaf is not None]

    def weighted(self) -> Tensor:
        prediction = HeadPrediction(self.hidden, self.head, MASK)
        return prediction.weighted(FORM, self.where, self.factor, *self.arguments).loss

    def reference(self) -> Tensor:
        """The plainest route, in float64."""
        logits = self.hidden[self.where].double() @ self.weight.double().T
        if self.bias is not None:
            logits = logits + self.bias.double()
        logits = logits * self.head.scale
        if self.head.softcap is not None:
            logits = self.head.softcap * torch.tanh(logits / self.head.softcap)
        logits = logits.index_fill(-1, torch.tensor([MASK]), float("-inf"))
        return self.factor.double() * FORM(logits, *self.arguments)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, self.leaves))


CASES = [
    pytest.param({"bias": False}, id="plain"),
    pytest.param({"bias": True, "scale": 0.25}, id="bias_and_scale"),
    pytest.param({"bias": True, "scale": 0.5, "softcap": 3.0}, id="softcap"),
]


@pytest.mark.parametrize("keywords", CASES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_values_and_gradients(keywords, dtype, close, chunked):
    case = Case(dtype, **keywords)
    mine, reference = case.weighted(), case.reference()
    assert mine.dtype == dtype
    torch.testing.assert_close(mine.double(), reference, rtol=close, atol=close)
    with torch.no_grad():
        torch.testing.assert_close(case.weighted(), mine.detach())
    for one, other in zip(case.gradients(mine.sum()), case.gradients(reference.sum()), strict=True):
        torch.testing.assert_close(one, other, rtol=close, atol=close)


def test_any_loss_and_any_number_of_backward_passes(chunked):
    """A sum is what the gradient was made for; anything else costs time and is right too."""
    case = Case(torch.float64, bias=True, scale=0.5)
    losses = [
        lambda values: scatter(values, case.where).sum() * -0.3,
        lambda values: (values * case.upstream).sum(),
        lambda values: (scatter(values, case.where) ** 2).sum(),
        lambda values: values.sum() + values.mean(),
    ]
    for loss in losses:
        mine, expected = case.weighted(), case.gradients(loss(case.reference()))
        for _ in range(2):
            made = torch.autograd.grad(loss(mine), case.leaves, retain_graph=True)
            torch.testing.assert_close(list(made), expected, rtol=1e-10, atol=1e-10)


def test_under_autocast(chunked):
    """bfloat16 has 8 bits: products are good to half a percent of their largest terms."""
    case = Case(torch.float32, bias=True)
    for loss in (lambda values: values.sum(), lambda values: (values * case.upstream).sum()):
        with torch.autocast("cpu", torch.bfloat16):
            mine = case.weighted()
        reference = case.reference()
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine.double(), reference, rtol=0.05, atol=0.1)
        for one, other in zip(case.gradients(loss(mine)), case.gradients(loss(reference)), strict=True):
            assert one.dtype == torch.float32
            assert float((one - other).norm() / other.norm()) < 0.02


def test_no_selected_position(chunked):
    case = Case(torch.float32, bias=True)
    case.where = torch.zeros_like(case.where)
    case.factor, case.arguments = torch.zeros(0), tuple(argument[:0] for argument in case.arguments)
    assert all((gradient == 0).all() for gradient in case.gradients(case.weighted().sum()))


class Recorded(TorchDispatchMode):
    """Records the operations, backward too, and the number of elements of the largest tensor that one made."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.operations: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.operations.append(function.name())
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_the_logits_of_all_positions_never_exist(monkeypatch: pytest.MonkeyPatch):
    in_pieces(monkeypatch)
    case = Case(torch.float32, bias=True)
    with Recorded() as recorded:
        case.gradients(scatter(case.weighted(), case.where).sum())
    assert recorded.elements < 143 * V / 2


def test_nothing_waits_for_the_device():
    """Three products in all, and no value decides what is computed, beside the positions that are selected once."""
    case = Case(torch.float32, bias=False)
    with Recorded() as recorded:
        case.gradients(scatter(case.weighted(), case.where).sum())
    waits = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "allclose", "index.Tensor")
    found = [name for name in recorded.operations if name.removeprefix("aten::") in waits]
    assert found == ["aten::index.Tensor"]  # hidden[where]
    assert sum(name.startswith(("aten::mm", "aten::addmm")) for name in recorded.operations) == 3
