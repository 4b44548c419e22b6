import math
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dlmkit.backbones.dit import DiT, rotary_angles, rotate
from dlmkit.types import FULL_ATTENTION, Attention, NetworkInput

CONF = Path(__file__).parents[2] / "conf" / "backbone"
V, MASK, BOS, L = 23, 22, 21, 12
BIDIRECTIONAL = {"causal": False, "shift": False}
SHIFTED = {"causal": False, "shift": True}
CAUSAL = {"causal": True, "shift": True}
VARIANTS = [
    pytest.param({**BIDIRECTIONAL}, id="bidirectional"),
    pytest.param({**SHIFTED, "bos_id": BOS}, id="shifted-bos"),
    pytest.param({**SHIFTED, "bos_id": None}, id="shifted"),
    pytest.param({**CAUSAL, "bos_id": BOS}, id="causal-bos"),
    pytest.param({**CAUSAL, "bos_id": None}, id="causal"),
]


def tiny(seed: int = 0, randomised: bool = True, **changes: object) -> DiT:
    """A DiT in which, if randomised, every parameter matters (gates and head are zero at first)."""
    torch.manual_seed(seed)
    keywords = {
        "vocab_size": V,
        "mask_id": MASK,
        "max_length": 32,
        "hidden_size": 32,
        "num_layers": 3,
        "num_heads": 4,
        "cond_size": 8,
        "bos_id": BOS,
    }
    model = DiT(**{**keywords, **changes}).eval()  # type: ignore[arg-type]
    if randomised:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(V - 2, shape, generator=torch.Generator().manual_seed(seed))


def times(size: int, value: float = 0.5) -> Tensor:
    return torch.full((size,), value, dtype=torch.float64)


@torch.no_grad()
def hidden(
    model: DiT, x_t: Tensor, t: float = 0.5, segments: Tensor | None = None, attention: Attention = FULL_ATTENTION
) -> Tensor:
    return model(NetworkInput(x_t, times(len(x_t), t), segments, attention=attention)).hidden


# Sizes


@pytest.mark.parametrize(
    ("name", "vocab_size", "changes", "num_params"),
    [
        ("tiny", 257, {}, 1_058_816),
        ("small", 50_258, {}, 130_959_616),
        ("small", 50_258, {"time_conditioned": False}, 123_635_712),
        ("small", 50_258, {"tied": False}, 169_557_760),  # SEDD and MDLM "small": 170M
        ("medium", 50_258, {}, 372_912_384),
        ("medium", 50_258, {"time_conditioned": False}, 353_726_464),
        ("medium", 50_258, {"tied": False}, 424_376_576),  # SEDD "medium": 424M
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_yaml_sizes(name, vocab_size, changes, num_params, causal):
    vocab = {"size": vocab_size, "mask_id": vocab_size - 1, "bos_id": 0}
    config = OmegaConf.create({"vocab": vocab, "causal": causal, "backbone": OmegaConf.load(CONF / f"dit_{name}.yaml")})
    with torch.device("meta"):
        model = instantiate(config.backbone, **changes)
    assert model.num_params == num_params
    assert (model.causal, model.shift, model.bos_id) == (causal, causal, 0)


@pytest.mark.parametrize("name", ["small", "medium"])
def test_sizes_are_of_gpt2s_class(name):
    transformers = pytest.importorskip("transformers")
    config = OmegaConf.load(CONF / f"dit_{name}.yaml")
    gpt2 = transformers.GPT2Config(
        n_embd=config.hidden_size, n_layer=config.num_layers, n_head=config.num_heads, vocab_size=50_257
    )
    with torch.device("meta"):
        reference = transformers.GPT2LMHeadModel(gpt2).num_parameters()
        model = instantiate(
            OmegaConf.create(
                {"vocab": {"size": 50_258, "mask_id": 50_257, "bos_id": 0}, "causal": False, "b": config}
            ).b
        )
    assert abs(model.num_params / reference - 1) < 0.06


@pytest.mark.parametrize(("head_fraction", "tied"), [(1.0, False), (0.25, True)])
def test_flops_per_token_agree_with_torchs_count(head_fraction, tied):
    length = 64
    model = tiny(hidden_size=64, vocab_size=200, max_length=length, tied=tied)
    where = torch.arange(length)[None] < head_fraction * length
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        prediction = model(NetworkInput(tokens(1, length), times(1)))
        prediction.logits(where).logsumexp(-1).sum().backward()
    assert model.flops_per_token(length, head_fraction) == pytest.approx(counter.get_total_flops() / length, rel=0.02)


def test_causal_attention_costs_half():
    full, half, none = (
        tiny(**variant).flops_per_token(length, 0.5)
        for variant, length in [(SHIFTED, 100), (CAUSAL, 100), (SHIFTED, 0)]
    )
    assert half - none == pytest.approx((full - none) / 2)


# Initialisation


@pytest.mark.parametrize("time_conditioned", [True, False])
def test_starts_as_the_identity_with_a_uniform_prediction(time_conditioned):
    model = tiny(randomised=False, time_conditioned=time_conditioned)
    x_t = tokens(2, L)
    prediction = model(NetworkInput(x_t, times(2)))
    embedded = model.embedding(x_t)
    assert torch.equal(prediction.hidden, torch.nn.functional.layer_norm(embedded, embedded.shape[-1:]))
    log_prob = prediction.token_log_prob(x_t, torch.ones(2, L, dtype=torch.bool))
    torch.testing.assert_close(log_prob, torch.full((2 * L,), -math.log(V - 1)))  # the mask token is never predicted


@pytest.mark.parametrize("time_conditioned", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_gets_a_gradient(tied, time_conditioned):
    # None would stop DistributedDataParallel; zero everywhere would be a dead weight.
    x_t, everywhere = tokens(2, L), torch.ones(2, L, dtype=torch.bool)
    for randomised in (False, True):
        model = tiny(randomised=randomised, tied=tied, time_conditioned=time_conditioned)
        prediction = model(NetworkInput(x_t, times(2)))
        prediction.token_log_prob(tokens(2, L, seed=2), everywhere).mean().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert not randomised or parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("time_conditioned", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_materialised_from_meta_equals_built_directly(tied, time_conditioned):
    keywords = {"randomised": False, "tied": tied, "time_conditioned": time_conditioned}
    direct = tiny(**keywords).state_dict()
    with torch.device("meta"):
        model = tiny(**keywords)
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    for module in model.modules():  # as Lightning's model-parallel strategy does
        if any(True for _ in module.parameters(recurse=False)):
            module.reset_parameters()
    assert all(torch.equal(tensor, direct[name]) for name, tensor in model.state_dict().items())
    assert not list(model.buffers())


# Positions


def test_rotated_scores_depend_on_the_difference_of_positions_only():
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rotary = rotary_angles(40, 16, torch.device("cpu"))
    scores = rotate(query.expand(-1, -1, 40, -1), rotary) @ rotate(key.expand(-1, -1, 40, -1), rotary).mT
    for offset in (-30, -1, 0, 1, 7):
        band = scores[0, 0].diagonal(offset)
        torch.testing.assert_close(band, band[:1].expand_as(band), rtol=0, atol=1e-4)
    row = scores[0, 0, 20]
    assert len({round(score, 3) for score in row.tolist()}) > 30  # and they do depend on it, on its sign too


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_documents_predictions_do_not_depend_on_its_place_in_the_sequence(variant):
    model = tiny(**variant)
    document, others = tokens(2, 6), tokens(2, 10, seed=3)
    sequence = torch.cat([others, document], dim=1)
    segments = torch.tensor([[0] * 10 + [1] * 6] * 2)
    if model.shift:  # its first token is predicted from the one before it, EOS or BOS
        sequence[:, 9] = BOS
        alone = hidden(tiny(**{**variant, "bos_id": BOS}), document)
    else:
        alone = hidden(model, document)
    torch.testing.assert_close(hidden(model, sequence, segments=segments)[:, 10:], alone, rtol=1e-4, atol=1e-4)


def test_the_order_of_the_context_matters():
    model = tiny()
    x_t = tokens(1, L)
    swapped = x_t.clone()
    swapped[0, [3, 8]] = x_t[0, [8, 3]]
    assert x_t[0, 3] != x_t[0, 8]
    difference = (hidden(model, x_t) - hidden(model, swapped)).abs().amax(-1)[0]
    assert (difference > 1e-3).all()


# Time


def test_time_changes_the_output_once_the_modulation_is_not_zero():
    x_t = tokens(2, L)
    trained, fresh = tiny(), tiny(randomised=False)
    assert not torch.allclose(hidden(trained, x_t, 0.3), hidden(trained, x_t, 0.301), atol=1e-4)
    assert torch.equal(hidden(fresh, x_t, 0.3), hidden(fresh, x_t, 0.9))


def test_time_is_ignored_without_conditioning():
    model = tiny(time_conditioned=False)
    x_t = tokens(2, L)
    assert torch.equal(hidden(model, x_t, 0.0), hidden(model, x_t, 1.0))


def test_each_sequence_has_its_own_time():
    model = tiny()
    x_t = tokens(2, L)
    with torch.no_grad():
        both = model(NetworkInput(x_t, torch.tensor([0.1, 0.8], dtype=torch.float64))).hidden
    apart = torch.cat([hidden(model, x_t[:1], 0.1), hidden(model, x_t[1:], 0.8)])
    torch.testing.assert_close(both, apart, rtol=1e-4, atol=1e-5)


# Attention


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("place", [1, 5, L - 1])
def test_a_token_changes_earlier_predictions_iff_bidirectional(variant, place):
    model = tiny(**variant)
    x_t = tokens(2, L)
    changed = x_t.clone()
    changed[:, place] = (x_t[:, place] + 1) % (V - 2)
    differs = (hidden(model, x_t) != hidden(model, changed)).any(-1).all(0)
    # A causal network attends neither to later tokens nor to the token that it predicts.
    expected = torch.arange(L) > place if model.causal else torch.ones(L, dtype=torch.bool)
    assert torch.equal(differs, expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_masked_documents_do_not_leak(variant):
    model = tiny(**variant)
    lengths = [3, 5, 4]
    segments = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None].expand(2, -1)
    x_t = tokens(2, L)
    before = hidden(model, x_t, segments=segments)
    for document in range(3):
        changed = x_t.clone()
        inside = segments[0] == document
        places = inside.nonzero()[:, 0]
        if model.shift:
            # The token that ends a document (EOS) is the input at which the next one's first token is predicted.
            places = places[:-1]
        changed[:, places] = (x_t[:, places] + 1) % (V - 2)
        after = hidden(model, changed, segments=segments)
        scored = torch.arange(L) >= (0 if model.predicts_first else 1)
        assert torch.equal(after[:, ~inside & scored], before[:, ~inside & scored])
        assert not torch.equal(after[:, inside], before[:, inside])
    together = hidden(model, x_t)
    assert not torch.allclose(together[:, 4:], before[:, 4:], atol=1e-3)


def test_annealing_goes_from_causal_to_bidirectional():
    model, causal = tiny(**SHIFTED), tiny(**CAUSAL)
    x_t = tokens(2, L)
    none = hidden(model, x_t, attention=Attention(0.0))
    torch.testing.assert_close(none, hidden(causal, x_t), rtol=1e-4, atol=1e-5)
    half = hidden(model, x_t, attention=Attention(0.5))
    assert not torch.allclose(half, hidden(model, x_t, attention=Attention(1.0)), atol=1e-3)


# Parity with the plain formulas


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * (1 + scale) + shift


def turned(x: Tensor) -> Tensor:
    """x [B, M, d] rotated by its positions, as complex numbers."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[1])[:, None] * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    rotated = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.cat([rotated.real, rotated.imag], dim=-1)


def reference_logits(model: DiT, ids: Tensor, t: Tensor, masked: Tensor) -> Tensor:
    """Output at each input position, from the formulas: float64, explicit scores, rotation by complex numbers.

    `masked` is bool [M, M], True where query does not attend to key.
    """
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def modulation(name: str, num_vectors: int) -> list[Tensor]:
        if f"{name}.constant" in w:
            vectors = w[f"{name}.constant"].expand(len(ids), -1)
        else:
            vectors = linear(cond, f"{name}.linear")
        return list(vectors[:, None, :].split(vectors.shape[-1] // num_vectors, dim=-1))

    frequencies = torch.tensor([10_000.0 ** (-k / 128) for k in range(128)], dtype=torch.float64)
    angles = 1_000 * t[:, None] * frequencies
    if model.time is not None:
        cond = silu(linear(silu(linear(torch.cat([angles.cos(), angles.sin()], -1), "time.up")), "time.down"))
    x = w["embedding.weight"][ids]
    width = x.shape[-1]
    for index in range(len(model.blocks)):
        name = f"blocks.{index}"
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = modulation(f"{name}.modulation", 6)
        qkv = linear(norm(x, shift_1, scale_1), f"{name}.qkv")
        mixed = []
        for start in range(0, width, model.head_size):
            query, key, value = (qkv[..., part * width + start :][..., : model.head_size] for part in range(3))
            scores = turned(query) @ turned(key).transpose(1, 2) / math.sqrt(model.head_size)
            mixed.append(scores.masked_fill(masked, float("-inf")).softmax(-1) @ value)
        x = x + gate_1 * linear(torch.cat(mixed, -1), f"{name}.out")
        y = linear(norm(x, shift_2, scale_2), f"{name}.up")
        y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        x = x + gate_2 * linear(y, f"{name}.down")
    x = norm(x, *modulation("final", 2))
    logits = x @ w.get("unembedding.weight", w["embedding.weight"]).T
    logits[..., MASK] = float("-inf")
    return logits


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"tied": True}, {"time_conditioned": False}], ids=str)
def test_equals_the_formulas(variant, options):
    model = tiny(**variant, **options).double()
    # Angles are float32: up to 12 radians for positions, up to 1,000 for time.
    tolerance = 2e-3 if model.time is not None else 2e-5
    x_t = tokens(2, L)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    with torch.no_grad():
        logits = model(NetworkInput(x_t, t)).logits(torch.ones(2, L, dtype=torch.bool)).view(2, L, V)
    start = torch.full((2, 1), BOS)
    ids = torch.cat([start, x_t], dim=1) if model.shift and model.bos_id is not None else x_t
    nothing = torch.zeros(ids.shape[1], ids.shape[1], dtype=torch.bool)
    expected = reference_logits(model, ids, t, nothing.logical_not().triu(1) if model.causal else nothing)
    # Row i of `logits` predicts token i: output i, or, with a shift, the output at the token before.
    if not model.shift or model.bos_id is not None:
        expected, got = expected[:, :L], logits
    else:
        expected, got = expected[:, :-1], logits[:, 1:]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_autocast_to_bfloat16_stays_close():
    # As initialised, but with gates and head alive: weights of a trained network's size.
    model = tiny(randomised=False, tied=True)
    with torch.no_grad():
        for module in [*model.blocks, model]:
            modulation = module.final if module is model else module.modulation
            modulation.linear.bias.normal_(std=0.5)
    x_t = tokens(2, 32)
    exact = hidden(model, x_t)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = hidden(model, x_t)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


def test_dropout_acts_in_training_only():
    model = tiny(dropout=0.5)
    x_t = tokens(2, L)
    assert torch.equal(hidden(model, x_t), hidden(tiny(dropout=0.0), x_t))
    assert torch.equal(hidden(model, x_t), hidden(model, x_t))
    model.train()
    assert not torch.equal(hidden(model, x_t), hidden(model, x_t))


# Refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_id": V}, rf"mask_id {V} is outside the vocabulary of {V} tokens .*: "),
        ({"mask_id": -1}, "mask_id -1 is outside the vocabulary"),
        ({"bos_id": V}, f"bos_id {V} is outside the vocabulary"),
        ({"causal": True}, "shift=true"),
        ({"num_heads": 3}, "hidden_size 32 with 3 heads.*multiple of 6"),
        ({"num_heads": 32}, "hidden_size 32 with 32 heads.*even.*multiple of 64"),
    ],
)
def test_wrong_keywords_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        tiny(**changes)
    assert "\n" not in str(caught.value)


def test_a_sequence_longer_than_max_length_is_refused():
    model = tiny(max_length=L, **CAUSAL)
    assert hidden(model, tokens(1, L)).shape == (1, L, 32)  # the BOS does not count
    with pytest.raises(
        ValueError, match=r"length 13 is more than this backbone's 12 positions .* set length to at most 12"
    ):
        model(NetworkInput(tokens(1, L + 1), times(1)))


def test_gradient_checkpointing_changes_no_gradient() -> None:
    x_t, everywhere = tokens(2, L), torch.ones(2, L, dtype=torch.bool)
    gradients = []
    for recompute in (False, True):
        model = tiny(gradient_checkpointing=recompute)
        model(NetworkInput(x_t, times(2))).token_log_prob(x_t, everywhere).sum().backward()
        gradients.append({name: one.grad for name, one in model.named_parameters()})
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
