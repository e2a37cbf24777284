"""`primezero bench wire` on tiny tickets, between real processes."""

import json
import socket
from pathlib import Path

import pytest

from launch.bench.wire_parts import in_messages
from launch.cli import main
from launch.processes import free_port
from shared.messages import MAX_TICKETS_PER_MESSAGE

FIGURES = {
    *("vs_raw_zmq", "vs_raw_zmq_min", "vs_raw_zmq_max", "vs_raw_zmq_same_messages", "vs_raw_zmq_message_per_ticket"),
    *("tickets_per_s", "mb_per_s", "ticket_bytes", "messages", "worker_cpu", "learner_cpu", "learner_stream_thread"),
}
PARTS = {"encode", "decode", "check", "journal", "collect"}


@pytest.mark.integration
def test_the_report_has_every_figure_of_every_arm(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = "--tickets 12 --tiny-tickets 24 --attempts 3 --prompt-tokens 8 --response-tokens 40"
    limits = f"--rounds 2 --batch-kib 2 --port {free_port()}"
    arguments = ["bench", "wire", *sizes.split(), *limits.split(), "--json", "wire.json"]
    assert main(arguments) == 0
    report = json.loads((tmp_path / "wire.json").read_text())
    assert (report["benchmark"], report["settings"]["transports"]) == ("wire", "ipc,tcp")
    results = {result["name"]: result for result in report["results"]}
    assert len(results) == len(report["results"])
    expected = {prefix + name for prefix in ("", "tcp.", "tiny.") for name in FIGURES}
    assert results.keys() == expected | PARTS | {f"tiny.{part}" for part in PARTS}
    values = {name: result["value"] for name, result in results.items()}
    for prefix, tickets in (("", 12), ("tcp.", 12), ("tiny.", 24)):
        assert 0 < values[f"{prefix}vs_raw_zmq_min"] <= values[f"{prefix}vs_raw_zmq"]
        assert values[f"{prefix}vs_raw_zmq"] <= values[f"{prefix}vs_raw_zmq_max"]
        assert tickets / 16 <= values[f"{prefix}messages"] <= tickets
        # The reference moves the same tickets; a batch's number takes a byte, whichever it is.
        assert results[f"{prefix}ticket_bytes"]["ratio"] == pytest.approx(1, abs=0.01)
        assert 0 < values[f"{prefix}learner_stream_thread"] <= values[f"{prefix}learner_cpu"]
    assert all(values[part] >= 0 for part in PARTS)
    assert [path.name for path in tmp_path.iterdir()] == ["wire.json"], "nothing is left behind"
    assert "vs_raw_zmq" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["--transports udp", "--rounds 0", "--attempts 0", "--batch-ms -1"])
def test_impossible_sizes_are_refused(wrong: str, capsys: pytest.CaptureFixture[str], tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "wire", *wrong.split()]) != 0
    assert wrong.split()[0] in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused_before_anything_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sizes = "--tickets 6 --tiny-tickets 0 --attempts 2 --prompt-tokens 8 --response-tokens 8 --rounds 1"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        second = taken.getsockname()[1]
        wire = ["bench", "wire", "--transports", "tcp", *sizes.split(), "--port", str(second - 1)]
        assert main(wire) == 1
        assert f"nothing can listen at port {second} of loopback" in capsys.readouterr().err
    assert main([*wire[:-1], "70000"]) == 1
    assert "--port" in capsys.readouterr().err


def test_messages_are_as_full_as_they_may_be():
    assert in_messages([b"1234", b"5678", b"9", b"x" * 20, b"y"], 8) == [
        [b"1234", b"5678"],
        [b"9"],
        [b"x" * 20],
        [b"y"],
    ]
    assert [len(m) for m in in_messages([b""] * 70, 8)] == [MAX_TICKETS_PER_MESSAGE, 6]
