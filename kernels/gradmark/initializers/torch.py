"""Initializers in PyTorch, computed on the device of the result. The contract is that of `initializers.public`."""

from __future__ import annotations

import math
from typing import Any

import torch

from gradmark.numerics import haar_torch, philox_torch
from gradmark.numerics.philox import stream_seed


def uniform(shape: tuple[int, ...], seed: int, dtype: Any, device: str, low: float, high: float) -> Any:
    """U(low, high)."""
    weights = torch.empty(shape, dtype=dtype, device=device)
    philox_torch.fill_uniform(weights.view(-1), 0, seed, low, high)
    return weights


def normal(shape: tuple[int, ...], seed: int, dtype: Any, device: str, mean: float, std: float) -> Any:
    """N(mean, std²)."""
    weights = torch.empty(shape, dtype=dtype, device=device)
    philox_torch.fill_normal(weights.view(-1), 0, seed, mean, std)
    return weights


def trunc_normal(
    shape: tuple[int, ...], seed: int, dtype: Any, device: str, mean: float, std: float, a: float, b: float
) -> Any:
    """N(mean, std²) within [a, b]."""
    weights = torch.empty(shape, dtype=dtype, device=device)
    philox_torch.fill_truncated_normal(weights.view(-1), 0, seed, mean, std, a, b)
    return weights


def orthogonal(shape: tuple[int, ...], seed: int, dtype: Any, device: str, gain: float, method: str) -> Any:
    """A Haar-distributed matrix (or its transpose) with orthonormal columns, times gain."""
    rows, columns = shape[0], math.prod(shape[1:])
    q = torch.empty((rows, columns), dtype=torch.promote_types(dtype, torch.float32), device=device)
    haar_torch.fill(q.T if rows < columns else q, method, gain, seed, philox_torch.fill_normal)
    return q.to(dtype).reshape(shape)


def delta_orthogonal(shape: tuple[int, ...], seed: int, dtype: Any, device: str, gain: float) -> Any:
    """An orthogonal matrix at the centre of the kernel, 0 elsewhere."""
    weights = torch.zeros(shape, dtype=dtype, device=device)
    centre: tuple[Any, ...] = tuple((length - 1) // 2 for length in shape[2:])
    weights[(slice(None), slice(None), *centre)] = orthogonal(shape[:2], seed, dtype, device, gain, "auto")
    return weights


def sparse(shape: tuple[int, ...], seed: int, dtype: Any, device: str, sparsity: float, std: float) -> Any:
    """N(0, std²), but 0 in each column where the keys are smallest."""
    weights = normal(shape, seed, dtype, device, 0.0, std)
    keys = uniform(shape, stream_seed(seed, "sparse"), torch.float64, device, 0.0, 1.0)
    # Of equal keys, the first row's is the smaller.
    order = torch.argsort(keys, dim=0, stable=True)
    return weights.scatter_(0, order[: math.ceil(sparsity * shape[0])], 0.0)


def constant(shape: tuple[int, ...], dtype: Any, device: str, value: float) -> Any:
    """The value everywhere."""
    return torch.full(shape, value, dtype=dtype, device=device)


def eye(shape: tuple[int, ...], dtype: Any, device: str, gain: float) -> Any:
    """`gain` on the main diagonal, 0 elsewhere."""
    weights = torch.zeros(shape, dtype=dtype, device=device)
    weights.fill_diagonal_(gain)
    return weights


def dirac(shape: tuple[int, ...], dtype: Any, device: str, groups: int) -> Any:
    """1 at the centre of the kernel from input d to output d of each group, 0 elsewhere."""
    weights = torch.zeros(shape, dtype=dtype, device=device)
    outputs = shape[0] // groups
    inputs = torch.arange(min(outputs, shape[1]), device=device)
    centre: tuple[Any, ...] = tuple(length // 2 for length in shape[2:])
    for group in range(groups):
        weights[(group * outputs + inputs, inputs, *centre)] = 1.0
    return weights
