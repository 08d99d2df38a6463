"""A model to shard, how its weights are made, and ways to shard it."""

from __future__ import annotations

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

SEED = 20260103


class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = torch.nn.LayerNorm(width)
        self.query = torch.nn.Linear(width, width, bias=False)
        self.output = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, 2 * width)
        self.down = torch.nn.Linear(2 * width, width, bias=False)


class Model(torch.nn.Module):
    """The parameters of a transformer; nobody runs it."""

    def __init__(self, width=16, layers=2):
        super().__init__()
        self.embedding = torch.nn.Embedding(40, width)
        self.layers = torch.nn.ModuleDict({str(i): Block(width) for i in range(layers)})
        self.patches = torch.nn.Conv2d(3, width, 3)
        self.head = torch.nn.Linear(width, 40, bias=False)


RECIPE = {
    "*norm.weight": ("constant", {"val": 1.0}),
    "*.bias": "zeros",
    torch.nn.Embedding: {"weight": ("normal", {"std": 0.02})},
    "*.output.weight": "lecun_truncated_normal",
    torch.nn.Linear: {"weight": ("xavier_uniform", {"gain": 0.5})},
    torch.nn.Conv2d: {"weight": "he_normal"},
}


def tensor_parallel(model, mesh):
    for block in model.layers.values():
        plan = {"query": ColwiseParallel(), "output": RowwiseParallel(), "up": ColwiseParallel()}
        parallelize_module(block, mesh, {**plan, "down": RowwiseParallel()})
    parallelize_module(model, mesh, {"head": ColwiseParallel()})


def data_parallel(model, mesh):
    for block in model.layers.values():
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
