"""What test_nn_sharded.py runs on the ranks of process groups: python sharded_ranks.py FOLDER.

Rank 0 of a group of N writes FOLDER/results-N.pt: of each case the whole weight, put together by PyTorch, and the
messages of errors. Every rank compares its own part with what PyTorch's rule cuts out of the weight of one process.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import math
import os
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.placement_types import _StridedShard

from gradmark import catalog
from gradmark.nn import _messages, _tsqr, init
from sharded_models import RECIPE, SEED, Model, data_parallel, tensor_parallel

STRIDED = "strided"
"""Shard(0) of what the second dimension of the mesh has sharded already, as FSDP2 does beside tensor parallelism."""

MATRIX, LARGE, CONVOLUTION, FEW_ROWS, VECTOR = (37, 22), (301, 450), (6, 5, 3, 7), (3, 7), (17,)

ONE_DIMENSION = [
    ("he_normal", MATRIX, "float32", (Shard(0),)),
    ("he_normal", MATRIX, "float32", (Shard(1),)),
    ("he_normal", MATRIX, "float32", (Replicate(),)),
    ("he_normal", FEW_ROWS, "float32", (Shard(0),)),
    ("normal", VECTOR, "float32", (Shard(0),)),
    *(("xavier_uniform", CONVOLUTION, "float32", (Shard(d),)) for d in range(4)),
    *((name, LARGE, dtype, (Shard(1),)) for name in ("normal", "uniform") for dtype in ("bfloat16", "float64")),
    ("trunc_normal", LARGE, "bfloat16", (Shard(0),)),
    ("constant", MATRIX, "float32", (Shard(0),)),
    ("eye", MATRIX, "float32", (Shard(0),)),
    ("eye", MATRIX, "float32", (Shard(1),)),
    ("orthogonal", MATRIX, "float32", (Replicate(),)),
]
TWO_DIMENSIONS = [
    ("he_normal", MATRIX, "float32", (Shard(0), Shard(1))),
    ("he_normal", MATRIX, "float32", (Shard(1), Shard(0))),
    ("he_normal", MATRIX, "float32", (Shard(0), Replicate())),
    ("he_normal", MATRIX, "bfloat16", (Replicate(), Shard(1))),
    ("he_normal", MATRIX, "float32", (Shard(0), Shard(0))),
    ("he_normal", LARGE, "float32", (Shard(1), Shard(1))),
    ("he_normal", FEW_ROWS, "float32", (Shard(0), Shard(0))),
    ("he_uniform", CONVOLUTION, "float32", (Shard(3), Shard(1))),
    ("he_normal", (16, 12), "float32", (STRIDED, Shard(0))),
    ("he_normal", (37, 12), "float32", (STRIDED, Shard(0))),
    ("he_normal", (37, 12), "float32", (STRIDED, Shard(1))),
    ("eye", MATRIX, "float32", (Shard(0), Shard(1))),
    ("eye", (16, 12), "float32", (STRIDED, Shard(0))),
]
ORTHOGONAL = [(37, 22), (22, 37), (300, 300), FEW_ROWS, CONVOLUTION, (2, 40), (1, 1)]
BY_DIMENSIONS = {
    1: [(Shard(0),), (Shard(1),)],
    2: [(Shard(0), Shard(1)), (Shard(1), Shard(0)), (Shard(0), Shard(0)), (Shard(1), Replicate())],
}
"""Of meshes with one and two dimensions, the placements of orthogonal weights."""

TALL = [(301, 20), (20, 301), FEW_ROWS, CONVOLUTION, (40, 2, 3, 3)]
"""The longer side more than twice the shorter, as TSQR takes them. With 8 processes: fewer rows on one than columns."""

MESHES = {1: [(1,), (1, 1)], 2: [(2,)], 4: [(4,), (2, 2)], 8: [(8,), (2, 4)]}

ODD_WORLD = 6
"""Of processes that make weights by TSQR alone: a line of 6, and lines of 3."""


def cases(world, random_names):
    """(name of the initializer, shape, dtype, mesh, placements) of a world of this size."""
    for mesh in MESHES[world]:
        given = TWO_DIMENSIONS if len(mesh) == 2 else [*ONE_DIMENSION, *every_one(random_names)]
        yield from ((name, shape, dtype, mesh, placements) for name, shape, dtype, placements in given)


def every_one(random_names):
    return [(name, MATRIX, "float32", (Shard(1),)) for name in random_names]


def models(world):
    """Of each way to shard a model on these ranks: the mesh, and functions of a model and the mesh."""
    flat = init_device_mesh("cpu", (world,), mesh_dim_names=("all",))
    yield "fully_shard", lambda model: data_parallel(model, flat)
    yield "parallelize_module", lambda model: tensor_parallel(model, flat)
    if world >= 4:
        mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))

        def both(model):
            tensor_parallel(model, mesh["tensor"])
            data_parallel(model, mesh["data"])

        yield "both", both


def sharded(name, shape, dtype, mesh, placements):
    """The whole weight of a case, after the part of this rank was compared."""
    dtype = getattr(torch, dtype)
    required = (0.5,) if name == "constant" else ()
    function = getattr(init, f"{name}_")
    placements = [_StridedShard(0, split_factor=mesh[1]) if p == STRIDED else p for p in placements]
    mesh = init_device_mesh("cpu", mesh)
    one_process = function(torch.full(shape, torch.nan, dtype=dtype), *required, seed=SEED)
    own = distribute_tensor(one_process, mesh, placements, src_data_rank=None)
    tensor = distribute_tensor(torch.full(shape, torch.nan, dtype=dtype), mesh, placements, src_data_rank=None)
    versions = tensor._version, tensor.to_local()._version
    with CommDebugMode() as communication, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(tensor, *required, seed=SEED) is tensor
    assert communication.get_total_counts() == 0
    if tensor.to_local().numel():
        assert tensor._version > versions[0]
        assert tensor.to_local()._version > versions[1]
    assert torch.equal(tensor.to_local(), own.to_local()), (dist.get_rank(), name, shape, mesh, placements)
    return tensor.full_tensor()


def model_weights(shard):
    """The weights of a model by name: from the meta device, and after it was built with others."""
    results = []
    for device in ("meta", "cpu"):
        with torch.device(device):
            model = Model()
        shard(model)
        if device == "meta":
            model.to_empty(device="cpu")
        with CommDebugMode() as communication, warnings.catch_warnings():
            warnings.simplefilter("error")
            filled = init.initialize_(model, RECIPE, SEED)
        assert communication.get_total_counts() == 0
        weights = dict(model.named_parameters())
        assert list(filled) == list(weights)
        assert any(isinstance(p, DTensor) for p in weights.values())
        results.append(
            {n: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for n, p in weights.items()}
        )
    return results


def orthogonal_errors(world):
    """How far entries of sharded orthogonal weights are from those of one process, in eps, for each case."""
    errors = {}
    for shape in MESHES[world]:
        mesh = init_device_mesh("cpu", shape)
        for size in ORTHOGONAL:
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                one_process = init.orthogonal_(torch.empty(size, dtype=dtype), 2.0, seed=SEED)
                for placements in BY_DIMENSIONS[len(shape)]:
                    tensor = distribute_tensor(torch.full_like(one_process, torch.nan), mesh, placements)
                    init.orthogonal_(tensor, 2.0, seed=SEED)
                    errors[size, str(dtype), shape, str(placements)] = error_in_eps(tensor, one_process)
    return errors


def error_in_eps(tensor, one_process):
    """The largest difference of an entry of a DTensor from that of one process, on all ranks."""
    own = distribute_tensor(one_process, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
    # Of no elements, the norm is 0.
    difference = torch.cat([(tensor.to_local().double() - own.double()).flatten(), torch.zeros(1)])
    error = difference.abs().max() / torch.finfo(tensor.dtype).eps
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    return error.item()


def along_the_longer_side(size, mesh):
    """Placements on a mesh that leave the shorter side whole."""
    wide = size[0] < math.prod(size[1:])
    longer = [Shard(dimension) for dimension in range(1, len(size))] if wide else [Shard(0)]
    if mesh.ndim == 1:
        return [(shard,) for shard in longer]
    if mesh.ndim == 3:
        return [(longer[0], longer[-1], longer[0]), (longer[0], Replicate(), longer[-1])]
    strided = [] if wide else [(_StridedShard(0, split_factor=mesh.size(1)), Shard(0))]
    return [(longer[-1], longer[0]), (longer[0], Replicate()), (Replicate(), longer[-1]), *strided]


def tsqr(world):
    """Of weights by TSQR, for each case: the error in eps, the whole weight, and what this rank has `counted`."""
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    results = {}
    for (name, mesh), size, dtype in itertools.product(meshes_of_tsqr(world), TALL, dtypes):
        one_process = init.orthogonal_(torch.empty(size, dtype=dtype), 2.0, "qr", seed=SEED)
        for placements in along_the_longer_side(size, mesh):
            tensor = distribute_tensor(torch.full_like(one_process, torch.nan), mesh, placements, src_data_rank=None)
            with counted() as counts:
                assert init.orthogonal_(tensor, 2.0, "qr", seed=SEED) is tensor
            # PyTorch puts parts together in the order of a group's ranks.
            whole = None if name == "unordered" else tensor.full_tensor()
            results[name, size, str(dtype), str(placements)] = error_in_eps(tensor, one_process), whole, counts
    return results


def meshes_of_tsqr(world):
    """Names and meshes of which a tree may be wrong."""
    for shape in {ODD_WORLD: [(6,), (2, 3)], 8: [*MESHES[8], (2, 2, 2)]}.get(world) or MESHES[world]:
        yield str(shape), init_device_mesh("cpu", shape)
    if world == 4:
        # In the group of a row, ranks are in another order than in the row.
        yield "unordered", DeviceMesh("cpu", [[0, 3], [2, 1]])
    if world == 8:
        yield "a row", init_device_mesh("cpu", (2, 4), mesh_dim_names=("data", "tensor"))["tensor"]


@contextlib.contextmanager
def counted():
    """Numbers of elements, in lists by name: of what is sent, received and factorized meanwhile; no sum is allowed."""
    counts = {"isend": [], "irecv": [], "qr": []}

    def counting(name, function):
        def call(tensor, *arguments, **keywords):
            counts[name].append(tensor.numel())
            return function(tensor, *arguments, **keywords)

        return call

    with contextlib.ExitStack() as stack:
        for module, name in ((dist, "isend"), (dist, "irecv"), (torch.linalg, "qr")):
            stack.enter_context(mock.patch.object(module, name, counting(name, getattr(module, name))))
        collective = stack.enter_context(CommDebugMode())
        yield counts
        assert collective.get_total_counts() == 0


def transposed(world):
    """How far, in eps, weights are from those of one process whose local tensors are in the order of columns."""
    mesh = init_device_mesh("cpu", (world,))
    errors = {}
    for method, size in itertools.product(("householder", "qr"), [(64, 12), (12, 64)]):
        placement = Shard(0 if size[0] > size[1] else 1)
        local = distribute_tensor(torch.zeros(size), mesh, [placement], src_data_rank=None).to_local()
        local = local.T.contiguous().T
        tensor = DTensor.from_local(local, mesh, [placement], run_check=False)
        init.orthogonal_(tensor, 2.0, method, seed=SEED)
        errors[method, size] = error_in_eps(tensor, init.orthogonal_(torch.empty(size), 2.0, method, seed=SEED))
    return errors


def one_fails(folder, how, method, number):
    """A rank of three, of which the last fails, while the others make an orthogonal weight."""
    name = f"{how}-{method}"
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{name}", world_size=3, rank=number)
    mesh = init_device_mesh("cpu", (3,))
    tensor = distribute_tensor(torch.zeros(60, 20), mesh, [Shard(0)], src_data_rank=None)
    dist.barrier()
    if number == 2:
        fail(how)
    _messages.TIMEOUT = datetime.timedelta(seconds=2)
    try:
        init.orthogonal_(tensor, method=method, seed=SEED)
    except RuntimeError as error:
        (Path(folder) / f"{name}-{number}.txt").write_text(str(error))
    # A process group that has failed can only be left.
    os._exit(0)


def fail(how):
    """Die or hang; or die later, when R's have met and this rank has to send."""
    if how == "dies":
        os._exit(0)
    if how == "hangs":
        time.sleep(60)
    _tsqr.send = lambda *arguments: os._exit(0)


def refused(world):
    """Of each bad call, the type and the message of its error on the last rank."""
    mesh, first_rank = init_device_mesh("cpu", (world,)), DeviceMesh("cpu", [0])
    last_mesh = init_device_mesh("cpu", MESHES[world][-1])
    nan = torch.full((6, 4), torch.nan)
    by_qr = functools.partial(init.orthogonal_, method="qr")
    calls = {
        "partial": (DTensor.from_local(nan.clone(), mesh, [Partial()]), init.normal_),
        "whole matrices": (
            distribute_tensor(nan, mesh, [Shard(0)], src_data_rank=None),
            functools.partial(init.orthogonal_, method="polar"),
        ),
        "too square": (distribute_tensor(nan, mesh, [Shard(0)], src_data_rank=None), by_qr),
        "the shorter side": (
            distribute_tensor(nan.view(2, 12), last_mesh, [Shard(1), Shard(0)][-last_mesh.ndim :], src_data_rank=None),
            by_qr,
        ),
        # On the last of two processes only: the first holds all that there is, in one piece.
        "gaps on one": (
            distribute_tensor(torch.full((2, 6, 1), torch.nan), mesh, [Shard(2)], src_data_rank=None),
            init.orthogonal_,
        ),
        "gaps": (distribute_tensor(nan.view(2, 2, 6), mesh, [Shard(2)], src_data_rank=None), init.orthogonal_),
        "not by the rule": (
            DTensor.from_local(nan.clone(), mesh, [Shard(0)], run_check=False, shape=(100, 4), stride=(4, 1)),
            init.normal_,
        ),
        "not in the mesh": (
            distribute_tensor(nan, first_rank, [Shard(0)], src_data_rank=None),
            init.normal_,
        ),
    }
    messages = {}
    for name, (tensor, function) in calls.items():
        try:
            function(tensor, seed=0)
        except ValueError as error:
            messages[name] = str(error)
        assert tensor.to_local().isnan().all() or name not in messages
    return messages


def rank(folder, world, number):
    """All cases on one rank of a group."""
    # A forked process has torch and Numba loaded: to import them for each rank took longer than all cases.
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", world_size=world, rank=number)
    results = {"tsqr": of_all_ranks(tsqr(world)), **(all_but_tsqr(world) if world in MESHES else {})}
    if number == 0:
        torch.save(results, Path(folder) / f"results-{world}.pt")
    dist.barrier()
    dist.destroy_process_group()


def all_but_tsqr(world):
    random_names = [row.name for row in catalog.INITIALIZERS if row.distribution in ("uniform", "normal", "truncated")]
    return {
        "weights": [sharded(*case) for case in cases(world, random_names)],
        "orthogonal": orthogonal_errors(world),
        "transposed": transposed(world),
        "models": {name: model_weights(shard) for name, shard in models(world)},
        "messages": of_all_ranks(refused(world)),
    }


def of_all_ranks(result):
    results = [None] * dist.get_world_size()
    dist.all_gather_object(results, result)
    return results


def main(folder):
    context = torch.multiprocessing.get_context("fork")
    for world in [*MESHES, ODD_WORLD]:
        ranks = [context.Process(target=rank, args=(folder, world, number)) for number in range(world)]
        for process in ranks:
            process.start()
        # The others wait for one that has failed.
        while any(process.is_alive() for process in ranks) and not any(process.exitcode for process in ranks):
            time.sleep(0.01)
        failed = any(process.exitcode for process in ranks)
        for process in ranks:
            process.terminate()
            process.join()
        if failed:
            sys.exit(f"a rank of {world} has failed")


FAILURES = [
    ("dies", "householder"),
    ("hangs", "householder"),
    ("dies", "qr"),
    ("hangs", "qr"),
    ("dies later", "qr"),
]


def failures(folder):
    """What the ranks say of one that fails: FOLDER/dies-qr-0.txt and so on."""
    context = torch.multiprocessing.get_context("fork")
    for how, method in FAILURES:
        ranks = [context.Process(target=one_fails, args=(folder, how, method, number)) for number in range(3)]
        for process in ranks:
            process.start()
        for process in ranks[:2]:
            process.join(30)
        for process in ranks:
            process.kill()
            process.join()


if __name__ == "__main__":
    main(sys.argv[1])
    failures(sys.argv[1])
