"""`python -m benchmarks.same_weights`, over few elements."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks import same_weights

pytest.importorskip("numba")
pytest.importorskip("torch")


def test_all_backends_draw_the_same_bits(tmp_path, capsys):
    file = tmp_path / "found.json"
    assert same_weights.main(["--elements", "100003", "--json", str(file)]) == 0
    entries = json.loads(file.read_text())["entries"]
    assert len(entries) == 2 * len(same_weights.DISTRIBUTIONS)
    assert all(entry["different"] == {} and set(entry["backends"]) >= {"numpy", "numba", "torch"} for entry in entries)
    assert len({entry["digest"] for entry in entries}) == len(entries)
    assert capsys.readouterr().out.count("equal bits") == len(entries)


def test_the_stream_crosses_the_block_from_which_the_upper_half_of_the_counter_counts():
    fills = {"numpy": same_weights._fills()["numpy"]}
    for dtype, per_block in (("float32", 4), ("float64", 2)):
        entry = same_weights._compared(same_weights.Stream("uniform", dtype), 1000, fills, lambda elements: None)
        assert entry["first"] < per_block * 2**32 < entry["first"] + 1000


def test_one_other_bit_is_found(monkeypatch, capsys):
    fills = same_weights._fills()

    def with_another_bit(function, parameters, dtype, first, size):
        weights = fills["numpy"](function, parameters, dtype, first, size)
        # At the end of the first piece: in the middle of the stream.
        if dtype == "float64" and first + size == start + same_weights.PIECE:
            weights.view(np.uint64)[-1] ^= 1
        return weights

    start = 2 * 2**32 - 5000 // 2
    monkeypatch.setattr(same_weights, "PIECE", 2500)
    monkeypatch.setattr(same_weights, "_fills", lambda: {"numpy": fills["numpy"], "numba": with_another_bit})
    assert same_weights.main(["--elements", "5000"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert ["1 elements of numba differ" in line for line in lines] == ["float64" in line for line in lines]


def test_the_digest_does_not_depend_on_the_pieces(monkeypatch):
    stream, fills = same_weights.Stream("normal", "float32"), {"numpy": same_weights._fills()["numpy"]}
    digests = set()
    for piece in (1 << 22, 997):
        monkeypatch.setattr(same_weights, "PIECE", piece)
        digests.add(same_weights._compared(stream, 10_000, fills, lambda elements: None)["digest"])
    assert len(digests) == 1


@pytest.mark.parametrize("elements", ["0", "-1", str(2**41)])
def test_an_impossible_number_of_elements(elements, capsys):
    assert same_weights.main(["--elements", elements]) == 2
    assert "give 1 to 2⁴⁰" in capsys.readouterr().err


def test_a_file_that_is_something_else_is_kept(tmp_path, capsys):
    file = tmp_path / "notes.json"
    file.write_text('{"mine": 1}')
    assert same_weights.main(["--elements", "100", "--json", str(file)]) == 2
    assert "no result of this command" in capsys.readouterr().err
    assert file.read_text() == '{"mine": 1}'


def test_interrupted_it_keeps_what_was_finished(tmp_path):
    file = tmp_path / "found.json"
    command = [sys.executable, "-m", "benchmarks.same_weights", "--elements", "3000000", "--json", str(file)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        assert "equal bits" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == same_weights.INTERRUPTED
    finished = json.loads(file.read_text())["entries"]
    assert 1 <= len(finished) < 2 * len(same_weights.DISTRIBUTIONS)
