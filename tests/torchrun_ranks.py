"""What test_nn_sharded.py has torchrun start: torchrun ... torchrun_ranks.py FILE. Rank 0 writes the whole weights."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from gradmark.nn import init
from sharded_models import RECIPE, SEED, Model, data_parallel

LARGE, TALL = (301, 450), (301, 20)


def main(file):
    # Who this is, and where the others are, torchrun says in the environment.
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    model = Model()
    data_parallel(model, mesh)
    init.initialize_(model, RECIPE, SEED)
    weights = {
        "world": dist.get_world_size(),
        "normal": init.normal_(nan(LARGE, mesh), seed=SEED).full_tensor(),
        "model": {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()},
        **{method: orthogonal(nan(TALL, mesh), method).full_tensor() for method in ("householder", "qr")},
    }
    if dist.get_rank() == 0:
        torch.save(weights, file)
    dist.barrier()
    dist.destroy_process_group()


def nan(shape, mesh):
    return distribute_tensor(torch.full(shape, torch.nan), mesh, [Shard(0)], src_data_rank=None)


def orthogonal(tensor, method):
    return init.orthogonal_(tensor, method=method, seed=SEED)


if __name__ == "__main__":
    main(sys.argv[1])
