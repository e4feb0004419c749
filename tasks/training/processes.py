"""The machine that a stage trains on: its device and precision, and the processes that share the work.

Every process holds all rows and works out the same order, so that none has to be told what to do: each takes its share
of a batch, and gradients are summed over all of them before a step. With one process every exchange is the identity.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from tasks.errors import EnvironmentRefused
from tasks.training.memory import keep_freed_memory
from tasks.training_config import ComputeConfig

IDLE_SECONDS = 0.2
"""How long to watch what the cores do."""

T = TypeVar("T")
State = dict[str, Any]
_SPREAD = StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)


class Processes:
    """This process and its siblings. rank: which of them it is. device: where its models are."""

    def __init__(self, config: ComputeConfig) -> None:
        if config.device == "cuda" and not torch.cuda.is_available():
            raise EnvironmentRefused("compute.device: cuda, but torch sees no GPU here.", "Set compute.device to auto or cpu.")
        keep_freed_memory()
        AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())  # another stage may have wanted another precision
        precision = "bf16" if config.precision == "bf16" else "no"
        cpu = config.device == "cpu" or (config.processes > 1 and not torch.cuda.is_available())  # accelerate would start one alone
        self._accelerator = Accelerator(cpu=cpu, mixed_precision=precision)
        if self._accelerator.num_processes != config.processes:
            raise EnvironmentRefused(
                f"compute.processes is {config.processes}, but {self._accelerator.num_processes} run.",
                "Start the stage with prefline: it starts the processes itself.",
            )
        self.sharded = config.sharding == "fsdp"

    @property
    def rank(self) -> int:
        return self._accelerator.process_index

    @property
    def count(self) -> int:
        return self._accelerator.num_processes

    @property
    def main(self) -> bool:
        """Is this the process that writes files and reports?"""
        return self._accelerator.is_main_process

    @property
    def device(self) -> torch.device:
        return self._accelerator.device

    def autocast(self) -> AbstractContextManager[None]:
        """Compute in the precision that was asked for; weights and sums stay in fp32."""
        return self._accelerator.autocast()

    # Sharing work ---------------------------------------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's share: every count-th item, so that rows sorted by length are dealt out evenly."""
        return list(items[self.rank :: self.count])

    def join(self, own: list[T]) -> list[T]:
        """All processes' shares in the order of the items that were shared."""
        if self.count == 1:
            return own
        shares = gather_object([own])
        return [shares[i % self.count][i // self.count] for i in range(sum(map(len, shares)))]

    def from_main(self, make: Callable[[], T]) -> T:
        """What make returns in the main process, in all of them."""
        found = [make() if self.main else None]
        if self.count > 1:
            broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]

    def agreed(self, opinion: bool) -> bool:
        """The main process's opinion, which all follow: clocks differ."""
        return self.from_main(lambda: opinion)

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count > 1:
            value = value.to(self.device)
            dist.all_reduce(value)
        return value

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every process's gradients the sum of all; a process that had no rows counts as zeros.

        One flat exchange rather than DistributedDataParallel: that wants every pass through one forward method, and PPO
        makes several different ones a step.
        """
        if self.count == 1 or self.sharded:  # fully_shard has summed them while going backward
            return
        trained = [p for p in parameters if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
        dist.all_reduce(flat)
        for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)

    def clip(self, model: nn.Module, norm: float) -> float:
        """Scale the gradients down to a norm, and return the norm they had."""
        found = nn.utils.clip_grad_norm_(model.parameters(), norm)
        return float(found.full_tensor() if isinstance(found, DTensor) else found)

    # Weights --------------------------------------------------------------------------------------------------------

    def place(self, model: nn.Module) -> None:
        """Move a model to this process's device; with sharding, keep a part of each of its layers only."""
        model.to(self.device)
        if not self.sharded:
            return
        from torch.distributed.fsdp import fully_shard

        self._plain = copy.deepcopy(model).cpu()
        mesh = dist.device_mesh.init_device_mesh(self.device.type, (self.count,))
        for layer in layers_of(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    def plain(self, model: nn.Module) -> nn.Module:
        """The model as one that anybody can call and save; with sharding a copy that is whole in the main process only."""
        if not self.sharded:
            return model
        self._plain.load_state_dict(self.weights(model), strict=False)
        return self._plain

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """A copy of the trained weights, whole. All processes must ask together; with sharding the main one gets them."""
        if self.sharded:
            return dict(get_model_state_dict(model, options=_WHOLE))  # type: ignore[arg-type]
        return {name: value.clone() for name, value in trained_weights(model).items()}

    def load(self, model: nn.Module, weights: dict[str, Tensor]) -> None:
        """Put back what `weights` gave."""
        if self.sharded:
            set_model_state_dict(model, dict(weights), options=_SPREAD)
        else:
            model.load_state_dict(weights, strict=False)

    def state(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
        """The trained weights and the optimiser, whole, as a checkpoint keeps them. All processes must ask together."""
        if self.sharded:
            return {"model": self.weights(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=_WHOLE)}
        return {"model": trained_weights(model), "optimizer": optimizer.state_dict()}

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, saved: State) -> None:
        self.load(model, saved["model"])
        if self.sharded:
            set_optimizer_state_dict(model, optimizer, saved["optimizer"], options=_SPREAD)
        else:
            optimizer.load_state_dict(saved["optimizer"])


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """What training changes; the rest of a model with adapters or frozen layers stays as it was loaded."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer: the longest list of modules in it."""
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def use_threads(wanted: int) -> int:
    """Set and return the threads of torch: as many as wanted, or for 0 as many as there are idle cores just now.

    Two threads on two cores of which one is busy are ten times slower than one: threads of a step wait for one another.
    OMP_NUM_THREADS, where it is set, is what 0 stands for.
    """
    if wanted == 0 and "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    if wanted:
        torch.set_num_threads(wanted)
        return wanted
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    idle = round(cores * (1 - psutil.cpu_percent(interval=IDLE_SECONDS) / 100))
    torch.set_num_threads(max(1, idle))
    return torch.get_num_threads()
