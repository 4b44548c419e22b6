"""Any transformers causal LM as a backbone; every Hugging Face quirk lives here."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dlmkit.backbones.attention import FLEX, Mask, check_flex_trains
from dlmkit.backbones.caching import CachingBackbone, States
from dlmkit.backbones.head import Head, HeadPrediction
from dlmkit.backbones.hf.attention import TILED
from dlmkit.backbones.hf.cache import dynamic_cache, layers_of
from dlmkit.backbones.hf.families import (
    FAMILIES,
    KERNELS,
    family_of,
    fuse_activation,
    has_windows,
    tensor_parallel_plan,
    with_windows,
)
from dlmkit.backbones.hf.four_bit import FourBitLinear
from dlmkit.backbones.hf.loading import build_model, config_again, embeddings_of, model_config_of, resize_embeddings
from dlmkit.backbones.hf.lora import add_lora, check_lora, merge_lora
from dlmkit.backbones.inputs import TrunkInput
from dlmkit.notices import notice
from dlmkit.ranges import checked
from dlmkit.types import NetworkInput


class HFBackbone(CachingBackbone):
    """A causal LM turned bidirectional by `config.is_causal = False`, without patches or subclasses.

    Source: arXiv 2410.17891, section 3.2: full attention, the shift kept, no time embedding (t is not read).

    Args:
        vocab_size: V, mask token included; the embedding grows to it if it has fewer rows; padding rows beyond
            it are kept but never predicted.
        mask_id: id of the mask token, or ``None``.
        bos_id: id to prepend to every sequence when `shift` and `bos` is "prepend".
        causal: attend to the past alone (autoregressive baseline).
        shift: the output at i - 1 predicts token i, as in the causal LM.
        bos: "prepend" or "none" (the paper's behaviour: token 0 is given and is not scored).
        attention: kernel: "sdpa", "eager", "flex_attention" or "flash_attention_2".
        attention_with_mask: kernel of passes with a dense mask (annealing, document masking), which flash attention
            does not support; ``None`` for `attention`, or "sdpa" where that is "flash_attention_2".
        gradient_checkpointing: recompute activations in the backward pass, layer by layer.
        lora: rank, alpha, dropout, train_embeddings and quantize of low-rank adapters (`lora.add_lora`), which are then
            all that is trained; rank 0 for none.
        name: hub name or local folder of a pretrained model; ``None`` builds `config` from scratch.
        config: keywords of the model's configuration, `model_type` among them, when `name` is ``None``.

    Raises:
        ValueError: a family that is not supported, a name that cannot be found, weights that are damaged or do not
            fit, a kernel that the family does not support, 4 bits of what was not pretrained or has no adapters.
    """

    name = "hf"
    supports_context = True

    @checked
    def __init__(
        self,
        vocab_size: int,
        mask_id: int | None,
        bos_id: int | None,
        causal: bool,
        shift: bool,
        bos: str,
        attention: str,
        attention_with_mask: str | None,
        gradient_checkpointing: bool,
        lora: dict[str, Any],
        name: str | None,
        config: dict[str, Any] | None,
    ) -> None:
        super().__init__(vocab_size, mask_id, causal, shift, _bos_to_prepend(bos, bos_id, shift))
        check_lora(lora)
        model_config = model_config_of(name, config, vocab_size)
        own_config = config_again(model_config)
        self.family = family_of(model_config)
        self.attention = attention
        self.attention_with_mask = attention_with_mask or ("sdpa" if attention == "flash_attention_2" else attention)
        _check_kernels(self.attention, self.attention_with_mask, model_config.model_type)
        fuse_activation(self.family, model_config)
        model_config.is_causal = causal
        self.model: PreTrainedModel = build_model(name, model_config, attention)
        added = resize_embeddings(self.model, vocab_size, name)
        self.remarks = () if added is None else (added,)
        self._recomputes = gradient_checkpointing
        if gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        # In a tuple, so that torch does not register the model a second time.
        if lora.get("quantize"):
            _check_quantize(lora["rank"], name is not None or self.model.device.type == "meta")
        self._tuner = (add_lora(self.model, **lora),) if lora["rank"] else ()
        self.saves_frozen = name is None or not self._tuner
        self.pretrained_config = own_config if name is not None and self.saves_frozen else None

    def forward(self, inputs: NetworkInput) -> HeadPrediction:
        """Return the prediction at the positions of `inputs.x_t`; t is not read. See :class:`Backbone`."""
        # The trunk is called apart from the head, so that the head runs at selected positions only.
        return HeadPrediction(self.states(inputs), self.head, self.mask_id)

    def run_trunk(self, trunk: TrunkInput, keep: bool = False) -> States:
        """Return the states that the model gives to its head. See :class:`CachingBackbone`."""
        mask = trunk.mask
        if mask is None and trunk.past is not None and has_windows(self.family, self.model.config):
            mask = trunk.whole_mask()  # transformers would place windows as if the keys were one text
        self._use_kernel(self._kernel(mask), trunk.ids.device)
        optional: dict[str, Any] = {"attention_mask": self._kernel_mask(trunk, mask)}
        if self.family.takes_positions or trunk.slots is not None:
            optional["position_ids"] = trunk.positions.expand(trunk.ids.shape)
        cache = None
        if keep or trunk.past is not None:
            cache = optional["past_key_values"] = dynamic_cache(trunk.past)
        outputs = self.model.base_model(input_ids=trunk.ids, use_cache=False, **optional)
        return States(outputs.last_hidden_state, layers_of(cache) if keep and cache is not None else ())

    @property
    def may_cache(self) -> bool:
        """Not while activations are recomputed: transformers' layers then drop the keys that they are given."""
        return self.supports_cache and not (self.training and self._recomputes)

    @property
    def head(self) -> Head:
        """The output head, with what the family does to its logits."""
        output = self.model.get_output_embeddings()
        assert isinstance(output, nn.Linear)
        # Rows beyond the tokenizer's ids are padding that some models carry; they are never predicted.
        bias = None if output.bias is None else output.bias[: self.vocab_size]
        config, family = self.model.config, self.family
        return Head(output.weight[: self.vocab_size], bias, family.logit_scale(config), family.softcap(config))

    def to_hugging_face(self) -> PreTrainedModel:
        """Return the model for `save_pretrained`, adapters merged; the backbone is used up by it."""
        if self._in_four_bits:
            notice("weights in 4 bits are written as the float32 numbers that they stand for, with adapters added")
        return merge_lora(self._tuner[0]) if self._tuner else self.model

    @property
    def num_params(self) -> int:
        """Number of parameters, tied ones counted once, and those in 4 bits as what they stand for."""
        return super().num_params + sum(layer.num_weights for layer in self._in_four_bits)

    def weight_bytes(self, each: int) -> int:
        """Return the bytes of the weights, in 4 bits where they are. See :class:`Backbone`."""
        return super().num_params * each + sum(layer.num_bytes for layer in self._in_four_bits)

    @property
    def divisible(self) -> bool:
        """Whether FSDP2 can split the weights: not those in 4 bits."""
        return not self._in_four_bits

    @property
    def _in_four_bits(self) -> list[FourBitLinear]:
        return [module for module in self.modules() if isinstance(module, FourBitLinear)]

    def sharding_units(self) -> list[nn.Module]:
        """Return the transformer layers, the units of sharding."""
        kinds = set(self.model._no_split_modules or ())
        return [module for module in self.model.modules() if type(module).__name__ in kinds]

    def tensor_parallel_plan(self, num_processes: int) -> dict[str, str]:
        """Return the plan of the model's family. See :class:`Backbone`."""
        if self._tuner:
            raise ValueError(
                "backbone.lora with trainer.strategy.tensor_parallel_size above 1 is not supported: set it to 1"
            )
        trunk = f"model.{self.model.base_model_prefix}"
        return {
            f"{trunk}.{name}": style for name, style in tensor_parallel_plan(self.model.config, num_processes).items()
        }

    @property
    def max_length(self) -> int:
        """The model's positions, less the one that a prepended BOS takes."""
        return int(self.model.config.max_position_embeddings) - self.alignment.extra_positions

    def flops_per_token(self, length: int, head_fraction: float) -> float:
        """6 per trunk and used head parameter, and 12 L D per layer for attention (half of it when causal).

        Source: arXiv 2204.02311 (PaLM), appendix B, with the head counted where it runs.
        """
        config = self.model.config
        head = self.model.get_output_embeddings().weight.numel()
        embeddings = {id(module.weight): module.weight.numel() for module in embeddings_of(self.model)}
        trunk = self.num_params - sum(embeddings.values())
        attention = 12 * config.num_hidden_layers * config.hidden_size * length * (0.5 if self.causal else 1.0)
        return 6.0 * (trunk + head * head_fraction) + attention

    def _kernel(self, mask: Mask | None) -> str:
        if mask is None:
            return self.attention
        in_tiles = mask.tiles is not None and self.attention_with_mask == "sdpa" and self.family.has_interface
        return TILED if in_tiles else self.attention_with_mask

    def _use_kernel(self, name: str, device: torch.device) -> None:
        if name == FLEX and torch.is_grad_enabled():
            check_flex_trains(any(parameter.requires_grad for parameter in self.parameters()), device)
        if self.model.config._attn_implementation != name:
            self.model.set_attn_implementation(name)

    def _kernel_mask(self, trunk: TrunkInput, mask: Mask | None) -> Any:
        """Return the mask in the form of this pass's kernel; a dictionary of them where layers differ."""
        if mask is None and self.model.config._attn_implementation == FLEX:
            # Without one, transformers would build and compile its flex mask in every pass.
            mask = trunk.whole_mask()
        if mask is None:
            return None
        masks = with_windows(mask, self.family, self.model.config, trunk.causal_window)
        if isinstance(masks, dict):
            return {kind: self._for_kernel(one) for kind, one in masks.items()}
        return self._for_kernel(masks)

    def _for_kernel(self, mask: Mask) -> Any:
        implementation = self.model.config._attn_implementation
        if implementation == FLEX:
            return mask.flex
        if implementation == TILED:
            assert mask.tiled is not None  # its parts, which the kernel finds by the mask
        if implementation in ("sdpa", TILED):
            return mask.visible
        # Eager attention adds its mask to the scores.
        dtype, visible = self.model.dtype, mask.visible
        blank = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return blank.masked_fill(~visible, torch.finfo(dtype).min)


def _check_kernels(attention: str, attention_with_mask: str, model_type: str) -> None:
    kernels = FAMILIES[model_type].kernels
    for key, kernel in (("attention", attention), ("attention_with_mask", attention_with_mask)):
        if kernel not in KERNELS:
            raise ValueError(f"backbone.{key} {kernel!r} is unknown: choose one of {', '.join(KERNELS)}")
        if kernel not in kernels:
            raise ValueError(
                f"backbone.{key} {kernel!r} does not work for model type {model_type!r}: choose one of"
                f" {', '.join(kernels)}"
            )
    if attention_with_mask == "flash_attention_2":
        raise ValueError(
            "backbone.attention_with_mask flash_attention_2 takes no dense mask, which annealing and document"
            " masking need: set it to sdpa or flex_attention"
        )


def _check_quantize(rank: int, pretrained: bool) -> None:
    if not rank:
        raise ValueError(
            "backbone.lora.quantize=4bit with rank 0: weights in 4 bits are not trained, set backbone.lora.rank=8 for"
            " adapters that are, or quantize=null"
        )
    if not pretrained:
        raise ValueError(
            "backbone.lora.quantize=4bit with backbone.name null: only pretrained weights are worth keeping frozen,"
            " name a model, or set quantize=null"
        )


def _bos_to_prepend(bos: str, bos_id: int | None, shift: bool) -> int | None:
    if bos not in ("prepend", "none"):
        raise ValueError(f"backbone.bos {bos!r} is unknown: choose prepend or none")
    if bos == "none" or not shift:
        return None
    if bos_id is None:
        raise ValueError(
            "backbone.bos=prepend needs a BOS token, bos_id is null: choose a tokenizer with one, or set"
            " backbone.bos=none (token 0 is then given, not scored)"
        )
    return bos_id
