"""Copies from the device to the host that do not wait for later work on a GPU."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor


class Readback:
    """A small tensor on its way to the host.

    On a GPU the copy runs on another stream into pinned memory, so `read` waits for the values and not for the steps after them.

    Args:
        values: one-dimensional.
        work: a collective operation that still computes the values, from `torch.distributed`.
    """

    def __init__(self, values: Tensor, work: Any = None) -> None:
        self._values, self._work, self._event = values, work, None
        if values.is_cuda:
            side = side_stream(values.device)
            with on_side_stream(side, [values]):
                if work is not None:
                    work.wait()  # makes this stream wait, not the host
                self._values = values.to("cpu", non_blocking=True)
                self._event = side.record_event()

    def read(self) -> list[float]:
        """Wait for the values, and return them."""
        if self._event is not None:
            self._event.synchronize()
        elif self._work is not None:
            self._work.wait()
        return [float(value) for value in self._values.tolist()]


def on_side_stream(side: Any, used: list[Tensor]) -> Any:
    """Context in which work runs on `side`, after the present stream's work; the memory of `used` is kept until that work is done."""
    side.wait_stream(torch.cuda.current_stream(side.device))
    for tensor in used:
        tensor.record_stream(side)
    return torch.cuda.stream(side)


def copy_to_host(state: Any) -> tuple[Any, Any]:
    """Copy nested dictionaries, lists and tuples with tensors on a GPU to the host, while the GPU continues.

    Returns:
        The same structure with tensors on the host, and an event; the tensors are complete once the event is. The event is `None` if no
        tensor is on a GPU.
    """
    tensors: dict[int, Tensor] = {}
    _collect(state, tensors)
    if not tensors:
        return state, None
    copies = {key: tensor.detach().clone() for key, tensor in tensors.items()}  # the next step changes the tensors
    side = side_stream(next(iter(copies.values())).device)
    with on_side_stream(side, list(copies.values())):
        on_host = {key: copy.to("cpu", non_blocking=True) for key, copy in copies.items()}
        event = side.record_event()
    return _replaced(state, on_host), event


def _collect(state: Any, tensors: dict[int, Tensor]) -> None:
    if isinstance(state, Tensor) and state.is_cuda:
        tensors[id(state)] = state
    for value in state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ():
        _collect(value, tensors)


def _replaced(state: Any, found: dict[int, Tensor]) -> Any:
    if isinstance(state, Tensor):
        return found.get(id(state), state)
    if isinstance(state, dict):
        return {key: _replaced(value, found) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_replaced(value, found) for value in state)
    return state


@cache
def side_stream(device: torch.device) -> Any:
    """The stream for copies from a GPU to the host, one per device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
