"""The measured project: its repository, its asv.conf.json, and the two revisions that are compared."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradmark.tracking.check.results import Revision

CONFIG_NAMES = ("asv.conf.json", "asv.conf.jsonc")


class CheckUsageError(Exception):
    """What was asked for cannot be done; the message says what is accepted. Exit code 2."""


class NotMeasurableError(Exception):
    """The check could not measure: a build failed, nothing ran, the disk is full. Exit code 3."""


@dataclass(frozen=True, slots=True)
class Project:
    """A git repository with an asv suite.

    Attributes
    ----------
    root : Path
        The working tree's top.
    config : Path
        The asv.conf.json, absolute; it may lie in a folder below `root`.
    """

    root: Path
    config: Path

    @property
    def config_in_tree(self) -> Path:
        """The configuration's path relative to `root`: it is looked for at the same place in both revisions."""
        return self.config.relative_to(self.root)


def find_project(folder: Path, config: str | None = None) -> Project:
    """The project that `folder` belongs to.

    Raises
    ------
    CheckUsageError
        There is no git repository or no asv.conf.json, or it lies outside of the repository.
    """
    top = _try_git(folder, "rev-parse", "--show-toplevel")
    if top is None:
        raise CheckUsageError(f"{folder} is not in a git repository; run it in a clone of the project to be checked")
    root = Path(top).resolve()
    path = _find_config(folder.resolve(), root) if config is None else (folder / config).resolve()
    if path is None:
        raise CheckUsageError(
            f"no asv.conf.json in {folder} or in the folders above it up to {root};"
            " give its path with --config, or run it where the asv suite lies"
        )
    if not path.is_file():
        raise CheckUsageError(f"--config {config}: there is no such file")
    if root not in path.parents:
        raise CheckUsageError(f"--config {config}: it lies outside of the repository {root}")
    return Project(root, path)


def _find_config(folder: Path, root: Path) -> Path | None:
    for place in (folder, *folder.parents):
        for name in CONFIG_NAMES:
            if (place / name).is_file():
                return place / name
        if place == root:
            return None
    return None


def load_config(path: Path) -> Any:
    """Read an asv.conf.json as asv does.

    Raises
    ------
    CheckUsageError
        It is no valid configuration.
    """
    from asv import config, util

    try:
        return config.Config.load(str(path))
    except util.UserError as error:
        raise CheckUsageError(f"{path.name} has an error: {error}") from error
    except Exception as error:
        raise CheckUsageError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error


# --- revisions --------------------------------------------------------------------------------------------------------


def resolve(project: Project, name: str) -> Revision:
    """The commit that a user's name stands for.

    Raises
    ------
    CheckUsageError
        There is none; in a shallow clone the message says how to fetch it.
    """
    commit = None
    if name and not name.startswith("-"):
        commit = _try_git(project.root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    if commit is None:
        raise CheckUsageError(f"{name!r} is no revision of this repository{_shallow_hint(project)}")
    if _try_git(project.root, "cat-file", "-e", f"{commit}^{{tree}}") is None:
        raise CheckUsageError(f"the files of {name!r} are not in this clone{_shallow_hint(project)}")
    return Revision(name, commit)


def merge_base(project: Project, head: Revision, branches: Sequence[str | None]) -> Revision:
    """Where head's branch left the main branch: what a pull request changes is all that came after.

    Parameters
    ----------
    branches : sequence of str
        Those of asv.conf.json, the main one first.

    Raises
    ------
    CheckUsageError
        No main branch is known, or there is no common commit.
    """
    candidates = [branch for branch in branches if branch]
    remote = _try_git(project.root, "symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD")
    candidates += [name for name in (remote, "main", "master") if name]
    # A workflow's checkout has the main branch as origin's only: that still comes before the next candidate.
    candidates = [way for name in candidates for way in dict.fromkeys((name, f"origin/{name.removeprefix('origin/')}"))]
    known = [name for name in candidates if _try_git(project.root, "rev-parse", "--verify", "--quiet", name)]
    if not known:
        raise CheckUsageError(
            f"no main branch is known here (looked for {', '.join(dict.fromkeys(candidates))});"
            f" give the base: gradmark check BASE{_shallow_hint(project)}"
        )
    commit = _try_git(project.root, "merge-base", known[0], head.commit)
    if commit is None:
        raise CheckUsageError(f"{known[0]} and {head.name} have no common commit{_shallow_hint(project)}")
    return Revision(f"merge base with {known[0]}", commit)


def uncommitted(project: Project) -> bool:
    """Whether the working tree differs from its HEAD (files that git ignores do not count)."""
    return bool(_try_git(project.root, "status", "--porcelain"))


def snapshot(project: Project) -> Revision:
    """The working tree as a commit that no branch knows; index, files and branches stay as they are.

    Raises
    ------
    NotMeasurableError
        git cannot write it.
    """
    head = resolve(project, "HEAD")
    if not uncommitted(project):
        return Revision("working tree", head.commit)
    with tempfile.TemporaryDirectory(prefix="gradmark-index-") as folder:
        own_index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(project.root, "read-tree", head.commit, env=own_index)
        git(project.root, "add", "--all", ".", env=own_index)
        tree = git(project.root, "write-tree", env=own_index)
    identity = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in _NOBODY.items()}
    message = "uncommitted changes, as gradmark check measures them"
    commit = git(project.root, "commit-tree", tree, "-p", head.commit, "-m", message, env=identity)
    return Revision("working tree", commit, uncommitted=True)


# Fixed, so that the same changes are the same commit and its build is found again.
_NOBODY = {"NAME": "gradmark check", "EMAIL": "gradmark@localhost", "DATE": "2000-01-01T00:00:00Z"}


def commit_date_ms(project: Project, commit: str) -> int:
    """When it was committed, in milliseconds since 1970, as asv counts."""
    return int(git(project.root, "show", "-s", "--format=%ct", commit)) * 1000


def check_out(project: Project, revision: Revision, folder: Path) -> None:
    """Put the files of a revision into a new folder.

    A clone that shares the objects, no worktree: the repository is not written to, so nothing can be left in it.

    Raises
    ------
    NotMeasurableError
        git refuses, or the disk is full.
    """
    git(project.root, "clone", "--quiet", "--shared", "--no-checkout", str(project.root), str(folder))
    if _try_git(folder, "cat-file", "-e", f"{revision.commit}^{{tree}}") is None:
        _share_objects(project, folder)
    git(folder, "-c", "advice.detachedHead=false", "checkout", "--quiet", "--detach", revision.commit)
    if (folder / ".gitmodules").is_file():
        # As asv does; addresses relative to the repository are those of the repository's own origin.
        origin = _try_git(project.root, "remote", "get-url", "origin")
        if origin is not None:
            git(folder, "remote", "set-url", "origin", origin)
        git(folder, "submodule", "update", "--quiet", "--init", "--recursive")


def _share_objects(project: Project, folder: Path) -> None:
    """What --shared does; git does not do it for a shallow clone, and then copies only what branches and tags reach."""
    objects, shallow = (
        project.root / git(project.root, "rev-parse", "--git-path", name) for name in ("objects", "shallow")
    )
    with (folder / ".git/objects/info/alternates").open("a", encoding="utf-8") as alternates:
        alternates.write(f"{objects}\n")
    if shallow.is_file():
        shutil.copyfile(shallow, folder / ".git/shallow")


def _shallow_hint(project: Project) -> str:
    if _try_git(project.root, "rev-parse", "--is-shallow-repository") == "true":
        return "; this is a shallow clone: get the history with `git fetch --unshallow` (fetch-depth: 0 in a workflow)"
    return ""


def git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What git prints. Raises NotMeasurableError with git's own words where it fails."""
    done = _run_git(folder, arguments, env)
    if done is None:
        raise NotMeasurableError("git cannot be run; install it")
    if done.returncode != 0:
        message = done.stderr.strip().splitlines()
        raise NotMeasurableError(f"git {arguments[0]} failed: {message[-1] if message else done.returncode}")
    return done.stdout.strip()


def _try_git(folder: Path, *arguments: str) -> str | None:
    done = _run_git(folder, arguments, None)
    return done.stdout.strip() if done is not None and done.returncode == 0 else None


def _run_git(
    folder: Path, arguments: Sequence[str], env: Mapping[str, str] | None
) -> subprocess.CompletedProcess[str] | None:
    # Variables that a hook sets would point git at another repository.
    inherited = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    command = ["git", "-C", str(folder), *arguments]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", env={**inherited, **(env or {})}
        )
    except OSError:
        return None
