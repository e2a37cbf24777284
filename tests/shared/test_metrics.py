import json

import pytest

from shared.metrics import MetricsLog, cut_records, write_json


def test_numbers_that_json_lacks_become_null(tmp_path):
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"a": float("nan"), "b": [float("inf"), 1.5]})
    log.close()
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize("torn", ["", '{"step": 4', '{"step": 4}', "[]\n", "\x00\x00\n"])
def test_records_are_cut_where_they_are_not_to_be_kept_or_torn(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    whole = "".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3))
    path.write_text(whole + torn)
    assert cut_records(path, lambda record: True) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert path.read_text() == whole
    assert cut_records(path, lambda record: record["step"] < 2) == [{"step": 1}]
    assert path.read_text() == '{"step": 1}\n'


def test_records_that_are_not_there_are_none(tmp_path):
    assert cut_records(tmp_path / "m.jsonl", lambda record: True) == []


def test_a_json_file_is_replaced_whole(tmp_path):
    write_json(tmp_path / "s.json", {"a": 1})
    write_json(tmp_path / "s.json", {"b": 2})
    assert json.loads((tmp_path / "s.json").read_text()) == {"b": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["s.json"]
