"""The study's material that is not ours: projects with an asv suite, from the package index's source distributions.

`pip download --no-deps --no-binary NAME NAME==VERSION` gets one; `create` makes a scratch repository of it. Nothing of
these projects is kept here: what makes the commit "slow" slower is our own code, added to the end of one module.
"""

from __future__ import annotations

import ast
import json
import shutil
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gradmark.tracking.check import study_project

ADDITIONS = study_project.TEMPLATES / "foreign"
"""The code that is added, by project."""

COMMON = {
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "packaging": "26.3",
    "pip+setuptools": "84.2.1",
    "pip+setuptools_scm": "10.3.4",
    "pip+asv_runner": "0.3.2",
    "pip+pympler": "1.1",
}
"""What every one of them needs to be built and to run; pandas brings what is not pinned."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A project whose source distribution holds an asv suite, and how it is built and made slower.

    Attributes
    ----------
    version : str
        The one that `create` takes. It is told to setuptools_scm, for the scratch repository has no tags.
    benchmark_dir : str
        Where the benchmarks are.
    requirements : mapping of str to str
        What its benchmarks need beyond `COMMON`, each with its version.
    module, changed : str
        The file that the addition goes to, and the function or "Class.method" there that it replaces.
    measured : str
        A regular expression, asv's -b, for the benchmarks that the study runs; others may take minutes a call.
    left_out : tuple of str
        Files of the suite that want what the scratch environment does not have. One that fails to import would stop
        the discovery of all.
    """

    version: str
    benchmark_dir: str
    module: str
    changed: str
    measured: str
    requirements: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


SUITES: dict[str, Suite] = {
    "flox": Suite(
        version="0.11.2",
        benchmark_dir="asv_bench/benchmarks",
        requirements={
            "scipy": "1.17.1",
            "toolz": "1.2.0",
            "numpy_groupies": "0.16.0",
            "dask": "2026.8.0",
            "xarray": "2026.9.0",
        },
        module="flox/aggregations.py",
        changed="generic_aggregate",
        measured=r"^reduce\.ChunkReduce1D\.",
    ),
    "xarray": Suite(
        version="2026.9.0",
        benchmark_dir="asv_bench/benchmarks",
        requirements={
            "scipy": "1.17.1",
            "dask": "2026.8.0",
            "flox": "0.11.2",
            "cftime": "1.6.6.1",
            "pip+vcs_versioning": "2.6.0",
        },
        module="xarray/core/formatting.py",
        changed="dataset_repr",
        measured=r"^(accessors|renaming|repr|polyfit\.Polyval\.time|reindexing\.Reindex\.|unstacking\.Unstacking\.)",
    ),
    "xbatcher": Suite(
        version="0.4.0",
        benchmark_dir="asv_bench/benchmarks",
        requirements={"dask": "2026.8.0", "xarray": "2026.9.0"},
        module="xbatcher/generators.py",
        changed="BatchSchema._gen_patch_selectors",
        measured=r"^(generators|accessors)\.",
        left_out=("asv_bench/benchmarks/loaders.py",),  # torch
    ),
}


def create(name: str, sdist: Path, folder: Path) -> dict[str, str]:
    """Turn a source distribution into a git repository with three commits, each a branch that starts at "base".

    asv.conf.json is ours, in the repository's root; the suite's own, if there is one, is removed.

    Parameters
    ----------
    name : str
        One of `SUITES`.
    sdist : Path
        NAME-VERSION.tar.gz as pip downloads it.
    folder : Path
        Does not exist yet, or is empty. "base" is checked out.

    Returns
    -------
    dict of str to str
        Commit by name: "base"; "same", which differs in a file that is no part of the package; "slow", where one
        function does a fifth of its work again.

    Raises
    ------
    ValueError
        If the name is not known, the distribution is of another version, or it lacks the function to be slowed down.
    FileExistsError
        If `folder` holds something.
    subprocess.CalledProcessError
        If git fails.

    Examples
    --------
    >>> create("pandas", Path("pandas-3.1.1.tar.gz"), Path("scratch"))
    Traceback (most recent call last):
    ...
    ValueError: no suite is known for 'pandas'; known are flox, xarray, xbatcher
    """
    if name not in SUITES:
        raise ValueError(f"no suite is known for {name!r}; known are {', '.join(SUITES)}")
    suite = SUITES[name]
    if sdist.name != f"{name}-{suite.version}.tar.gz":
        raise ValueError(f"{sdist.name} is not {name}-{suite.version}.tar.gz, which this was written for")
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a folder that does not exist yet, or an empty one")
    _unpack(sdist, folder)
    _check_defined(suite, (folder / suite.module).read_text("utf-8"))
    for path in (*suite.left_out, *map(str, folder.rglob("asv.conf.json"))):
        (folder / path).unlink()
    (folder / "asv.conf.json").write_text(json.dumps(_configuration(name, suite), indent=4) + "\n", "utf-8")
    return _commit_all(name, suite, folder)


def _unpack(sdist: Path, folder: Path) -> None:
    """The distribution's one folder, as `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, tarfile.open(sdist) as archive:
        archive.extractall(scratch, filter="data")
        shutil.copytree(Path(scratch) / sdist.name.removesuffix(".tar.gz"), folder, dirs_exist_ok=True)


def _configuration(name: str, suite: Suite) -> dict[str, object]:
    """What asv is told; built as gradmark is, and with nothing fetched but the requirements."""
    requirements = {**COMMON, **suite.requirements}
    wheel = "python -m pip wheel --no-deps --no-build-isolation --wheel-dir {build_cache_dir} {build_dir}"
    return {
        "version": 1,
        "project": name,
        "repo": ".",
        "branches": ["main"],
        "environment_type": "virtualenv",
        "matrix": {
            "req": {requirement: [version] for requirement, version in requirements.items()},
            "env": {"SETUPTOOLS_SCM_PRETEND_VERSION": [suite.version]},
        },
        "install_timeout": 1800,
        "build_command": [wheel],
        "install_command": ["in-dir={env_dir} python -m pip install --no-deps --force-reinstall {wheel_file}"],
        "uninstall_command": ["return-code=any python -m pip uninstall --yes {project}"],
        "benchmark_dir": suite.benchmark_dir,
        "env_dir": ".asv/env",
        "results_dir": ".asv/results",
        "html_dir": ".asv/html",
        "launch_method": "forkserver",
    }


def _commit_all(name: str, suite: Suite, folder: Path) -> dict[str, str]:
    """The three commits of the files that lie in the folder."""
    git = study_project.git
    git(folder, "init", "--quiet", "--initial-branch", "main")
    # A distribution may hold files that its own .gitignore names, such as one with the version.
    git(folder, "add", "--all", "--force")
    commits = {"base": study_project.commit(folder, "base")}
    with (folder / ".git/info/exclude").open("a") as exclude:
        exclude.write(".asv/\n")

    git(folder, "checkout", "--quiet", "-b", "same")
    (folder / "study.txt").write_text("This commit changes nothing but this file.\n", "utf-8")
    commits["same"] = study_project.commit(folder, "same")

    git(folder, "checkout", "--quiet", "-b", "slow", "main")
    with (folder / suite.module).open("a", encoding="utf-8") as module:
        module.write((ADDITIONS / f"{name}.py.in").read_text("utf-8"))
    commits["slow"] = study_project.commit(folder, "slow")
    git(folder, "checkout", "--quiet", "main")
    return commits


def _check_defined(suite: Suite, source: str) -> None:
    """ValueError unless the module defines the function that the addition replaces."""
    body: list[ast.stmt] = ast.parse(source).body
    for part in suite.changed.split("."):
        found = [node for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == part]
        if not found:
            raise ValueError(f"{suite.module} has no {suite.changed}: the addition would slow down nothing")
        body = found[0].body
