"""The measured repository: which revisions are compared, and that it is left as it was."""

from __future__ import annotations

import shutil

import pytest

import tiny_projects as tiny
from gradmark.tracking.check import repository
from gradmark.tracking.check.repository import CheckUsageError, NotMeasurableError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def folder(tmp_path):
    tiny.create(tmp_path / "p", {"tiny/__init__.py": "1\n", ".gitignore": "ignored\n"}, {"tiny/__init__.py": "2\n"})
    return tmp_path / "p"


@pytest.fixture
def project(folder):
    return repository.find_project(folder)


# --- the working tree -------------------------------------------------------------------------------------------------


def dirty(folder):
    """A file changed, one staged, one deleted, one untracked, one renamed, one ignored."""
    tiny.write(folder, {"tiny/__init__.py": "3\n", "staged.py": "s\n", "new/file.py": "n\n", "ignored": "i\n"})
    tiny.git(folder, "add", "staged.py")
    (folder / "make_wheel.py").unlink()


def test_snapshot_has_all_that_is_not_ignored(project, folder):
    dirty(folder)
    made = repository.snapshot(project)
    assert made.uncommitted
    files = tiny.git(folder, "ls-tree", "-r", "--name-only", made.commit).splitlines()
    assert {"staged.py", "new/file.py", "tiny/__init__.py"} <= set(files)
    assert not {"ignored", "make_wheel.py"} & set(files)
    assert tiny.git(folder, "show", f"{made.commit}:tiny/__init__.py") == "3"
    assert tiny.git(folder, "rev-parse", f"{made.commit}^") == tiny.git(folder, "rev-parse", "HEAD")


def test_snapshot_leaves_everything_as_it_was(project, folder):
    tiny.write(folder, {"tiny/__init__.py": "stashed\n"})
    tiny.git(folder, "stash")
    dirty(folder)
    before = tiny.state_of(folder)
    repository.snapshot(project)
    assert tiny.state_of(folder) == before


def test_same_changes_are_the_same_snapshot(project, folder):
    dirty(folder)
    assert repository.snapshot(project) == repository.snapshot(project)


def test_snapshot_of_a_clean_tree_is_its_commit(project, folder):
    made = repository.snapshot(project)
    assert (made.commit, made.uncommitted) == (tiny.git(folder, "rev-parse", "HEAD"), False)


def test_snapshot_from_a_folder_below_the_top(folder):
    tiny.write(folder, {"sub/asv.conf.json": tiny.conf(), "elsewhere.txt": "x"})
    made = repository.snapshot(repository.find_project(folder / "sub"))
    assert "elsewhere.txt" in tiny.git(folder, "ls-tree", "-r", "--name-only", made.commit)


def test_uncommitted(project, folder):
    assert not repository.uncommitted(project)
    tiny.write(folder, {"ignored": "i"})
    assert not repository.uncommitted(project)
    tiny.write(folder, {"untracked": "u"})
    assert repository.uncommitted(project)


def test_git_variables_of_a_hook_are_not_followed(project, folder, tmp_path, monkeypatch):
    tiny.create(tmp_path / "other", {})
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "other" / ".git" / "index"))
    assert repository.find_project(folder).root == folder
    found = repository.resolve(project, "HEAD")
    monkeypatch.undo()
    assert found.commit == tiny.git(folder, "rev-parse", "HEAD")


# --- revisions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no-such-branch", "", "--all", "-h", "HEAD~99", "f" * 40, "HEAD:tiny"])
def test_unknown_revision(project, name):
    with pytest.raises(CheckUsageError, match="is no revision of this repository"):
        repository.resolve(project, name)


def test_names_of_one_commit(project, folder):
    tiny.git(folder, "tag", "-a", "v1", "-m", "annotated")
    head = tiny.git(folder, "rev-parse", "HEAD")
    for name in ("HEAD", "main", "v1", head[:10], "HEAD~0"):
        assert repository.resolve(project, name).commit == head


def test_shallow_clone_says_how_to_fetch(folder, tmp_path):
    first = tiny.git(folder, "rev-parse", "HEAD~1")
    tiny.git(tmp_path, "clone", "--quiet", "--depth", "1", f"file://{folder}", "shallow")
    shallow = repository.find_project(tmp_path / "shallow")
    for name in ("HEAD~1", first):
        with pytest.raises(CheckUsageError, match="shallow clone: get the history with `git fetch --unshallow`"):
            repository.resolve(shallow, name)


def test_shallow_clone_without_a_merge_base(folder, tmp_path):
    tiny.git(folder, "checkout", "--quiet", "-b", "feature", "HEAD~1")
    tiny.write(folder, {"tiny/__init__.py": "feature\n"})
    tiny.git(folder, "commit", "--quiet", "-a", "-m", "feature")
    arguments = ["--depth", "1", "--no-single-branch", "-b", "feature"]
    tiny.git(tmp_path, "clone", "--quiet", *arguments, f"file://{folder}", "shallow")
    shallow = repository.find_project(tmp_path / "shallow")
    with pytest.raises(CheckUsageError, match="no common commit; this is a shallow clone"):
        repository.merge_base(shallow, repository.resolve(shallow, "HEAD"), ["main"])


def test_merge_base_is_where_the_branch_left(project, folder):
    left = tiny.git(folder, "rev-parse", "HEAD~1")
    tiny.git(folder, "checkout", "--quiet", "-b", "feature", "HEAD~1")
    tiny.write(folder, {"tiny/__init__.py": "feature\n"})
    tiny.git(folder, "commit", "--quiet", "-a", "-m", "feature")
    head = repository.resolve(project, "HEAD")
    for branches in (["main"], [None], [""], ["no-such", "main"]):
        found = repository.merge_base(project, head, branches)
        assert (found.commit, found.name) == (left, "merge base with main")


def test_merge_base_without_a_main_branch(project, folder):
    tiny.git(folder, "branch", "-m", "main", "trunk")
    head = repository.resolve(project, "HEAD")
    with pytest.raises(CheckUsageError, match=r"no main branch is known here .*give the base: gradmark check BASE"):
        repository.merge_base(project, head, [None])
    assert repository.merge_base(project, head, ["trunk"]).name == "merge base with trunk"


def test_merge_base_of_unrelated_histories(project, folder):
    tiny.git(folder, "checkout", "--quiet", "--orphan", "apart")
    tiny.git(folder, "commit", "--quiet", "-m", "apart")
    with pytest.raises(CheckUsageError, match="main and HEAD have no common commit"):
        repository.merge_base(project, repository.resolve(project, "HEAD"), ["main"])


# --- the project ------------------------------------------------------------------------------------------------------


def test_configuration_is_found_upwards_and_not_beyond_the_repository(folder, tmp_path):
    (tmp_path / "asv.conf.json").write_text(tiny.conf())
    (folder / "deep" / "er").mkdir(parents=True)
    assert repository.find_project(folder / "deep" / "er").config == folder / "asv.conf.json"
    tiny.write(folder, {"deep/asv.conf.json": tiny.conf()})
    below = repository.find_project(folder / "deep" / "er")
    assert str(below.config_in_tree) == "deep/asv.conf.json"
    (folder / "asv.conf.json").unlink()
    with pytest.raises(CheckUsageError, match=r"no asv\.conf\.json in"):
        repository.find_project(folder)
    with pytest.raises(CheckUsageError, match="outside of the repository"):
        repository.find_project(folder, "../asv.conf.json")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "project": "x", "repo": "."}', '"text"'])
def test_broken_configuration(folder, text):
    (folder / "asv.conf.json").write_text(text)
    with pytest.raises(CheckUsageError, match=r"asv\.conf\.json"):
        repository.load_config(folder / "asv.conf.json")


def test_check_out_is_the_revision_and_touches_nothing(project, folder, tmp_path):
    dirty(folder)
    before = tiny.state_of(folder)
    repository.check_out(project, repository.resolve(project, "HEAD~1"), tmp_path / "tree")
    assert (tmp_path / "tree" / "tiny" / "__init__.py").read_text() == "1\n"
    assert not (tmp_path / "tree" / "staged.py").exists()
    assert tiny.state_of(folder) == before


def test_check_out_of_a_snapshot(project, folder, tmp_path):
    dirty(folder)
    repository.check_out(project, repository.snapshot(project), tmp_path / "tree")
    assert (tmp_path / "tree" / "new" / "file.py").read_text() == "n\n"


def test_check_out_that_fails_quotes_git(project, folder, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    with pytest.raises(NotMeasurableError, match=r"git clone failed: .*already exists"):
        repository.check_out(project, repository.resolve(project, "HEAD"), tmp_path / "tree")
