"""The command: exit codes, what goes to which stream, and that no user sees a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gradmark
from gradmark import backends, catalog, cli, console, verification, workloads
from gradmark.verification import Check


def run(capsys, *arguments):
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, " ".join(captured.err.split())


def refused_by_argparse(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return stop.value.code, " ".join(capsys.readouterr().err.split())


def check(worst=1.0, operation="relu", target="numpy", **other):
    fields = {"operation_pass": "forward", "dtype": "float32", "allowed": 4.0, "where": "x = 1.25"}
    return Check(operation=operation, target=target, worst=worst, **{**fields, **other})


class Verification:
    """Stands in for gradmark.verification.verify."""

    def __init__(self):
        self.checks = [check()]
        self.asked = None
        self.interrupt = False

    def __call__(self, operations, targets, dtypes):
        self.asked = (list(operations), list(targets), list(dtypes))
        yield from self.checks
        if self.interrupt:
            raise KeyboardInterrupt


@pytest.fixture
def fake(monkeypatch):
    fake = Verification()
    monkeypatch.setattr(verification, "verify", fake)
    return fake


def no_torch(name, device="cpu"):
    return "torch is not installed: pip install 'gradmark[torch]'" if name == "torch" else None


# --- verify


def test_verify_passes(capsys, fake):
    code, out, _ = run(capsys, "verify", "relu")
    assert code == 0
    assert "1 checks, 0 failed" in out
    assert fake.asked[0] == ["relu"]


def test_verify_asks_for_everything_that_is_usable_by_default(capsys, fake):
    run(capsys, "verify")
    operations, targets, dtypes = fake.asked
    assert operations == list(catalog.OPERATIONS)
    assert targets == [
        name for name, t in workloads.TARGETS.items() if backends.why_unusable(t.backend, t.device) is None
    ]
    assert set(dtypes) == {"float16", "bfloat16", "float32", "float64"}


def test_one_failure_is_exit_code_1(capsys, fake):
    fake.checks = [check(), check(worst=4.1, operation="gelu")]
    code, out, _ = run(capsys, "verify")
    assert code == 1
    assert "FAIL" in out
    assert "2 checks, 1 failed" in out


@pytest.mark.parametrize("worst", [float("nan"), float("inf")])
def test_an_error_that_is_no_number_fails_and_is_valid_json(capsys, fake, worst):
    fake.checks = [check(worst=worst)]
    code, out, _ = run(capsys, "verify", "relu", "--json", "-")
    assert code == 1
    (record,) = json.loads(out)["checks"]
    assert record["worst"] is None
    assert record["passed"] is False


def test_an_unusable_backend_is_reported_but_does_not_fail(capsys, fake, monkeypatch):
    monkeypatch.setattr(gradmark, "why_unusable", no_torch, raising=False)
    code, out, _ = run(capsys, "verify", "relu")
    assert code == 0
    assert "torch was not verified: torch is not installed" in out
    assert "torch" not in fake.asked[1]


def test_an_unusable_backend_that_was_asked_for_is_an_error(capsys, fake, monkeypatch):
    monkeypatch.setattr(gradmark, "why_unusable", no_torch, raising=False)
    code, out, err = run(capsys, "verify", "--backend", "numpy,torch")
    assert code == 2
    assert out == ""
    assert "torch is not installed" in err
    assert fake.asked is None


def test_nothing_verified_is_an_error(capsys, fake):
    fake.checks = []
    code, _, err = run(capsys, "verify", "relu", "--backend", "numba", "--dtype", "float16")
    assert code == 2
    assert "nothing could be verified for relu" in err
    assert "numba takes float32, float64" in err


def test_an_operation_that_was_asked_for_and_has_no_check_is_an_error(capsys, fake):
    code, out, err = run(capsys, "verify", "relu", "zeros")
    assert code == 2
    assert "Without a comparison here: zeros" in out
    assert "nothing could be verified for zeros" in err


def test_an_operation_without_a_check_is_named_where_all_were_asked_for(capsys, fake):
    code, out, _ = run(capsys, "verify")
    assert code == 0
    assert "Without a comparison here: sigmoid" in out


def test_ctrl_c_prints_the_finished_checks(capsys, fake):
    fake.interrupt = True
    code, out, err = run(capsys, "verify")
    assert code == 130
    assert "1 checks, 0 failed" in out
    assert "interrupted" in err


def test_ctrl_c_before_anything(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_backends", interrupted)
    assert run(capsys, "backends") == (130, "", "interrupted")


def test_notes_and_units_are_footnotes(capsys, fake):
    fake.checks = [check(note="because of this"), check(note="because of this"), check(unit="ULP of the sum")]
    _, out, _ = run(capsys, "verify", "relu")
    assert out.count("because of this") == 1
    assert out.count("pass[1]") == 2
    assert "[2] counted in ULP of the sum" in out


def test_the_verify_table_fits_eighty_columns(capsys, fake):
    fake.checks = [
        check(operation="batch_norm_inference", operation_pass="backward (alpha)", target="torch-cuda", worst=1234567.8,
              dtype="bfloat16", where="x = -0.751791537123456, beta = -0.5"),
    ]  # fmt: skip
    _, out, _ = run(capsys, "verify")
    assert max(map(len, out.splitlines())) <= 80
    assert "1.23e+06" in out


def test_verify_writes_a_result_file_and_the_table(capsys, fake, tmp_path):
    file = tmp_path / "v.json"
    code, out, _ = run(capsys, "verify", "relu", "--json", str(file))
    assert code == 0
    assert "1 checks" in out
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["schema"], record["kind"]) == (1, "verify")
    assert record["checks"][0] == {
        "operation": "relu", "pass": "forward", "backend": "numpy", "dtype": "float32", "worst": 1.0, "allowed": 4.0,
        "where": "x = 1.25", "unit": "ULP", "note": "", "passed": True,
    }  # fmt: skip


def test_verify_really_compares():
    done = subprocess.run(
        [sys.executable, "-m", "gradmark.cli", "verify", "relu", "--backend", "numpy"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "0 failed" in done.stdout


# --- choose


def test_choose_prints_a_table_and_writes_a_result_file(capsys, tmp_path):
    file = tmp_path / "c.json"
    arguments = ("choose", "--ops", "relu", "--sizes", "1e4", "--budget", "20s", "--no-save")
    code, out, _ = run(capsys, *arguments, "--json", str(file))
    assert code == 0
    assert "relu" in out
    record = json.loads(file.read_text(encoding="utf-8"))
    assert (record["schema"], record["kind"], record["budget_seconds"]) == (1, "choose", 20.0)
    assert [result["pass"] for result in record["results"]] == ["forward", "backward"]
    assert {result["elements"] for result in record["results"]} == {9984}


def test_json_to_stdout_is_json_and_nothing_else(capsys):
    arguments = ("choose", "--ops", "relu", "--sizes", "cache", "--budget", "20", "--no-save")
    code, out, _ = run(capsys, *arguments, "--json", "-")
    assert code == 0
    assert json.loads(out)["schema"] == 1


def test_a_budget_that_measures_nothing_is_exit_code_2(capsys):
    code, out, _ = run(capsys, "choose", "--ops", "gelu", "--budget", "0.01s", "--no-save")
    assert code == 2
    assert "not measured" in out


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("2m", 120), ("1m30s", 90), ("45", 45), ("1.5m", 90), (" 2m ", 120)]
)
def test_durations(text, seconds):
    assert console.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0s", "-3s", "3x", "2h", "nan", "inf", "1e3", "90000s", "m"])
def test_what_is_no_duration(capsys, text):
    code, err = refused_by_argparse(capsys, "choose", f"--budget={text}")
    assert code == 2
    assert "give 90s, 2m or 1m30s" in err


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_on_a_real_choose_prints_and_exits_130():
    process = subprocess.Popen(
        [sys.executable, "-m", "gradmark.cli", "choose", "--budget", "60s", "--no-save"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A process started in the background of a shell ignores SIGINT, and hands that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    time.sleep(8)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    # A machine that is too busy to have begun within 8 s has nothing to print.
    assert "(interrupted)" in out or "interrupted" in err


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("verify", "gelo"), "unknown operation 'gelo'; accepted: sigmoid, tanh"),
        (("verify", "--backend", "jax"), "unknown backend 'jax'; accepted: numpy, numba, torch"),
        (("verify", "--dtype", "int8"), "unknown dtype 'int8'; accepted: float16"),
        (("choose", "--ops", "relu,gelo,x"), "unknown operation 'gelo', 'x'; accepted"),
        (("choose", "--dtype", "float"), "unknown dtype 'float'; accepted: float16"),
        (("choose", "--sizes", "huge"), "unknown size 'huge'; accepted: cache, memory"),
        (("choose", "--json", "/no/such/folder/x.json"), "folder /no/such/folder does not exist"),
        (("verify", "--json", "/"), "this is a folder"),
    ],
)
def test_unknown_names_list_what_is_accepted(capsys, arguments, said):
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert said in err


@pytest.mark.parametrize(
    "arguments", [(), ("no-such-command",), ("choose", "--ops", ","), ("choose", "extra"), ("verify", "--x")]
)
def test_wrong_usage_is_exit_code_2(capsys, arguments):
    code, err = refused_by_argparse(capsys, *arguments)
    assert code == 2
    assert "usage: gradmark" in err


# --- streams


def test_backends_names_each_with_the_reason(capsys, monkeypatch):
    monkeypatch.setattr(gradmark, "why_unusable", no_torch, raising=False)
    code, out, _ = run(capsys, "backends")
    assert code == 0
    assert "torch is not installed" in " ".join(out.split())
    assert all(name in out for name in workloads.TARGETS)


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"gradmark {gradmark.__version__}\n"


def test_start_up_is_light():
    probe = (
        "import sys, gradmark.cli as c; c._parser(); print([m for m in ('numpy', 'rich', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_color_is_honoured(capsys, fake, monkeypatch):
    fake.checks = [check(worst=99.0)]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    red = "31m"
    assert red in run(capsys, "verify", "relu")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert red not in run(capsys, "verify", "relu")[1]


@pytest.mark.parametrize("arguments", [("backends",), ("verify", "relu", "--backend", "numpy", "--json", "-")])
def test_a_reader_that_left_is_no_traceback(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "gradmark.cli", *arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 141
    assert done.stderr.strip() == ""


# --- the README


def _readme_tables():
    import importlib.util
    from pathlib import Path

    path = Path(__file__).parent.parent / "benchmarks" / "readme_tables.py"
    spec = importlib.util.spec_from_file_location("readme_tables", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_without_result_files_say_so(tmp_path):
    assert _readme_tables().tables(tmp_path).count("Not yet measured.") == 5


def test_tables_are_made_from_the_result_files(capsys, fake, tmp_path):
    fake.checks = [check(worst=1.5), check(worst=99.0, operation="gelu"), check(worst=float("inf"), operation="elu")]
    run(capsys, "verify", "--json", str(tmp_path / "verify.json"))
    arguments = ("choose", "--ops", "relu", "--sizes", "cache", "--budget", "20s", "--no-save")
    run(capsys, *arguments, "--json", str(tmp_path / "choose.json"))
    text = _readme_tables().tables(tmp_path)
    assert "| relu | forward | 1.5 |" in text
    assert "| gelu | forward | **99** |" in text
    assert "| elu | forward | **not finite** |" in text
    assert "3 comparisons, 2 beyond" in text
    assert re.search(r"\| relu \| backward \| \S+ 2\^16 \| 2\^16 \|", text)
    assert "gradmark choose --ops relu" in text


def test_losses_stand_beside_what_the_machine_code_says():
    counts = {"benchmarks": 8, "slower": 7, "faster": 0, "same": 1, "undecided": 0, "failed": 0}
    changes = [{"kernel": name, "benchmark": name, "what": "lost vectorization: 16 lanes → 1"} for name in ("a", "b")]
    part = {
        "upcast": {"check": counts, "kernel_changes": []},
        "unfused": {"check": counts, "kernel_changes": []},
        "scalar": {"check": counts, "kernel_changes": changes},
    }
    text = "\n".join(_readme_tables()._lost(part))
    assert "| float32: computed in float64 | 8 | 7 | 0 | 1 | 0 | 0 | nothing |" in text
    assert "| the vectorization | 8 | 7 | 0 | 1 | 0 | 0 | lost vectorization: 16 lanes → 1 (2 kernels) |" in text
    assert "\n".join(_readme_tables()._lost(None)).count("not yet measured") == 3


def test_a_result_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "verify.json").write_text('{"schema": 1, "kind": "choose"}', encoding="utf-8")
    with pytest.raises(ValueError, match="gradmark verify --json"):
        _readme_tables().tables(tmp_path)


def test_operations_may_be_separated_by_commas(capsys):
    code, _, errors = run(capsys, "verify", "relu,gelu2", "tanh")
    assert code == 2
    assert "unknown operation 'gelu2'" in errors


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="/proc is a folder that says only at the first file")
def test_a_folder_that_takes_no_file_is_said_before_anything_is_measured(capsys, monkeypatch):
    monkeypatch.setattr(verification, "verify", lambda *arguments: pytest.fail("it measured"))
    code, _, errors = run(capsys, "verify", "relu", "--json", "/proc/found.json")
    assert code == 2
    assert "--json /proc/found.json: no file can be made there" in errors


def test_the_package_is_the_command():
    done = subprocess.run([sys.executable, "-m", "gradmark", "backends"], capture_output=True, text=True, check=True)
    assert "numpy" in done.stdout
