"""Low-rank adapters (Hu et al. 2021): beside each of a model's linear layers a small product of two matrices, which alone is trained.

The model keeps its class, so whatever reads, samples or scores with it need not know. What is written to disk is always a
whole plain model. peft takes seconds to import and is imported where adapters are wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tasks.errors import ConfigError
from tasks.training.models import RewardModel, reference_sharing
from tasks.training_config import AdapterConfig

M = TypeVar("M", PreTrainedModel, RewardModel)
Reference = Callable[[], AbstractContextManager[PreTrainedModel]]
"""`with reference() as model:` the policy as it was before it was trained."""


def with_adapters(model: M, config: AdapterConfig, seed: int) -> M:
    """The model, in place, with adapters on its body's linear layers and everything else frozen but a reward model's head.

    What it says does not change before it is trained: of the two matrices one is random, drawn by the seed, and one
    zero. With rank 0 nothing is done. Raises ConfigError where a layer does not exist, or 4bit is not to be had.
    """
    if config.rank == 0:
        return model
    body = _body(model)
    layers = _chosen(body, config.layers)
    if config.base == "4bit":
        _in_four_bits(body)
    from peft import LoraConfig, inject_adapter_in_model

    as_conv1d = any(isinstance(module, Conv1D) for module in body.modules())
    wanted = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=layers, fan_in_fan_out=as_conv1d)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):  # peft draws from the generator that everybody shares
        torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(wanted, body)
    if isinstance(model, RewardModel):
        model.body.score.requires_grad_(True)
    return model


def has_adapters(model: PreTrainedModel | RewardModel) -> bool:
    return hasattr(_body(model), "peft_config")


def merged(model: M) -> M:
    """The model, in place, as a plain one again: what the adapters learnt is added to the weights, which are fp32 once more.

    A model without adapters stays as it is.
    """
    if not has_adapters(model):
        return model
    from peft.tuners.lora import LoraLayer

    body = _body(model)
    for name, layer in list(body.named_modules()):
        if isinstance(layer, nn.Linear) and hasattr(layer.weight, "quant_state"):
            body.set_submodule(name, _in_full(layer))
    for name, layer in list(body.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            body.set_submodule(name, layer.get_base_layer())
    del body.peft_config
    return model.requires_grad_(True)


@contextmanager
def adapters_off(policy: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Within it the policy is what it was before its adapters were trained: its own reference, without a copy."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in policy.modules() if isinstance(layer, LoraLayer)]
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield policy
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        policy.requires_grad_(False)  # it has made all adapters trainable, those of frozen layers too
        for parameter in trained:
            parameter.requires_grad_(True)


def reference_of(policy: PreTrainedModel) -> Reference:
    """The policy as it is now, for when it has been trained: without its adapters, or a copy that shares what is frozen."""
    if has_adapters(policy):
        return partial(adapters_off, policy)
    return partial(nullcontext, reference_sharing(policy))


def _body(model: PreTrainedModel | RewardModel) -> PreTrainedModel:
    """The transformer without its head."""
    return (model.body if isinstance(model, RewardModel) else model).base_model


def _chosen(body: PreTrainedModel, wanted: str | list[str]) -> list[str]:
    """Full names of the linear layers that get an adapter."""
    layers: dict[str, list[str]] = {}
    for name, module in body.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            layers.setdefault(name.rpartition(".")[2], []).append(name)
    names = list(layers) if wanted == "all-linear" else [wanted] if isinstance(wanted, str) else wanted
    unknown = [name for name in names if name not in layers]
    if unknown or not names:
        raise ConfigError(
            f"adapter.layers: the model has no linear layers called {', '.join(unknown) or '(an empty list)'}.",
            f"It has {', '.join(sorted(layers))}. Name some of them, or write all-linear.",
        )
    return [full for name in names for full in layers[name]]


def _in_four_bits(body: PreTrainedModel) -> None:
    """Quantise the body's linear layers, in place, to the four-bit NormalFloat of Dettmers et al. 2023 (QLoRA)."""
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise ConfigError(
            "adapter.base: 4bit needs bitsandbytes, which is not installed.",
            'Install it with pip install "prefline[4bit]", or set adapter.base to fp32.',
        ) from error
    linear = [(name, module) for name, module in body.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(
            f"adapter.base: 4bit is for models made of linear layers, and {body.config.model_type} is not.",
            "Set adapter.base to fp32, or choose another base model.",
        )
    for name, module in linear:
        small = Linear4bit(module.in_features, module.out_features, compute_dtype=torch.float32, device="meta")
        small.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", module=small).to(module.weight.device)
        small.bias = module.bias
        small.support_avx512bf16_for_cpu = False  # else sampling rearranges the weights for bf16, and training could not go on
        body.set_submodule(name, small)


def _in_full(small: Any) -> nn.Linear:
    """A layer of four bits in fp32."""
    from bitsandbytes.functional import dequantize_4bit

    weight = dequantize_4bit(small.weight.data, small.weight.quant_state).float()
    layer = nn.Linear(small.in_features, small.out_features, bias=small.bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    layer.bias = small.bias
    return layer
