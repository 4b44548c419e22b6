"""dlmkit: a Lightning kit for experiments with diffusion language models.

    model = dlmkit.load("runs/quickstart/family=adapted")      # or a Hugging Face folder
    model.generate("In the beginning", num_samples=2)

The names below are imported when first used, so that `import dlmkit` stays quick; docs/usage.md trains and samples with
them, without a configuration. Every other part is in the folder of its kind (schedules, processes, ...).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # for editors and type checkers; keep equal to _HOME
    from dlmkit.backbones.dit import DiT as DiT
    from dlmkit.backbones.hf import HFBackbone as HFBackbone
    from dlmkit.checkpoints.load import load as load
    from dlmkit.corruption.complementary import Complementary as Complementary
    from dlmkit.corruption.fixed_count import FixedCount as FixedCount
    from dlmkit.corruption.independent import Independent as Independent
    from dlmkit.evaluation.nelbo import score_sequences as score_sequences
    from dlmkit.generation import complete as complete
    from dlmkit.generation import generate as generate
    from dlmkit.inference.model import LoadedModel as LoadedModel
    from dlmkit.inference.texts import Texts as Texts
    from dlmkit.module import DiffusionLM as DiffusionLM
    from dlmkit.objectives.autoregressive import Autoregressive as Autoregressive
    from dlmkit.objectives.block import BlockElbo as BlockElbo
    from dlmkit.objectives.discrete import DiscreteTimeElbo as DiscreteTimeElbo
    from dlmkit.objectives.elbo import GenericElbo as GenericElbo
    from dlmkit.objectives.hybrid import HybridElbo as HybridElbo
    from dlmkit.objectives.masked import MaskedElbo as MaskedElbo
    from dlmkit.objectives.score_entropy import ScoreEntropy as ScoreEntropy
    from dlmkit.objectives.uniform import UniformElbo as UniformElbo
    from dlmkit.processes.absorbing import Absorbing as Absorbing
    from dlmkit.processes.hybrid import Hybrid as Hybrid
    from dlmkit.processes.none import NoNoise as NoNoise
    from dlmkit.processes.uniform import Uniform as Uniform
    from dlmkit.requests import RequestBuilder as RequestBuilder
    from dlmkit.samplers.ancestral import Ancestral as Ancestral
    from dlmkit.samplers.blockwise import Blockwise as Blockwise
    from dlmkit.schedules.cosine import Cosine as Cosine
    from dlmkit.schedules.linear import Linear as Linear
    from dlmkit.schedules.log_linear import LogLinear as LogLinear
    from dlmkit.step import losses as losses
    from dlmkit.t_samplers.stratified import Stratified as Stratified
    from dlmkit.types import Batch as Batch
    from dlmkit.types import Canvas as Canvas
    from dlmkit.types import NetworkInput as NetworkInput
    from dlmkit.types import Noised as Noised
    from dlmkit.types import TimeDraw as TimeDraw

_HOME = {
    "DiT": "backbones.dit",
    "HFBackbone": "backbones.hf",
    "load": "checkpoints.load",
    "Complementary": "corruption.complementary",
    "FixedCount": "corruption.fixed_count",
    "Independent": "corruption.independent",
    "score_sequences": "evaluation.nelbo",
    "complete": "generation",
    "generate": "generation",
    "LoadedModel": "inference.model",
    "Texts": "inference.texts",
    "losses": "step",
    "DiffusionLM": "module",
    "Autoregressive": "objectives.autoregressive",
    "BlockElbo": "objectives.block",
    "DiscreteTimeElbo": "objectives.discrete",
    "GenericElbo": "objectives.elbo",
    "HybridElbo": "objectives.hybrid",
    "MaskedElbo": "objectives.masked",
    "ScoreEntropy": "objectives.score_entropy",
    "UniformElbo": "objectives.uniform",
    "Absorbing": "processes.absorbing",
    "Hybrid": "processes.hybrid",
    "NoNoise": "processes.none",
    "Uniform": "processes.uniform",
    "RequestBuilder": "requests",
    "Ancestral": "samplers.ancestral",
    "Blockwise": "samplers.blockwise",
    "Cosine": "schedules.cosine",
    "Linear": "schedules.linear",
    "LogLinear": "schedules.log_linear",
    "Stratified": "t_samplers.stratified",
    "Batch": "types",
    "Canvas": "types",
    "NetworkInput": "types",
    "Noised": "types",
    "TimeDraw": "types",
}
"""Public name -> module under dlmkit."""

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dlmkit' has no attribute {name!r}")
    return getattr(import_module(f"dlmkit.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
