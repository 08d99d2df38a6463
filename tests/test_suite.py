"""The asv suite: complete, labelled by the working tree, versioned by the catalog, timed in bursts."""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import asv.config
import pytest
from asv.benchmarks import Benchmarks
from packaging.requirements import Requirement

from gradmark import catalog

ROOT = Path(__file__).resolve().parent.parent

_SPEC = importlib.util.spec_from_file_location("asv_selection", ROOT / "benchmarks" / "asv_selection.py")
asv_selection = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(asv_selection)

_PRELUDE = """
import json, os, sys
from asv_runner._aux import update_sys_path
from asv_runner.discovery import disc_benchmarks, get_benchmark_from_name
ROOT = {root!r}
BENCHMARKS = os.path.join(ROOT, "benchmarks")
update_sys_path(BENCHMARKS)
"""


def _in_fresh_process(script, cwd, check=True, installed=None):
    """What `script` prints as JSON, run the way asv runs the suite: another folder, only asv_runner's importer."""
    first = "" if installed is None else f"import sys; sys.path.insert(0, {str(installed)!r})\n"
    source = first + _PRELUDE.format(root=str(ROOT)) + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", source], cwd=cwd, capture_output=True, text=True, timeout=120)
    if not check:
        return done
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


_DISCOVER = """
found = {}
for b in disc_benchmarks(BENCHMARKS):
    assert b.name not in found, b.name
    found[b.name] = {"version": b.version, "type": b.type, "params": b.params, "hooks": len(b._setups), "unit": b.unit}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def discovered(tmp_path_factory):
    return _in_fresh_process(_DISCOVER, tmp_path_factory.mktemp("discovery"))


def test_every_pass_of_every_operation_is_timed_under_a_stable_name(discovered):
    for row in catalog.OPERATIONS.values():
        for operation_pass in ("forward",) if row.family == "initializers" else catalog.PASSES:
            name = "".join(map(str.capitalize, row.name.split("_")))
            pattern = rf"{row.family}\.{name}(Relu|Gelu|Training)?\.time_{operation_pass}$"
            assert [n for n in discovered if re.match(pattern, n)], f"{row.name} {operation_pass}"


def test_versions_are_those_of_the_catalog_or_written_down(discovered):
    # asv's own are SHA-256 of the source: an edit of a comment would end every history.
    versions = {name: b["version"] for name, b in discovered.items()}
    assert {name: v for name, v in versions.items() if not re.fullmatch(r"\d+", v)} == {}
    assert versions["activations.Gelu.time_forward"] == str(catalog.operation("gelu").version)


def test_no_benchmark_has_a_setup_hook(discovered):
    # With one, asv_runner would time single calls.
    assert {name for name, b in discovered.items() if b["hooks"]} == set()


def test_activations_compare_every_target_in_cache_and_in_memory(discovered):
    targets = ["'numpy'", "'numba'", "'torch'", "'torch-cuda'"]
    assert discovered["activations.Gelu.time_backward"]["params"] == [targets, ["'cache'", "'memory'"]]
    assert discovered["activations.Gelu.track_bandwidth_forward"]["unit"] == "copy"


def _selected(discovered, regex):
    """The combinations that asv runs for these regular expressions: (benchmark, target or "", size or "")."""
    found = [{"name": name, **facts} for name, facts in discovered.items()]
    benchmarks = Benchmarks(asv.config.Config(), found, regex=regex)
    for name in benchmarks:
        combinations = list(itertools.product(*discovered[name]["params"]))
        chosen = benchmarks.benchmark_selection[name] or range(len(combinations))
        yield from ((name, combinations[i]) for i in chosen)


def test_the_default_selection_has_every_pass_of_every_operation_in_every_backend(discovered):
    everything = set(_selected(discovered, None))
    default = set(_selected(discovered, list(asv_selection.DEFAULT)))
    assert default < everything
    assert {(name, c[:1]) for name, c in default if ".time_" in name} == {
        (name, c[:1]) for name, c in everything if ".time_" in name and not name.startswith("large_matrices.")
    }
    left_out = everything - default
    assert {name.split(".")[0] for name, _ in left_out} <= {"activations", "gated", "rowwise", "large_matrices"}
    assert {c[-1] for name, c in left_out if ".time_" in name and not name.startswith("large_")} == {"'memory'"}
    for name in asv_selection.BEYOND_CACHE:
        assert not [n for n, _ in left_out if n.split(".")[1] == name]
        assert [n for n, c in default if n.split(".")[1] == name and c[-1] == "'memory'"], f"no benchmark {name}"


def test_of_large_matrices_one_random_fill_is_measured_by_default(discovered):
    default = [one for one in _selected(discovered, list(asv_selection.DEFAULT)) if one[0].startswith("large_")]
    targets = discovered["large_matrices.Normal.track_rate"]["params"][0]
    expected = itertools.product(("track_fill", "track_rate"), targets)
    assert default == [(f"large_matrices.Normal.{name}", (target, "'4096x4096'")) for name, target in expected]
    asked = {name for name, _ in _selected(discovered, ["large_matrices"])}
    assert asked == {name for name in discovered if name.startswith("large_matrices.")}


def test_large_matrices_are_measured_in_every_backend_under_stable_names(discovered):
    targets, squares = ["'numpy'", "'numba'", "'torch'", "'torch-cuda'"], ["'4096x4096'", "'8192x8192'"]
    rectangles = ["'4096x1024'", "'1024x4096'"]
    units = {"track_rate": "Gsamples/s", "track_fill": "fill"}
    expected = {
        f"{row}.{name}": (unit, [targets, squares])
        for row in ("Uniform", "Normal", "TruncNormal")
        for name, unit in units.items()
    }
    methods = dict.fromkeys(("qr", "householder", "polar"), squares + rectangles) | {"cholesky_qr2": rectangles}
    expected |= {f"Orthogonal.time_{name}": ("seconds", [targets, sizes]) for name, sizes in methods.items()}
    found = {name: (b["unit"], b["params"]) for name, b in discovered.items() if name.startswith("large_matrices.")}
    assert found == {f"large_matrices.{name}": facts for name, facts in expected.items()}
    words = [p.words for p in catalog.operation("orthogonal").parameters if p.name == "method"]
    assert set(methods) == set(words[0][1:])


def test_an_empty_selection_is_replaced_and_another_one_kept(monkeypatch):
    asked = []
    monkeypatch.setattr(Benchmarks, "discover", classmethod(lambda cls, conf, regex=None: asked.append(regex)))
    asv_selection.setup()
    asv_selection.setup()
    for regex in (None, [], ["Gelu"]):
        Benchmarks.discover("conf", regex=regex)
    assert asked == [list(asv_selection.DEFAULT), list(asv_selection.DEFAULT), ["Gelu"]]


def test_import_fails_and_names_an_operation_without_a_benchmark(tmp_path):
    script = """
        import benchmarks._worktree as tree
        import benchmarks.activations
        tree.catalog.OPERATIONS = {**tree.catalog.OPERATIONS, "novelty": tree.catalog.OPERATIONS["relu"]}
        import benchmarks.coverage
    """
    done = _in_fresh_process(script, tmp_path, check=False)
    assert done.returncode == 1
    assert "ImportError: no benchmark for: novelty forward, novelty backward" in done.stderr


def test_labels_come_from_the_working_tree_whatever_is_installed(discovered, tmp_path):
    # An older commit: a package without a catalog, without backends.
    old = tmp_path / "gradmark"
    old.mkdir()
    (old / "__init__.py").write_text("__version__ = '0.0.1'\n")
    assert _in_fresh_process(_DISCOVER, tmp_path, installed=tmp_path) == discovered


def _run(name, index, tmp_path, installed=None):
    script = f"""
        benchmark = get_benchmark_from_name(BENCHMARKS, "{name}-{index}")
        skipped = benchmark.do_setup()
        result = None if skipped else benchmark.do_run()
        print()
        print(json.dumps({{"skipped": skipped, "result": result}}))
    """
    return _in_fresh_process(script, tmp_path, check=False, installed=installed)


def test_an_operation_that_a_commit_lacks_is_skipped_with_the_reason(tmp_path):
    old = tmp_path / "gradmark"
    old.mkdir()
    (old / "__init__.py").write_text("__version__ = '0.0.1'\n")
    done = _run("activations.Gelu.time_forward", 0, tmp_path, installed=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["skipped"] is True
    assert "n/a: gradmark 0.0.1 has no backends yet" in done.stdout


def test_a_cuda_row_is_skipped_with_the_reason_where_there_is_no_cuda(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = _run("activations.Relu.time_forward", 6, tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["skipped"] is True
    assert re.search(r"n/a: .*CUDA", done.stdout)


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("large_matrices.Normal.track_rate", 2),
        ("large_matrices.Uniform.track_fill", 2),
        ("large_matrices.Orthogonal.time_cholesky_qr2", 2),
        ("large_matrices.Orthogonal.time_householder", 6),
    ],
)
def test_a_large_matrix_is_measured(name, index, tmp_path):
    """In Numba at 4096x4096, and orthogonal ones at 4096x1024."""
    done = _run(name, index, tmp_path)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["skipped"] is False
    assert min(outcome["result"]["samples"] if "time_" in name else [outcome["result"]]) > 0


def test_a_method_that_a_commit_lacks_is_skipped_with_the_reason(tmp_path):
    old = tmp_path / "gradmark"
    old.mkdir()
    (old / "__init__.py").write_text(
        "class Functions:\n"
        "    def orthogonal(self, shape, *, seed, dtype='float32', gain=1.0):\n"
        "        raise AssertionError('called')\n"
        "def backend(name, *, device='cpu'):\n"
        "    return Functions()\n"
    )
    done = _run("large_matrices.Orthogonal.time_polar", 0, tmp_path, installed=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["skipped"] is True
    assert "n/a: the installed gradmark's orthogonal takes no method yet" in done.stdout


def test_throughput_is_that_of_the_call(tmp_path):
    script = """
        import types
        from benchmarks import _bandwidth, large_matrices as large
        seconds = iter([9.0, 2.0, 4.0, 3.0, 4.0, 1.0, 4.0] + [2.0, 4.0] * 7)
        _bandwidth._seconds = lambda call: next(seconds)
        _bandwidth.clock = lambda: 0.0
        ready = types.SimpleNamespace(call=None, bytes_moved=4 * 8 * 10**9)
        large.prepared = lambda workload, target: ready
        rate = large.Normal().track_rate("numba", "4096x4096")
        large._fill = lambda size, target: None
        seconds = iter([9.0] + [2.0, 4.0] * 7)
        print(json.dumps([rate, large.Normal().track_fill("numba", "4096x4096")]))
    """
    assert _in_fresh_process(script, tmp_path) == [2.0, 0.5]


def test_the_yardstick_of_a_fill_fills(tmp_path):
    script = """
        import types
        import numpy as np
        from benchmarks import large_matrices as large
        kept = []
        ones = np.ones
        np.ones = lambda *arguments: kept.append(ones(*arguments)) or kept[-1]
        fill = large._fill(4 * 1001, types.SimpleNamespace(device="cpu"))
        kept[0][:] = 7
        fill()
        print(json.dumps([len(kept), kept[0].tolist()]))
    """
    assert _in_fresh_process(script, tmp_path) == [1, [1.0] * 1001]


@pytest.mark.alone
def test_a_kernel_of_microseconds_is_timed_in_bursts(tmp_path):
    done = _run("activations.Relu.time_forward", 0, tmp_path)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["skipped"] is False
    # 2¹⁶ elements take tens of microseconds: a burst of 10 ms holds hundreds of calls, a machine under load fewer.
    assert outcome["result"]["number"] >= 10
    assert all(0 < seconds < 0.01 for seconds in outcome["result"]["samples"])


def test_the_clock_waits_for_the_device_of_a_prepared_case(tmp_path):
    script = """
        import benchmarks._cases as cases
        waited = []
        before = cases.Timed().timer()
        cases._synchronize.add(lambda: waited.append(True))
        after = cases.Timed().timer()
        print(json.dumps([after >= before, len(waited)]))
    """
    assert _in_fresh_process(script, tmp_path) == [True, 1]


def test_a_benchmark_module_imports_neither_gradmark_nor_torch(tmp_path):
    # A process that asv spawns for one benchmark imports only that benchmark's module.
    script = """
        import benchmarks.activations
        print(json.dumps([name for name in ("gradmark", "torch", "numba") if name in sys.modules]))
    """
    assert _in_fresh_process(script, tmp_path) == []


def _pinned():
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def _matrix():
    requirements = asv.config.Config.load(str(ROOT / "asv.conf.json")).matrix["req"]
    return {name.removeprefix("pip+"): versions for name, versions in requirements.items()}


def test_the_environment_of_asv_has_the_versions_of_constraints_txt():
    pinned = _pinned()
    assert _matrix() == {name: [pinned[name]] for name in _matrix()}


def test_the_environment_of_asv_has_every_dependency_pinned():
    # The wheel is installed with --no-deps: what is missing here would be missing there.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = {Requirement(text).name for text in (*project["dependencies"], *extras["numba"], *extras["torch"])}
    assert needed - set(_matrix()) == set()


def test_machine_tells_which_size_lies_where():
    command = [sys.executable, "-m", "benchmarks.machine"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "cache: " in text
    assert "memory: " in text
    assert "an activation's backward: 192 MiB" in text
