"""Every workload on every backend: once at a small size in a plain run, timed with `pytest --benchmark-only`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import gradmark
from gradmark import catalog, workloads


def pytest_generate_tests(metafunc):
    if "workload" not in metafunc.fixturenames:
        return
    small = not metafunc.config.getoption("benchmark_only")
    found = [workload for row in catalog.OPERATIONS.values() for workload in workloads.of_row(row, small=small)]
    metafunc.parametrize("workload", found, ids=_name)


def _name(workload):
    operation = "_".join(filter(None, (workload.operation, workload.variant)))
    return f"{operation}-{workload.operation_pass}-{workload.size}"


@pytest.mark.parametrize("target_name", list(workloads.TARGETS))
def test_workload(benchmark, workload, target_name):
    try:
        namespace, target = workloads.open_target(gradmark, target_name)
        ready = workload.prepare(namespace, target)
    except workloads.UnavailableError as reason:
        pytest.skip(str(reason))
    benchmark.group = _name(workload)

    def run():
        result = ready.call()
        ready.synchronize()
        return result

    _check_finite(benchmark(run))
    assert ready.bytes_moved > 0


def _check_finite(result):
    for array in result if isinstance(result, list | tuple) else [result]:
        if isinstance(array, list | tuple):
            _check_finite(array)
        else:
            values = np.asarray(array.cpu() if hasattr(array, "cpu") else array)
            assert np.isfinite(values).all()


def test_activations_move_their_inputs_and_outputs_once():
    namespace, target = workloads.open_target(gradmark, "numpy")
    forward, backward = workloads.of_row(catalog.operation("relu"), small=True)
    assert forward.prepare(namespace, target).bytes_moved == 2 * 4 * 2**10
    assert backward.prepare(namespace, target).bytes_moved == 3 * 4 * 2**10


def test_out_is_allocated_beforehand():
    namespace, target = workloads.open_target(gradmark, "numpy")
    ready = workloads.of_row(catalog.operation("relu"), small=True)[0].prepare(namespace, target)
    assert ready.call() is ready.call()


def test_a_size_that_fits_the_cache_is_not_called_memory(monkeypatch):
    monkeypatch.setattr(workloads, "last_level_cache", lambda: 2**40)
    namespace, target = workloads.open_target(gradmark, "numpy")
    memory = [w for w in workloads.of_row(catalog.operation("relu")) if w.size == "memory"]
    with pytest.raises(workloads.UnavailableError, match="last-level cache"):
        memory[0].prepare(namespace, target)


def test_an_operation_that_the_installed_gradmark_lacks_is_unavailable():
    class Old:
        def __getattr__(self, name):
            raise AttributeError(f"no {name} in those days")

    workload = workloads.of_row(catalog.operation("relu"), small=True)[0]
    with pytest.raises(workloads.UnavailableError, match="no relu in those days"):
        workload.prepare(Old(), workloads.TARGETS["numpy"])


@pytest.mark.parametrize("method", ["qr", "householder", "cholesky_qr2", "polar"])
def test_the_variant_of_orthogonal_is_its_method(method):
    namespace, target = workloads.open_target(gradmark, "numpy")
    workload = workloads.Workload(operation="orthogonal", operation_pass="forward", size="12x5", variant=method)
    found = workload.prepare(namespace, target).call()
    np.testing.assert_array_equal(found, namespace.orthogonal((12, 5), seed=1, method=method))


def test_an_option_that_the_installed_gradmark_lacks_is_unavailable():
    class Old:
        def orthogonal(self, shape, *, seed, dtype="float32"):
            raise AssertionError("called")

    workload = workloads.Workload(operation="orthogonal", operation_pass="forward", size="12x5", variant="qr")
    with pytest.raises(workloads.UnavailableError, match="the installed gradmark's orthogonal takes no method yet"):
        workload.prepare(Old(), workloads.TARGETS["numpy"])


def test_an_unknown_target_lists_the_known_ones():
    with pytest.raises(LookupError, match="torch-cuda"):
        workloads.open_target(gradmark, "tpu")


def test_a_stabilizer_without_inputs_is_named():
    row = catalog.operation("batch_norm")
    values = {name: getattr(row, name) for name in row.__slots__ if name != "family"}
    with pytest.raises(LookupError, match="novelty"):
        workloads.of_row(catalog.Stabilizer(**{**values, "name": "novelty"}))


@pytest.mark.parametrize("row", catalog.OPERATIONS.values(), ids=lambda row: row.name)
def test_a_size_may_be_a_number_of_elements(row):
    for elements in (workloads.LEAST_ELEMENTS, 2**7, 1000):
        for workload in workloads.of_row(row, small=True):
            numbered = dataclasses.replace(workload, size=str(elements))
            assert 0.5 * elements <= numbered.elements <= elements
            namespace, target = workloads.open_target(gradmark, "numpy")
            numbered.prepare(namespace, target).call()


@pytest.mark.parametrize("row", catalog.ACTIVATIONS + catalog.GATED + catalog.ROWWISE, ids=lambda row: row.name)
def test_a_number_of_elements_means_what_the_name_of_a_size_means(row):
    for workload in workloads.of_row(row):
        named = dataclasses.replace(workload, size={"cache": str(2**16), "memory": str(2**24)}[workload.size])
        assert workloads._shape(workload) == workloads._shape(named)


def test_copies_from_the_host_and_back_are_part_of_the_call():
    """On a CPU they copy nothing; that they are asked for, of every tensor, shows on a device that counts."""
    torch = pytest.importorskip("torch")
    namespace, target = workloads.open_target(gradmark, "torch")
    for name in ("gelu", "prelu", "clip_grad_norm", "batch_norm"):
        for workload in workloads.of_row(catalog.operation(name), small=True):
            here = workload.prepare(namespace, target).call()
            there = workload.prepare_from_host(namespace, target).call()
            for a, b in zip(_flat(here), _flat(there), strict=True):
                assert torch.equal(a, b)


def test_what_is_copied_comes_back_to_the_host(monkeypatch):
    torch = pytest.importorskip("torch")
    asked = []
    to = torch.Tensor.to

    def counted(self, device, *more, **keywords):
        if isinstance(device, str):  # Kernels convert dtypes by the same method.
            asked.append((device, tuple(self.shape)))
        return to(self, "cpu", *more, **keywords)

    workload = workloads.Workload(operation="prelu", operation_pass="backward", size="64")
    namespace, _ = workloads.open_target(gradmark, "torch")
    monkeypatch.setattr(workloads, "_synchronizer", lambda target: lambda: None)
    prepared = workload.prepare_from_host(namespace, workloads.TARGETS["torch-cuda"])
    monkeypatch.setattr(torch.Tensor, "to", counted)
    prepared.call()
    assert asked == [("cuda", (8, 8)), ("cuda", (8, 8)), ("cuda", (1,)), ("cpu", (8, 8)), ("cpu", (1,))]


def _flat(value):
    return [one for part in value for one in _flat(part)] if isinstance(value, list | tuple) else [value]
