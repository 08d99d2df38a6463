"""Both sides of a check, built as asv.conf.json says and installed beside each other.

The environment is asv's own (it is created, or found ready, where `asv run` keeps it). Each side is built into a wheel
by the build command and unpacked into a folder of its own, which its processes have first on their path: so the two
share every dependency, and what is compared is the project alone. Where the sides ask for different requirements, they
get an environment each, and the report says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.parser import Parser
from pathlib import Path
from typing import Any, Final

from gradmark.tracking.check.repository import CheckUsageError, NotMeasurableError, Project, check_out, load_config
from gradmark.tracking.check.results import Revision

BASE: Final = "base"
HEAD: Final = "head"
TWIN: Final = "twin"
"""The three installations. Names of one length: paths as long as each other lie alike in memory. The twin is a second
copy of the base, for the A/A sentinel."""

_DEFAULT_BUILD = ["python -m pip wheel --no-deps --wheel-dir {build_cache_dir} {build_dir}"]
"""asv's own default collects the wheels of the dependencies too and then cannot tell which one is the project's."""

_ERROR_LINES = 8


@dataclass(slots=True)
class Side:
    """One installation: how its processes are started.

    Attributes
    ----------
    python : str
        The interpreter of its environment.
    site : Path
        Where the project's wheel is unpacked; first on the path.
    tree : Path
        The checkout of its revision.
    conf_dir : Path
        The folder of asv.conf.json in that checkout.
    home : Path
        A folder for what its processes write: caches, current folders.
    env : dict
        Their environment variables.
    """

    name: str
    revision: Revision
    python: str
    site: Path
    tree: Path
    conf_dir: Path
    home: Path
    conf: Any
    env: dict[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    environment: str = ""
    python_version: str = ""
    requirements: dict[str, str] = field(default_factory=dict)

    @property
    def suite(self) -> Path:
        """The folder of the benchmarks, in the revision's own checkout."""
        return self.conf_dir / str(self.conf.benchmark_dir)


def prepare(
    project: Project,
    base: Revision,
    head: Revision,
    folder: Path,
    *,
    env_spec: str | None = None,
    tell: Callable[[str], None],
) -> tuple[dict[str, Side], list[str]]:
    """Check out, build and install both revisions and the twin.

    Parameters
    ----------
    folder : Path
        Empty; everything but asv's environments goes below it.
    env_spec : str, optional
        As asv's `-E`: "existing" for the Python that runs gradmark, "existing:PYTHON", "virtualenv:3.12", …
    tell : callable
        Is told what is being done.

    Returns
    -------
    dict of str to Side
        BASE, HEAD and TWIN.
    list of str
        What the reader should know: which environment, what differs.

    Raises
    ------
    CheckUsageError
        asv.conf.json or `env_spec` is wrong.
    NotMeasurableError
        A build or an installation fails.
    """
    sides, notes = {}, []
    for name, revision in ((BASE, base), (HEAD, head)):
        tell(f"checking out {revision.name}")
        tree = folder / name / "tree"
        tree.parent.mkdir()
        check_out(project, revision, tree)
        conf, remark = _conf_of(project, tree, name)
        notes += remark
        conf_dir = (tree / project.config_in_tree).parent
        home = folder / name / "home"
        home.mkdir()
        sides[name] = Side(name, revision, "", folder / name / "site", tree, conf_dir, home, conf)
    builders = {BASE: _builder(project, sides[BASE].conf, env_spec, "", tell)}
    builders[HEAD] = builders[BASE]
    notes += builders[BASE].notes
    apart = _differing_requirements(sides[BASE].conf, sides[HEAD].conf)
    if apart and builders[BASE].environment is None:
        why = "-E existing was asked for" if env_spec else "-E existing is what asv.conf.json asks for"
        notes.append(f"the sides' requirements differ ({apart}), and are ignored: {why}")
    elif apart:
        notes.append(f"the sides' requirements differ ({apart}): each has an environment of its own")
        builders[HEAD] = _builder(project, sides[HEAD].conf, env_spec, "-head", tell)
    wheels = {}
    for name, side in sides.items():
        tell(f"building {side.revision.name} ({side.revision.commit[:8]})")
        wheels[name] = builders[name].build(side, folder)
    if builders[HEAD] is builders[BASE] and builders[BASE].installs_dependencies:
        needs = {name: _requires(wheel) for name, wheel in wheels.items()}
        if needs[BASE] != needs[HEAD]:
            changed = ", ".join(sorted(set(needs[BASE]) ^ set(needs[HEAD])))
            notes.append(f"the sides' dependencies differ ({changed}): each has an environment of its own")
            builders[HEAD] = _builder(project, sides[HEAD].conf, env_spec, "-head", tell)
    for name, side in sides.items():
        tell(f"installing {side.revision.name}")
        builders[name].install(side, wheels[name])
    sides[TWIN] = _twin(sides[BASE], folder)
    return sides, notes


def _conf_of(project: Project, tree: Path, name: str) -> tuple[Any, list[str]]:
    own = tree / project.config_in_tree
    if own.is_file():
        return load_config(own), []
    return load_config(project.config), [
        f"the {name} has no {project.config_in_tree}: that of the working tree is used"
    ]


def _differing_requirements(base: Any, head: Any) -> str:
    keys = ("environment_type", "pythons", "matrix", "include", "exclude", "conda_channels", "conda_environment_file")
    return ", ".join(key for key in keys if getattr(base, key, None) != getattr(head, key, None))


def _twin(base: Side, folder: Path) -> Side:
    home = folder / TWIN / "home"
    site = folder / TWIN / "site"
    home.mkdir(parents=True)
    shutil.copytree(base.site, site, symlinks=True)
    twin = dataclasses.replace(base, name=TWIN, site=site, home=home)
    twin.env = _variables(twin, base.env)
    return twin


# --- environments -----------------------------------------------------------------------------------------------------


def _builder(project: Project, conf: Any, spec: str | None, suffix: str, tell: Callable[[str], None]) -> _Builder:
    asked = spec or conf.environment_type or ""
    if asked.split(":", 1)[0] == "existing":
        return _Builder(conf, _existing_python(asked), None)
    environment, notes = _asv_environment(project, conf, spec, suffix)
    tell(f"environment {environment.name}: created if it is not there yet")
    try:
        environment.create()
        python = str(environment.find_executable("python"))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # asv's EnvironmentUnavailable is none of Exception
        raise NotMeasurableError(
            f"the environment {environment.name} cannot be created: {_tail(str(error))}"
        ) from error
    builder = _Builder(conf, python, environment)
    builder.notes = notes
    return builder


def _existing_python(spec: str) -> str:
    _, _, python = spec.partition(":")
    if python in ("", "same"):
        return sys.executable
    found = shutil.which(python)
    if found is None:
        raise CheckUsageError(f"-E {spec}: there is no program {python}; give a path, or -E existing for this Python")
    return str(Path(found).absolute())


def _asv_environment(project: Project, conf: Any, spec: str | None, suffix: str) -> tuple[Any, list[str]]:
    from asv import (
        environment,
        plugin_manager,  # noqa: F401 (importing it loads the kinds of environments)
        util,
    )

    conf.env_dir = str(project.config.parent / conf.env_dir) + suffix
    # asv looks for pyproject.toml in the current folder.
    with contextlib.chdir(project.config.parent):
        try:
            found = list(environment.get_environments(conf, [spec] if spec else [], verbose=False))
        except (util.UserError, environment.EnvironmentUnavailable, RuntimeError) as error:
            raise CheckUsageError(f"asv.conf.json asks for an environment that is not to be had: {error}") from error
    if not found:
        asked = spec or conf.environment_type
        raise CheckUsageError(
            f"no environment of the kind {asked!r} can be made here for Python {', '.join(map(str, conf.pythons))};"
            " try -E virtualenv, or -E existing for the Python that runs gradmark"
        )
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    chosen = next((env for env in found if env.python == here), found[0])
    notes = []
    if len(found) > 1:
        notes.append(f"asv.conf.json describes {len(found)} environments; measured in {chosen.name} (another: -E NAME)")
    return chosen, notes


class _Builder:
    """Makes wheels in one environment, and installs them outside of it."""

    def __init__(self, conf: Any, python: str, environment: Any) -> None:
        self.conf = conf
        self.python = python
        self.environment = environment
        self.notes: list[str] = []
        commands = conf.install_command
        text = " ".join(commands if isinstance(commands, list) else [commands or ""])
        self.installs_dependencies = environment is not None and "--no-deps" not in text
        """As asv's own installation would: its default takes a wheel's dependencies along."""

    @property
    def name(self) -> str:
        """For the reader."""
        return self.environment.name if self.environment is not None else f"existing: {self.python}"

    def build(self, side: Side, folder: Path) -> Path:
        """The wheel of a side, from asv's cache of builds where it is there."""
        cache = _WheelCache(self.environment, side, folder)
        ready = cache.find()
        if ready is not None:
            return cache.keep(ready)
        target = cache.create()
        build_dir = side.tree / (side.conf.repo_subdir or "")
        commands = side.conf.build_command or _DEFAULT_BUILD
        values = {
            "build_dir": str(build_dir),
            "build_cache_dir": str(target),
            "env_dir": str(Path(self.python).parent.parent),
            "conf_dir": str(side.conf_dir),
            "project": side.conf.project,
            "commit": side.revision.commit,
            "env_name": self.name,
            "env_type": getattr(self.environment, "tool_name", None) or "existing",
        }
        for command in commands if isinstance(commands, list) else [commands]:
            self._run_template(command, values, build_dir, f"building the {side.name} ({side.revision.name}) failed")
        wheels = sorted(target.glob("*.whl"))
        if len(wheels) != 1:
            found = ", ".join(wheel.name for wheel in wheels) or "none"
            raise NotMeasurableError(
                f"the build command of asv.conf.json must leave one wheel in {{build_cache_dir}}; it left: {found}"
            )
        kept = cache.keep(wheels[0])
        cache.finalize()
        return kept

    def install(self, side: Side, wheel: Path) -> None:
        """Unpack the wheel into the side's folder, and its dependencies into the environment where asv would."""
        if self.installs_dependencies:
            needs = _requires(wheel)
            if needs:
                command = [self.python, "-m", "pip", "install", "--quiet", *needs]
                self._run(command, side.home, "installing the dependencies failed")
        if self.environment is not None:
            # What an earlier `asv run` has installed there must not fill in for a module that a side has deleted.
            command = [self.python, "-m", "pip", "uninstall", "--quiet", "--yes", self.conf.project]
            self._run(command, side.home, "uninstalling failed", any_code=True)
            # Else the next `asv run` of the commit that was there believes that it still is.
            self.environment._set_installed_commit_hash(None)
        command = [self.python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        self._run([*command, "--target", str(side.site), str(wheel)], side.home, f"installing the {side.name} failed")
        side.python = self.python
        side.packages = _top_level(wheel)
        side.environment = self.name
        side.python_version = _minor_version(self.python)
        side.requirements = dict(getattr(self.environment, "requirements", {}))
        side.env = _variables(side, self._base_variables(side))

    def _base_variables(self, side: Side) -> dict[str, str]:
        variables = dict(os.environ)
        if self.environment is not None:
            variables.update({key: str(value) for key, value in self.environment.env_vars.items()})
        variables["PATH"] = os.pathsep.join([str(Path(self.python).parent), variables.get("PATH", "")])
        variables["PIP_USER"] = "false"
        # As asv sets them: suites ask for them.
        variables.update(ASV="true", ASV_PROJECT=self.conf.project, ASV_COMMIT=side.revision.commit)
        variables.update(ASV_CONF_DIR=str(side.conf_dir), ASV_ENV_NAME=self.name)
        return variables

    def _run_template(self, command: str, values: Mapping[str, str], default: Path, failure: str) -> None:
        from asv import util

        try:
            words, variables, codes, cwd = util.interpolate_command(command, dict(values))
        except util.UserError as error:
            raise CheckUsageError(f"build_command of asv.conf.json: {error}") from error
        build_variables = getattr(self.environment, "build_env_vars", {})
        env = {**{key: str(value) for key, value in build_variables.items()}, **variables}
        if words[0] in ("python", "pip"):
            words = [self.python, *(["-m", "pip"] if words[0] == "pip" else []), *words[1:]]
        self._run(words, Path(cwd or default), failure, env=env, any_code=codes is None, codes=codes)

    def _run(
        self,
        command: Sequence[str],
        cwd: Path,
        failure: str,
        *,
        env: Mapping[str, str] | None = None,
        any_code: bool = False,
        codes: set[int] | None = None,
    ) -> None:
        variables = {**os.environ, **(env or {}), "PIP_USER": "false", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        variables.pop("PYTHONPATH", None)
        variables["PATH"] = os.pathsep.join([str(Path(self.python).parent), variables.get("PATH", "")])
        code, output = _run_to_end(command, cwd, variables, self.conf.install_timeout)
        if not any_code and code not in (codes or {0}):
            raise NotMeasurableError(
                f"{failure}: {' '.join(map(str, command[:6]))} … ended with {code}\n{_tail(output)}"
            )


class _WheelCache:
    """asv's cache of builds; for an existing environment, and for what is not committed, a temporary one."""

    def __init__(self, environment: Any, side: Side, folder: Path) -> None:
        self._commit = side.revision.commit
        self._asv = None if environment is None or side.revision.uncommitted else environment._cache
        # Another build command makes another wheel.
        recipe = hashlib.sha256(repr((side.conf.build_command, side.conf.repo_subdir)).encode()).hexdigest()[:8]
        self._key = f"{self._commit}-check-{recipe}"
        self._own = folder / side.name / "wheel"

    def find(self) -> Path | None:
        found = self._asv.get_cache_dir(self._key) if self._asv is not None else None
        wheels = sorted(Path(found).glob("*.whl")) if found else []
        return wheels[0] if len(wheels) == 1 and zipfile.is_zipfile(wheels[0]) else None

    def create(self) -> Path:
        if self._asv is not None:
            return Path(self._asv.create_cache_dir(self._key))
        self._own.mkdir()
        return self._own

    def keep(self, wheel: Path) -> Path:
        """The wheel in a folder of this check: asv's cache may drop it as soon as the other side's is there."""
        if wheel.parent == self._own:
            return wheel
        self._own.mkdir(exist_ok=True)
        return Path(shutil.copy2(wheel, self._own))

    def finalize(self) -> None:
        if self._asv is not None:
            self._asv.finalize_cache_dir(self._key)


def _variables(side: Side, inherited: Mapping[str, str]) -> dict[str, str]:
    caches = side.home / "cache"
    return {
        **inherited,
        "PYTHONPATH": str(side.site),
        # Machine code of one side must not be taken for the other's.
        "NUMBA_CACHE_DIR": str(caches / "numba"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }


def _run_to_end(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float | None
) -> tuple[int | str, str]:
    """Run a command in a process group of its own; nothing of it outlives a Ctrl-C or the timeout, no file either."""
    with tempfile.TemporaryDirectory(prefix="gradmark-build-", ignore_cleanup_errors=True) as scratch:
        return _run_in_group(command, cwd, {**env, "TMPDIR": scratch, "TEMP": scratch, "TMP": scratch}, timeout)


def _run_in_group(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], timeout: float | None
) -> tuple[int | str, str]:
    try:
        process = subprocess.Popen(
            list(map(str, command)), cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return "an error", f"{command[0]}: {error.strerror}"
    with process:
        try:
            output, _ = process.communicate(timeout=timeout)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return f"nothing after {timeout:g} s (install_timeout)", ""
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _minor_version(python: str) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, text=True).stdout.strip()


def _requires(wheel: Path) -> tuple[str, ...]:
    """What the wheel itself depends on, without extras."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    except (zipfile.BadZipFile, StopIteration) as error:
        raise NotMeasurableError(f"the build made {wheel.name}, which is no wheel: {error}") from error
    return tuple(sorted(need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need))


def _top_level(wheel: Path) -> tuple[str, ...]:
    """The packages and modules that the wheel brings."""
    with zipfile.ZipFile(wheel) as archive:
        first = {name.split("/", 1)[0] for name in archive.namelist()}
    names = {name.removesuffix(".py").split(".", 1)[0] for name in first if not name.endswith((".dist-info", ".data"))}
    return tuple(sorted(name for name in names if name.isidentifier()))


def _tail(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return "\n".join(lines[-_ERROR_LINES:])
