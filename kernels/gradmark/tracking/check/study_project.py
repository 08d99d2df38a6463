"""The study's material: scratch repositories of two projects whose commits differ in ways that are known.

`studied` is a small library of real kernels, `many` has two hundred light functions. What differs between the commits
is the package; the benchmarks are the same. The templates are in the folder `study`, with two marks: a line that
begins with `#+` is part of the slower commits only, and does the same work again on the first PERCENT % of the data;
`MORE(40)` is 40, and `40 + 4` where ten percent are added.

Any two versions of a module differ in size. A wheel of hatchling gives all its files one date, and Numba takes a
compiled kernel from its cache for the one that was asked for where size and date of the source agree: a slowdown that
keeps both would never be run.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

PLANTED = "fused.time_huber"
"""The one benchmark of `studied` that is 10 % slower in the commit "planted"."""

PLANTED_OF_MANY = "work.time_swap_006"
"""The one benchmark of `many` that is 10 % slower in the commit "planted"."""

FEWEST_OF_MANY = 7
"""`PLANTED_OF_MANY` is the seventh."""

TEMPLATES = Path(__file__).with_name("study")


def create(folder: Path, *, seed: int = 0) -> dict[str, str]:
    """Write a git repository of the project `studied`, each commit a branch that starts at "base".

    Parameters
    ----------
    folder : Path
        Does not exist yet, or is empty. "base" is checked out.
    seed : int
        Of the benchmarks' inputs. The same seed gives the same commits.

    Returns
    -------
    dict of str to str
        Commit by name: "base"; "same", which differs in README.md only; "plus5" and "plus10", where every timed
        kernel goes over 5 or 10 % of its data once more; "upcast", where NumPy and Numba compute in float64; "unfused",
        where the serial Numba kernels take two passes; "scalar", where they do not vectorize; "planted", where only
        the kernel of `PLANTED` goes over 10 % of its data once more. Memory and tracked values change in none of them
        but "upcast".

    Raises
    ------
    FileExistsError
        If `folder` holds something.
    subprocess.CalledProcessError
        If git fails.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     commits = create(Path(folder))
    >>> list(commits)
    ['base', 'same', 'plus5', 'plus10', 'upcast', 'unfused', 'scalar', 'planted']
    """
    planted = PLANTED.replace(".time_", ".")
    variants = {
        "base": _Variant(),
        "same": _Variant(remark="This commit changes nothing but this line."),
        "plus5": _Variant(percent=5),
        "plus10": _Variant(percent=10),
        "upcast": _Variant(dtype="np.float64  # twice as wide"),
        "unfused": _Variant(fused="fused_unfused"),
        "scalar": _Variant(fused="fused_scalar"),
        "planted": _Variant(percent=10, only=planted),
    }
    return _commit_all(folder, {name: partial(_studied, variant, seed) for name, variant in variants.items()})


def create_many(folder: Path, benchmarks: int = 200, *, seed: int = 0) -> dict[str, str]:
    """Write a git repository of the project `many`: plain Python and NumPy, each function with one benchmark.

    Parameters
    ----------
    folder : Path
        Does not exist yet, or is empty. "base" is checked out.
    benchmarks : int
        How many; at least `FEWEST_OF_MANY`.
    seed : int
        Of the functions' constants and the benchmarks' inputs. The same seed gives the same commits.

    Returns
    -------
    dict of str to str
        Commit by name: "base", "same" and "planted", as `create` has them, with `PLANTED_OF_MANY` the slower one.

    Raises
    ------
    ValueError
        If there are fewer benchmarks than `FEWEST_OF_MANY`.
    FileExistsError
        If `folder` holds something.
    subprocess.CalledProcessError
        If git fails.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     commits = create_many(Path(folder), benchmarks=10)
    >>> list(commits)
    ['base', 'same', 'planted']
    """
    if benchmarks < FEWEST_OF_MANY:
        raise ValueError(f"benchmarks={benchmarks}: {PLANTED_OF_MANY} would not be among them; ask for at least 7")
    variants = {
        "base": _Variant(),
        "same": _Variant(remark="This commit changes nothing but this line."),
        "planted": _Variant(percent=10, only=PLANTED_OF_MANY.replace(".time_", ".")),
    }
    return _commit_all(folder, {name: partial(_many, variant, benchmarks, seed) for name, variant in variants.items()})


@dataclass(frozen=True, slots=True)
class _Variant:
    """How a commit differs. `only` is the kernel that is slower, "module.function"; None: all of them are."""

    percent: int = 0
    only: str | None = None
    dtype: str = "np.float32"
    fused: str = "fused"
    remark: str = ""


def _studied(variant: _Variant, seed: int) -> dict[str, str]:
    """The files of `studied`, by path."""
    files = _templates("studied")
    kernels = {name: files.pop(f"studied/{name}.py") for name in ("fused", "fused_unfused", "fused_scalar")}
    files["studied/fused.py"] = kernels[variant.fused]
    for path in files:
        if path.startswith("studied/"):
            files[path] = _slowed(files[path], Path(path).stem, variant)
    return _finished(files, variant, seed)


def _many(variant: _Variant, benchmarks: int, seed: int) -> dict[str, str]:
    """The files of `many`, by path; its functions are made from those of the template, each with its own constants."""
    files = _templates("many")
    head, *bodies = files["many/work.py"].split("\n\n\ndef ")
    draw = random.Random(seed)
    functions, timings = (
        [head],
        ['"""A benchmark for each function."""\n\nfrom many import work\n\nfrom . import _inputs'],
    )
    for i in range(benchmarks):
        stem, argument, body = re.split(r"\(|\)", bodies[i % len(bodies)].strip(), maxsplit=2)
        name = f"{stem}_{i:03d}"
        # A multiple of ten, so that ten percent more are ten percent more.
        body = body.replace("SIZE", str(10 * draw.randrange(4, 21))).replace("NUMBER", str(draw.randrange(100, 1000)))
        functions.append(f"def {name}({argument}){body}")
        timings.append(f"def time_{name}():\n    work.{name}(_inputs.{argument.upper()})")
    files["many/work.py"] = _slowed("\n\n\n".join(functions) + "\n", "work", variant)
    files["benchmarks/work.py"] = "\n\n\n".join(timings) + "\n"
    return _finished(files, variant, seed)


def _templates(project: str) -> dict[str, str]:
    """The texts of a project's templates, by the path that they are written to."""
    folder = TEMPLATES / project
    paths = sorted(path for path in folder.rglob("*.in"))
    return {path.relative_to(folder).as_posix().removesuffix(".in"): path.read_text("utf-8") for path in paths}


def _slowed(source: str, module: str, variant: _Variant) -> str:
    """The source of a module with the marks resolved, and computing in the variant's dtype."""
    lines, function = [], ""
    for line in source.replace("FLOAT = np.float32", f"FLOAT = {variant.dtype}").splitlines():
        if line.startswith("def "):
            function = line[4 : line.index("(")]
        percent = variant.percent if variant.only in (None, f"{module}.{function}") else 0
        indent, marked, extra = line.partition("#+ ")
        if marked and not percent:
            continue
        lines.append(_with_more(indent + extra if marked else line, percent))
    return "\n".join(lines) + "\n"


def _with_more(line: str, percent: int) -> str:
    """A line with PERCENT and MORE(count) resolved."""
    line = line.replace("PERCENT", str(percent))
    extra = " + {}" if percent else ""
    return re.sub(r"MORE\((\d+)\)", lambda count: count[1] + extra.format(int(count[1]) * percent // 100), line)


def _finished(files: dict[str, str], variant: _Variant, seed: int) -> dict[str, str]:
    """The files with the seed and the remark in their places."""
    inputs = files["benchmarks/_inputs.py"]
    remark = f"\n{variant.remark}\n" if variant.remark else ""
    return {
        **{path: text for path, text in files.items() if path != "gitignore"},
        ".gitignore": files["gitignore"],
        "benchmarks/_inputs.py": inputs.replace("SEED = 0 ", f"SEED = {seed} "),
        "README.md": files["README.md"] + remark,
    }


def _commit_all(folder: Path, variants: Mapping[str, Callable[[], dict[str, str]]]) -> dict[str, str]:
    """A repository whose first variant is the branch "main" and the others are branches with their names."""
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a folder that does not exist yet, or an empty one")
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", "--initial-branch", "main")
    commits: dict[str, str] = {}
    for name, files in variants.items():
        if commits:
            git(folder, "checkout", "--quiet", "-b", name, "main")
        for path, text in files().items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
        commits[name] = commit(folder, name)
    git(folder, "checkout", "--quiet", "main")
    return commits


def commit(folder: Path, message: str) -> str:
    """Commit all that is in the folder; its id."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def git(folder: Path, *arguments: str) -> str:
    """What git says, run with no configuration of the user's or the system's, and with an author and a date of ours."""
    who = {f"GIT_{role}_{what}": "study" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    # One date: the same files give the same commits.
    when = {f"GIT_{role}_DATE": "2025-01-01T00:00:00+00:00" for role in ("AUTHOR", "COMMITTER")}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=inherited | who | when | alone, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
