"""Scratch projects for the tests of `gradmark check`: pure Python, measured in the Python that runs the tests.

Nothing here creates an environment. The lock and the scratch folders of these checks lie in folders of their own, so
that a test neither waits for a real check nor removes its files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from gradmark.tracking.check import decide, engine, error_rates, repository, rounds
from gradmark.tracking.check.state import Settings

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "tiny"
version = "1"
"""

PIP = "python -m pip wheel --no-deps --no-build-isolation --wheel-dir {build_cache_dir} {build_dir}"

ZIP = "python {conf_dir}/make_wheel.py {build_cache_dir} {build_dir}"
"""A build command in a tenth of pip's time, for tests whose subject is not the build."""

MAKE_WHEEL = """
import sys, zipfile
from pathlib import Path
target, tree = map(Path, sys.argv[1:])
files = {f"tiny/{file.name}": file.read_text() for file in sorted((tree / "tiny").glob("*.py"))}
files["tiny-1.dist-info/METADATA"] = "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1\\n"
files["tiny-1.dist-info/WHEEL"] = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
files["tiny-1.dist-info/RECORD"] = "".join(f"{name},,\\n" for name in [*files, "tiny-1.dist-info/RECORD"])
with zipfile.ZipFile(target / "tiny-1-py3-none-any.whl", "w") as wheel:
    for name, text in files.items():
        wheel.writestr(name, text)
"""


def conf(build=ZIP, **more):
    """The text of an asv.conf.json."""
    return json.dumps(
        {
            "version": 1,
            "project": "tiny",
            "repo": ".",
            "branches": ["main"],
            "environment_type": "virtualenv",
            "build_command": [build],
            "benchmark_dir": "benchmarks",
            **more,
        }
    )


def create(folder, *commits, build=ZIP):
    """A repository with one commit for each mapping of file to text (None removes it); gives the commits."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "-b", "main")
    first = {
        "pyproject.toml": PYPROJECT,
        "make_wheel.py": MAKE_WHEEL,
        "asv.conf.json": conf(build),
        "benchmarks/__init__.py": "",
    }
    made = []
    for files in ({**first, **commits[0]}, *commits[1:]):
        write(folder, files)
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--allow-empty", "-m", "a commit")
        made.append(git(folder, "rev-parse", "HEAD"))
    return made


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            path.unlink()
        else:
            path.write_text(dedent(text))


def git(folder, *arguments):
    identity = ["-c", "user.name=tiny", "-c", "user.email=tiny@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def state_of(folder):
    """All of a repository that a check must leave as it is."""
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and ".git" not in path.parts]
    return {
        "files": {str(path): path.read_bytes() for path in names},
        "index": (folder / ".git" / "index").read_bytes(),
        "HEAD": (folder / ".git" / "HEAD").read_text(),
        **{what: git(folder, *what.split()) for what in ("status --porcelain", "for-each-ref", "worktree list")},
        "stash": git(folder, "stash", "list"),
    }


class Silent:
    """A display that keeps what it was told."""

    def __init__(self, on_step=None):
        self.told = []
        self.steps = 0
        self._on_step = on_step

    def tell(self, text):
        self.told.append(text)

    def phase(self, name, total):
        self.told.append(name)

    def step(self, label):
        self.steps += 1
        if self._on_step is not None:
            self._on_step(self)


def run(folder, base="HEAD~1", head="HEAD", display=None, **settings):
    """A check in this process; gives report and state."""
    project = repository.find_project(folder)
    revisions = (repository.resolve(project, name) if isinstance(name, str) else name for name in (base, head))
    return engine.run(project, *revisions, Settings(env_spec="existing", **settings), display or Silent())


@contextmanager
def quick(screening=3, looks=(2,)):
    """Few rounds and short bursts, where the subject is not what can be told from them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (decide, error_rates):
            patch.setattr(module, "SCREEN_ROUNDS", screening)
            patch.setattr(module, "LOOKS", looks)
        patch.setattr(rounds, "BURST_SECONDS", 1e-3)
        patch.setattr(rounds, "QUADS", 1)
        yield


@contextmanager
def apart(folder):
    """Lock and scratch folders below `folder`, in this process and in those that it starts; gives the latter."""
    scratch = folder / "scratch"
    scratch.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("TMPDIR", str(scratch))
        patch.setattr(tempfile, "tempdir", str(scratch))
        yield scratch


def command(*arguments):
    """The command line of a check in a process of its own."""
    return [sys.executable, "-m", "gradmark.cli", "check", "-E", "existing", *map(str, arguments)]


def start(folder, *arguments, **more):
    """Start it in a process group of its own."""
    variables = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.Popen(
        command(*arguments), cwd=folder, env=variables, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True, **more,
    )  # fmt: skip


def processes_below(scratch):
    """Processes whose current folder lies in the scratch folders: workers and their children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            where = (folder / "cwd").readlink()
            zombie = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if str(where).startswith(str(scratch)) and not zombie:
            found.append(int(folder.name))
    return found
