"""Profiles: what is saved comes back, two processes lose nothing, and what cannot be used says why."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import types

import pytest

import gradmark
from gradmark import profiles
from gradmark.errors import ProfileError
from gradmark.profiles import Decision, Key, Point, Profile


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADMARK_CACHE_DIR", str(tmp_path))
    return tmp_path


def point(elements, leader="numba", **changes):
    usual = {
        "fastest": leader,
        "leaders": (leader,),
        "runner_up": "numpy",
        "ratio": 2.5,
        "low": 2.25,
        "high": 3.0,
        "numpy_ratio": 2.5,
        "seconds": {leader: 1e-5, "numpy": 2.5e-5},
    }
    return Point(elements=elements, **{**usual, **changes})


def decision(*points, operation="gelu", operation_pass="forward", dtype="float32", place="host", variant=""):
    return Decision(operation, variant, operation_pass, dtype, place, points)


def profile(*decisions, key=None):
    return Profile(Key.here() if key is None else key, "2026-01-01T00:00:00+00:00", decisions)


TIE = {"fastest": None, "leaders": ("torch", "numba"), "ratio": None, "low": None, "high": None, "numpy_ratio": None}


def test_what_is_saved_comes_back():
    saved = profile(
        decision(point(2**10), point(2**16, "torch", **TIE)),
        decision(point(2**16), operation="residual_add", operation_pass="backward", variant="relu"),
        decision(point(2**24, runner_up=None), place="host-to-device-and-back"),
    )
    path = profiles.save(saved)
    assert path.parent == profiles.folder()
    assert profiles.load() == profiles.load(Key.here()) == profiles.read(path) == saved
    assert profiles.stale() == []
    assert json.loads(path.read_text())["schema"] == profiles.SCHEMA


def test_nothing_is_loaded_where_nothing_is():
    assert profiles.load() is None
    assert profiles.stale() == []


def test_the_folder(cache, monkeypatch):
    assert profiles.folder() == cache / "profiles"
    monkeypatch.delenv("GRADMARK_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache / "elsewhere"))
    assert profiles.folder() == cache / "elsewhere" / "gradmark" / "profiles"


def test_mappings_of_any_kind_are_saved():
    seconds = types.MappingProxyType({"numba": 1e-5})
    key = dataclasses.replace(Key.here(), versions=types.MappingProxyType(dict(Key.here().versions)))
    profiles.save(profile(decision(point(8, seconds=seconds)), key=key))
    assert profiles.load().decisions[0].points[0].seconds == {"numba": 1e-5}


def test_an_interval_without_a_bound_is_saved_without():
    profiles.save(profile(decision(point(8, high=float("inf"), ratio=float("nan")))))
    found = profiles.load().decisions[0].points[0]
    assert (found.ratio, found.low, found.high) == (None, 2.25, None)


def test_saving_merges():
    profiles.save(profile(decision(point(8), point(64)), decision(point(8), operation="relu")))
    profiles.save(profile(decision(point(16), point(64, "torch")), decision(point(8), dtype="float64")))
    gelu, relu, double = profiles.load().decisions
    assert [(p.elements, p.fastest) for p in gelu.points] == [(8, "numba"), (16, "numba"), (64, "torch")]
    assert relu.operation == "relu"
    assert double.dtype == "float64"


_SAVE = """
import sys
sys.path.insert(0, {tests!r})
from gradmark import profiles
import test_profiles as t
for size in range({first}, 40, 2):
    profiles.save(t.profile(t.decision(t.point(1 + size)), t.decision(t.point(8), operation=f"op{{size}}")))
"""


def test_two_processes_that_save_at_once_lose_nothing():
    tests = os.path.dirname(__file__)  # noqa: PTH120
    running = [subprocess.Popen([sys.executable, "-c", _SAVE.format(tests=tests, first=first)]) for first in (0, 1)]
    assert [process.wait(120) for process in running] == [0, 0]
    found = profiles.load()
    assert [p.elements for p in found.decisions[0].points] == list(range(1, 41))
    assert {d.operation for d in found.decisions} == {"gelu", *(f"op{size}" for size in range(40))}
    assert not list(profiles.folder().glob("*.tmp"))


DAMAGED = {
    "corrupt, no JSON": "{",
    "is no profile": '{"schema": 1}',
    "is no profile:": "[1, 2]",
    "cannot be read": b"\xff\xfe\x00",
    "damaged: 'key' is missing": '{"kind": "gradmark profile", "schema": 1}',
    "damaged: schema is 'one', expected 1": '{"kind": "gradmark profile", "schema": "one"}',
    "NaN is no number": '{"kind": NaN}',
    "newer gradmark .schema 99, this one reads 1": '{"kind": "gradmark profile", "schema": 99}',
}


@pytest.mark.parametrize("message", DAMAGED)
def test_files_that_cannot_be_used_say_why(message):
    content = DAMAGED[message]
    path = profiles.path_of(Key.here())
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for call in (profiles.load, lambda: profiles.read(path)):
        with pytest.raises(ProfileError, match=message) as raised:
            call()
        assert str(path) in str(raised.value)
    ((listed, why),) = profiles.stale()
    assert listed == path
    assert str(path) in why


def fields(content, trail=()):
    """The way to every field of a profile's content."""
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*trail, name)
        if isinstance(value, dict | list):
            yield from fields(value, (*trail, name))


def test_every_field_is_checked():
    path = profiles.save(profile(decision(point(8)), decision(point(8), operation="relu", variant="b")))
    text = path.read_text()
    for trail in fields(json.loads(text)):
        content = json.loads(text)
        place = content
        for name in trail[:-1]:
            place = place[name]
        place[trail[-1]] = {"wrong": True}
        path.write_text(json.dumps(content))
        with pytest.raises(ProfileError):
            profiles.read(path)


def test_a_corrupt_file_is_put_aside():
    path = profiles.path_of(Key.here())
    path.parent.mkdir()
    path.write_text("{")
    profiles.save(profile(decision(point(8))))
    assert profiles.load() == profile(decision(point(8)))
    assert path.with_name(f"{path.name}.corrupt").read_text() == "{"


def test_a_newer_file_is_not_overwritten():
    path = profiles.path_of(Key.here())
    path.parent.mkdir()
    path.write_text('{"kind": "gradmark profile", "schema": 99}')
    with pytest.raises(ProfileError, match="newer gradmark"):
        profiles.save(profile(decision(point(8))))
    assert json.loads(path.read_text())["schema"] == 99


def test_a_file_of_another_machine_under_this_ones_name():
    other = dataclasses.replace(Key.here(), cpu="abacus", gpu="slide rule")
    profiles.save(profile(decision(point(8)), key=other)).rename(profiles.path_of(Key.here()))
    with pytest.raises(ProfileError, match=r"of another machine .*GPU slide rule .here none.*processor abacus"):
        profiles.load()


def test_stale_profiles_are_said():
    here = Key.here()
    others = {
        "numba 0.1": dataclasses.replace(here, versions={**here.versions, "numba": "0.1"}),
        f"(here {here.versions['torch'] or 'none'})": dataclasses.replace(
            here, versions={**here.versions, "torch": None if here.versions["torch"] else "1"}
        ),
        "1000 threads (here ": Key.here(threads=1000),
        "GPU slide rule": dataclasses.replace(here, gpu="slide rule"),
    }
    for key in others.values():
        profiles.save(profile(decision(point(8)), key=key))
    profiles.save(profile(decision(point(8)), key=dataclasses.replace(here, cpu="abacus")))
    assert profiles.load() is None
    profiles.save(profile(decision(point(8))))
    found = dict(profiles.stale())
    assert set(found) == {profiles.path_of(key) for key in others.values()}
    for message, key in others.items():
        assert message in found[profiles.path_of(key)]


@contextlib.contextmanager
def unprivileged():
    """As a user whom permissions stop: root may write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_read_only_folder_is_said(cache, monkeypatch):
    for folder in (cache.parent, cache):
        folder.chmod(0o755)
    profiles.save(profile(decision(point(8))))
    lock = profiles.folder() / ".lock"
    lock.chmod(0o444)
    profiles.folder().chmod(0o555)
    try:
        with (
            unprivileged(),
            pytest.raises(ProfileError, match=r"cannot be written to .*: Permission denied; set GRADM"),
        ):
            profiles.save(profile(decision(point(16))))
    finally:
        profiles.folder().chmod(0o755)
    assert [p.elements for p in profiles.load().decisions[0].points] == [8]
    monkeypatch.setenv("GRADMARK_CACHE_DIR", "/dev/null")
    with pytest.raises(ProfileError, match="Not a directory"):
        profiles.save(profile(decision(point(8))))


def test_a_save_that_fails_leaves_the_old_file(monkeypatch):
    profiles.save(profile(decision(point(8))))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(ProfileError, match="No space left on device"):
        profiles.save(profile(decision(point(16))))
    assert [p.elements for p in profiles.load().decisions[0].points] == [8]
    assert not list(profiles.folder().glob("*.tmp"))


def test_the_nearest_size_decides():
    known = profile(decision(point(2**10, "numpy"), point(2**16, "numba"), point(2**24, "torch", **TIE)))

    def fastest(elements):
        return known.backend("gelu", "forward", "float32", elements)

    assert [fastest(2**bits) for bits in (0, 10, 12, 14, 16, 19, 21, 24, 40)] == [
        *("numpy", "numpy", "numpy"),
        *("numba", "numba", "numba"),
        *("torch", "torch", "torch"),
    ]
    assert fastest(0) == "numpy"


def test_what_is_not_known_is_none():
    known = profile(decision(point(8)), decision(operation="relu"))
    assert known.backend("gelu", "forward", "float32", 8) == "numba"
    assert known.backend("gelu", "backward", "float32", 8) is None
    assert known.backend("gelu", "forward", "float64", 8) is None
    assert known.backend("gelu", "forward", "float32", 8, "device") is None
    assert known.backend("relu", "forward", "float32", 8) is None


def test_variants():
    known = profile(
        decision(point(8, "numpy"), operation="residual_add", variant="relu"),
        decision(point(8, "numba"), operation="residual_add", variant="gelu"),
    )
    assert known.backend("residual_add", "forward", "float32", 8, variant="relu") == "numpy"
    assert known.backend("residual_add", "forward", "float32", 8, variant="gelu") == "numba"
    assert known.backend("residual_add", "forward", "float32", 8) == "numba"


def test_the_ranking_of_a_point():
    measured = point(8, "torch", leaders=("torch", "numba"), seconds={"numpy": 3.0, "a": 2.0, "numba": 1.1, "torch": 1})
    assert measured.ranking == ("torch", "numba", "a", "numpy")


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="at least one leader"):
        point(8, leaders=())
    with pytest.raises(ValueError, match="elements must be >= 0"):
        point(-1)
    with pytest.raises(ValueError, match="place must be one of host, "):
        decision(place="moon")
    with pytest.raises(ValueError, match="in the order of elements"):
        decision(point(8), point(8))


def test_threads_of_the_key(monkeypatch):
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("gradmark.processor.usable_cores", lambda: 8)
    assert Key.here().threads == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "4,2")
    assert Key.here().threads == 4
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert Key.here().threads == 3
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1000")
    assert Key.here().threads == 8
    assert Key.here(threads=2).threads == 2


def test_the_key_names_the_versions():
    assert Key.here().versions["gradmark"] == gradmark.__version__
    assert list(Key.here().versions) == ["gradmark", "numpy", "numba", "torch"]
    assert hash(Key.here()) == hash(Key.here())


def test_importing_profiles_is_light():
    heavy = "('numpy', 'numba', 'torch', 'scipy', 'mpmath', 'rich')"
    code = (
        f"import sys; from gradmark import profiles; profiles.load(); print([m for m in {heavy} if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
