"""The two workflows of a pull request: what they may do, what they run, and the command that makes the comment."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from gradmark.tracking.check import comment, results
from gradmark.tracking.check.markdown import MARKER
from gradmark.tracking.check.record import record
from gradmark.tracking.check.results import Comparison, Report, Revision

FOLDER = Path(__file__).resolve().parent.parent / ".github" / "workflows"
NAMES = ("benchmarks.yml", "benchmarks-comment.yml")
BASE, HEAD = "1a2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d", "0f2b3c4d5e6f7a8b9c0d1a2b3c4d5e6f7a8b9c0d"


def load(name):
    workflow = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    # "on" is a boolean to YAML 1.1.
    workflow["on"] = workflow.pop(True)
    (workflow["job"],) = workflow["jobs"].values()
    return workflow


CHECK, COMMENT = map(load, NAMES)


def scripts(workflow):
    return [step["run"] for step in workflow["job"]["steps"] if "run" in step]


def uses(workflow, action):
    return [step for step in workflow["job"]["steps"] if step.get("uses", "").startswith(f"{action}@")]


# --- what they may do -------------------------------------------------------------------------------------------------


def test_the_check_reads_only_and_has_no_secret():
    assert CHECK["permissions"] == {"contents": "read"}
    assert "permissions" not in CHECK["job"]
    assert set(CHECK["on"]) == {"pull_request"}
    text = (FOLDER / NAMES[0]).read_text()
    assert not re.search(r"\bsecrets\b *[.\[]|github\.token|GH_TOKEN|GITHUB_TOKEN", text)


def test_the_comment_may_write_to_pull_requests_only():
    assert COMMENT["permissions"] == {}
    assert COMMENT["job"]["permissions"] == {"actions": "read", "contents": "read", "pull-requests": "write"}
    assert COMMENT["on"] == {"workflow_run": {"workflows": [CHECK["name"]], "types": ["completed"]}}
    assert not re.search(r"\bsecrets\b *[.\[]", (FOLDER / NAMES[1]).read_text())


def test_only_the_steps_that_ask_github_have_the_token():
    for step in COMMENT["job"]["steps"]:
        asks = "gh api" in step.get("run", "")
        assert ("GH_TOKEN" in step.get("env", {})) == asks, step
    assert "GH_TOKEN" not in COMMENT["job"]["env"]


@pytest.mark.parametrize("name", NAMES)
def test_every_action_is_pinned_by_its_commit_with_the_version_beside_it(name):
    lines = [line for line in (FOLDER / name).read_text().splitlines() if re.search(r"\buses:", line)]
    assert lines
    for line in lines:
        assert re.fullmatch(r" +(- )?uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line


def test_an_action_has_the_same_commit_everywhere():
    pins = {}
    for path in FOLDER.glob("*.yml"):
        for action, commit in re.findall(r"uses: ([^@\s]+)@(\S+)", path.read_text()):
            pins.setdefault(action, set()).add(commit)
    assert all(len(commits) == 1 for commits in pins.values()), pins


@pytest.mark.parametrize("workflow", [CHECK, COMMENT], ids=NAMES)
def test_no_expression_is_pasted_into_a_script(workflow):
    assert scripts(workflow)
    for script in scripts(workflow):
        assert "${{" not in script


@pytest.mark.parametrize("workflow", [CHECK, COMMENT], ids=NAMES)
def test_no_checkout_keeps_credentials(workflow):
    checkouts = uses(workflow, "actions/checkout")
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_the_comment_never_checks_out_what_the_pull_request_has():
    (checkout,) = uses(COMMENT, "actions/checkout")
    assert checkout["with"] == {"persist-credentials": False, "ref": "${{ github.event.repository.default_branch }}"}
    text = (FOLDER / NAMES[1]).read_text()
    assert not re.search(
        r"git (fetch|checkout|clone|pull|switch|worktree)|gh (pr|repo)|refs/pull|github\.head_ref", text
    )
    # What is installed is that checkout, and nothing that was downloaded is run.
    assert re.findall(r"pip\S* install (.*)", text) == ["-q -c constraints.txt ."]


def test_only_the_json_is_handed_over():
    (upload,) = uses(CHECK, "actions/upload-artifact")
    assert upload["with"]["path"] == "check.json"
    # Also where the check ended with 1 or 3.
    assert upload["if"] == "${{ !cancelled() && hashFiles('check.json') != '' }}"


def test_the_marker_and_the_size_are_those_of_the_code():
    assert f'startswith("{MARKER}")' in scripts(COMMENT)[-1]
    assert int(COMMENT["job"]["env"]["MOST_BYTES"]) == comment.LIMIT


# --- what the scripts do, with a gh, a gradmark and a git of our own --------------------------------------------------


def bash(script, folder, **environment):
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "RUNNER_TEMP": str(folder), **environment}
    for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY"):
        variables[name] = str(folder / name)
        (folder / name).touch()
    return subprocess.run(["bash", "-e", "-c", script], cwd=folder, env=variables, capture_output=True, text=True)


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def step(workflow, name):
    (found,) = [step for step in workflow["job"]["steps"] if step.get("name") == name]
    return found["run"]


@pytest.mark.parametrize(
    ("code", "message"), [(0, ""), (1, "slower"), (2, "ended with 2"), (3, "Could not measure"), (130, "130")]
)
def test_the_job_ends_as_the_check_does(tmp_path, code, message):
    executable(
        tmp_path / ".venv/bin/gradmark", f'#!/bin/sh\necho "$@" > asked\necho "# table" > check.md\nexit {code}\n'
    )
    done = bash(step(CHECK, "gradmark check"), tmp_path, BASE="b", HEAD_SHA="h")
    assert done.returncode == code, done.stderr
    assert message in done.stdout
    assert bool(message) == ("::error::" in done.stdout)
    assert (tmp_path / "asked").read_text() == (
        "check b h -b ^(?!large_matrices\\.) --markdown check.md --json check.json\n"
    )
    assert (tmp_path / "GITHUB_STEP_SUMMARY").read_text() == "# table\n"


@pytest.mark.parametrize(
    ("labeled", "changed", "expected"), [("true", 0, True), ("false", 1, True), ("false", 0, False)]
)
def test_a_label_or_a_path_asks_for_the_check(tmp_path, labeled, changed, expected):
    executable(tmp_path / "bin/git", f'#!/bin/sh\n[ "$1" = merge-base ] && echo fork && exit 0\nexit {changed}\n')
    done = bash(step(CHECK, "Is it asked for?"), tmp_path, BASE="b", HEAD_SHA="h", LABELED=labeled)
    assert done.returncode == 0, done.stderr
    output = (tmp_path / "GITHUB_OUTPUT").read_text().splitlines()
    assert output == ["base=fork", *(["check=true"] if expected else [])]


GH = """#!/usr/bin/env python3
import pathlib, sys
arguments = sys.argv[1:]
with open("asked", "a") as log:
    log.write(" ".join(arguments) + "\\n")
path = next(argument for argument in arguments if argument.startswith("repos/"))
name = path.split("?")[0].replace("/", "_")
if "--input" not in arguments:
    sys.stdout.buffer.write(pathlib.Path("answers", name).read_bytes())
"""

needs_tools = pytest.mark.skipif(not (shutil.which("jq") and shutil.which("unzip")), reason="jq or unzip is missing")


def github(folder, **answers):
    executable(folder / "bin/gh", GH)
    (folder / "answers").mkdir()
    for name, content in answers.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / "answers" / f"repos_o_r_{name}").write_bytes(data)


@needs_tools
@pytest.mark.parametrize(
    ("heads", "expected"), [([HEAD, BASE], "number=10"), ([BASE], ""), ([], ""), ([HEAD, HEAD], "")]
)
def test_the_pull_request_is_the_one_open_with_this_commit(tmp_path, heads, expected):
    github(tmp_path, pulls=[{"number": 10 + i, "head": {"sha": sha}} for i, sha in enumerate(heads)])
    done = bash(step(COMMENT, "Which pull request?"), tmp_path, REPOSITORY="o/r", HEAD_SHA=HEAD)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "GITHUB_OUTPUT").read_text().strip() == expected


def zipped(tmp_path, **files):
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("_", "."), content)
    return path.read_bytes()


def fetch(tmp_path, archive, size):
    artifacts = {"artifacts": [{"id": 7, "size_in_bytes": size}]} if archive else {"artifacts": []}
    github(tmp_path, actions_runs_5_artifacts=artifacts, actions_artifacts_7_zip=archive)
    return bash(
        step(COMMENT, "Fetch the results"),
        tmp_path,
        REPOSITORY="o/r",
        RUN_ID="5",
        MOST_BYTES=COMMENT["job"]["env"]["MOST_BYTES"],
    )


@needs_tools
def test_only_the_json_is_unpacked_and_no_more_than_is_read(tmp_path):
    archive = zipped(tmp_path, check_json=b"x" * (20 * comment.LIMIT), evil_sh=b"evil")
    done = fetch(tmp_path, archive, len(archive))
    assert (tmp_path / "check.json").stat().st_size == comment.LIMIT + 1
    assert not (tmp_path / "evil.sh").exists()
    assert done.returncode == 0, done.stderr
    assert comment.main([str(tmp_path / "check.json")]) == comment.REFUSED


@needs_tools
def test_a_large_artifact_is_not_fetched_and_none_is_no_failure(tmp_path):
    for name, archive, size, code in (("large", b"x", comment.LIMIT + 1, 1), ("none", b"", 0, 0)):
        folder = tmp_path / name
        folder.mkdir()
        assert fetch(folder, archive, size).returncode == code
        assert not (folder / "check.zip").exists()
        assert (folder / "GITHUB_OUTPUT").read_text() == ""


OURS = {"id": 3, "user": {"login": "github-actions[bot]"}, "body": f"{MARKER}\nold"}


@needs_tools
@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        ([], "--method POST repos/o/r/issues/9/comments"),
        ([{**OURS, "id": 2, "user": {"login": "octocat"}}], "--method POST repos/o/r/issues/9/comments"),
        (
            [{**OURS, "id": 2, "body": f"x {MARKER}"}, {**OURS, "body": None}],
            "--method POST repos/o/r/issues/9/comments",
        ),
        ([{**OURS, "id": 2, "body": "other"}, OURS, {**OURS, "id": 4}], "--method PATCH repos/o/r/issues/comments/3"),
    ],
)
def test_one_comment_of_ours_is_updated_or_else_posted(tmp_path, comments, expected):
    github(tmp_path, issues_9_comments=comments)
    (tmp_path / "comment.md").write_text('"quoted" $HOME `x`\nüber\n')
    done = bash(step(COMMENT, "Post or update"), tmp_path, REPOSITORY="o/r", NUMBER="9")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().splitlines()[-1] == f"api {expected} --input body.json --silent"
    assert json.loads((tmp_path / "body.json").read_text()) == {"body": '"quoted" $HOME `x`\nüber\n'}


# --- the command that makes the comment -------------------------------------------------------------------------------

REPORT = Report(
    "project",
    Revision("main", BASE),
    Revision("@octocat `x`", HEAD),
    "head",
    0.03,
    0.99,
    (Comparison("suite.time_x", (), "serial", results.SLOWER, ratio=1.1, low=1.05, high=1.15, rounds=9),),
)


def written(tmp_path, content):
    path = tmp_path / "check.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


def test_the_command_writes_markdown_to_stdout(tmp_path):
    command = [
        sys.executable,
        "-m",
        "gradmark.tracking.check.comment",
        "--head",
        HEAD,
        written(tmp_path, record(REPORT)),
    ]
    # Even where the locale has no Unicode.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (comment.WRITTEN, b"")
    text = done.stdout.decode("utf-8")
    assert text.startswith(f"{MARKER}\n\n## gradmark check: 1 of 1 benchmark slower\n")
    assert r"`@octocat \x60x\x60`" in text
    assert "evidence for a reader, no proof" in text


EVIL = "::add-mask::evil"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (EVIL.encode(), "no JSON"),
        (b"[" * 1_000_000, "no JSON"),
        (b"1" * 100_000, "no JSON"),
        (b"[]", "an object"),
        ({**record(REPORT), "notes": EVIL}, "notes: a list"),
        ({**record(REPORT), "suite": EVIL}, "suite: one of"),
        ({**record(REPORT), "head": {"name": "x", "commit": BASE, "uncommitted": False}}, "another commit"),
        (b" " * (comment.LIMIT + 1), "larger than"),
        (json.dumps(record(REPORT)).replace("1.1,", "NaN,").encode(), "finite number"),
        (json.dumps(record(REPORT)).replace("1.1,", "1e999,").encode(), "finite number"),
    ],
)
def test_what_is_no_report_of_that_commit_is_refused_without_repeating_it(tmp_path, capfd, content, message):
    assert comment.main(["--head", HEAD, written(tmp_path, content)]) == comment.REFUSED
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err
    assert "evil" not in err
    assert len(err.splitlines()) == 1


def test_a_file_that_is_not_there_is_refused(tmp_path, capfd):
    assert comment.main([str(tmp_path / "none.json")]) == comment.REFUSED
    assert "No such file" in capfd.readouterr().err


def test_the_largest_file_that_is_read_gives_a_comment_that_github_takes(tmp_path, capfd):
    data = record(REPORT)
    data["benchmarks"] *= 5000
    assert len(json.dumps(data)) < comment.LIMIT
    assert comment.main([written(tmp_path, data)]) == comment.WRITTEN
    assert len(capfd.readouterr().out) < 65_536
