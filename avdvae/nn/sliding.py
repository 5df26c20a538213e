"""Convolutions along time of each channel by itself, channels last.

One tap of the kernel after another, in parts of a sound that a cache holds: on a CPU several times faster than torch's
own, above all the way back.

    t   steps of the slower side, T of the faster one      K   taps of the kernel
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Sliding(torch.autograd.Function):
    """y_t = bias + sum_k weight_k x_{t stride + k}"""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, weight_KC: Tensor, bias_C: Tensor, stride: int) -> Float[Tensor, "B t C"]:
        ctx.save_for_backward(x_BTC, weight_KC)
        ctx.stride = stride
        return _gathered(x_BTC, weight_KC, bias_C, stride, (x_BTC.shape[1] - len(weight_KC)) // stride + 1)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (slope_BtC,), (x_BTC, weight_KC) = slopes, ctx.saved_tensors
        slope_x_BTC = _scattered(slope_BtC, weight_KC, torch.zeros_like(weight_KC[0]), ctx.stride, x_BTC.shape[1])
        return slope_x_BTC, _products(x_BTC, slope_BtC, weight_KC, ctx.stride), slope_BtC.sum((0, 1)), None


class SlidingBack(torch.autograd.Function):
    """The same turned round, from slow to fast: y_{t stride + k} gets weight_k x_t; there are T stride of them."""

    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, weight_KC: Tensor, bias_C: Tensor, stride: int) -> Float[Tensor, "B t C"]:
        ctx.save_for_backward(x_BTC, weight_KC)
        ctx.stride = stride
        return _scattered(x_BTC, weight_KC, bias_C, stride, x_BTC.shape[1] * stride)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (slope_BtC,), (x_BTC, weight_KC) = slopes, ctx.saved_tensors
        slope_x_BTC = _gathered(slope_BtC, weight_KC, torch.zeros_like(weight_KC[0]), ctx.stride, x_BTC.shape[1])
        return slope_x_BTC, _products(slope_BtC, x_BTC, weight_KC, ctx.stride), slope_BtC.sum((0, 1)), None


def _gathered(fast_BTC: Tensor, weight_KC: Tensor, bias_C: Tensor, stride: int, steps: int) -> Float[Tensor, "B t C"]:
    slow_BtC = fast_BTC.new_empty(len(fast_BTC), steps, fast_BTC.shape[2])
    for k, slow, fast in _taps(slow_BtC, fast_BTC, len(weight_KC), stride):
        torch.addcmul(slow if k else bias_C, fast, weight_KC[k], out=slow)
    return slow_BtC


def _scattered(slow_BtC: Tensor, weight_KC: Tensor, bias_C: Tensor, stride: int, steps: int) -> Float[Tensor, "B T C"]:
    fast_BTC = bias_C.repeat(len(slow_BtC), steps, 1)
    for k, slow, fast in _taps(slow_BtC, fast_BTC, len(weight_KC), stride):
        fast.addcmul_(slow, weight_KC[k])
    return fast_BTC


def _products(fast_BTC: Tensor, slow_BtC: Tensor, weight_KC: Tensor, stride: int) -> Float[Tensor, "K C"]:
    total_KC = torch.zeros_like(weight_KC)
    for k, slow, fast in _taps(slow_BtC, fast_BTC, len(weight_KC), stride):
        total_KC[k] += (fast * slow).sum((0, 1))
    return total_KC


def _taps(slow_BtC: Tensor, fast_BTC: Tensor, count: int, stride: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """k, and what of both meets at it."""
    for k in range(count):
        fast = fast_BTC[:, k::stride]
        steps = min(slow_BtC.shape[1], fast.shape[1])
        yield k, slow_BtC[:, :steps], fast[:, :steps]
