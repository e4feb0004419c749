"""Keys and values of the texts that are being sampled, written into place.

transformers joins them anew with every token, and copies all rows that go on whenever one ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

ROOM = 8
"""Tokens: how much room a layer makes at least for those to come, each time it has none left; for a long text an eighth more."""


def cache_for(model: PreTrainedModel) -> DynamicCache:
    """An empty cache of the kinds of layers that the model has; only those of plain attention are ours."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):
    """keys, values: (rows, heads, tokens, size of a head), the filled part of tensors that hold more."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append (rows, heads, new, size of a head); returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            self._room: tuple[Tensor, ...] = (key_states, value_states)  # none to spare: a prompt is often copied for several answers first
            return self.keys, self.values
        begin = self.keys.shape[-2]
        end = begin + key_states.shape[-2]
        if end > self._room[0].shape[-2]:
            self._room = (_roomier(self.keys, end), _roomier(self.values, end))
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, begin:end] = new
        self.keys, self.values = (room[:, :, :end] for room in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on with these rows, in this order, (rows,), on the CPU. A row may come several times.

        Where there are no more rows than before, only those that change their place are copied.
        """
        if len(beam_idx) > len(self.keys):
            self._room = tuple(room[beam_idx.to(room.device)] for room in self._room)
        else:
            places = (beam_idx != torch.arange(len(beam_idx))).nonzero().squeeze(1)
            here, there = places.to(self.device), beam_idx[places].to(self.device)
            for room in self._room:
                room[here] = room[there]
            self._room = tuple(room[: len(beam_idx)] for room in self._room)
        length = self.keys.shape[-2]
        self.keys, self.values = (room[:, :, :length] for room in self._room)


def _roomier(filled: Tensor, length: int) -> Tensor:
    """A tensor of more than length tokens that begins with those filled."""
    room = filled.new_empty((*filled.shape[:2], length + max(ROOM, length // 8), filled.shape[3]))
    room[:, :, : filled.shape[2]] = filled
    return room
