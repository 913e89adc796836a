"""What a bundle for bug reports leaves out."""

import json
import os

import pytest

from picloud_jupyter.cli.bundle_parts import (
    LOG_BYTES,
    Redactor,
    home_listing,
    log_ends,
    store_check,
    variables_set,
)


def test_redactor_when_values_are_known_then_they_are_taken_out_wherever_they_stand(tmp_path):
    (tmp_path / "secrets").mkdir()
    kept = {"secrets": {"DB": [1, 2.0, 'pass"word\n2']}}
    (tmp_path / "secrets" / "1000.json").write_text(json.dumps(kept))
    (tmp_path / "secret").write_bytes(bytes(range(32)))
    redactor = Redactor.of(
        {"AWS_SECRET_ACCESS_KEY": "hidden-value", "HOME": "/home/x"}, tmp_path
    )
    text = json.dumps({"a": 'pass"word\n2', "b": "xhidden-valuex", "c": bytes(range(32)).hex()})
    assert json.loads(redactor.clean(text)) == {"a": "***", "b": "x***x", "c": "***"}
    assert redactor.clean("/home/x") == "/home/x"


@pytest.mark.parametrize(
    "text",
    [
        "pcj_1.2.3.ab.cd",
        "Authorization: Bearer abcdef",
        "postgresql://ann:pa55@db/x",
        "postgresql://ann:to/pa55@db/x",
        "postgresql://db/x?user=ann&password=pa55&sslmode=require",
    ],
)
def test_redactor_when_something_looks_like_a_key_then_it_is_taken_out(text):
    cleaned = Redactor(()).clean(text)
    assert "***" in cleaned
    assert not any(word in cleaned for word in ("pcj_1", "abcdef", "pa55"))


@pytest.mark.parametrize("is_ascii", [True, False])
def test_redactor_when_a_value_has_lines_then_also_as_repr_and_json_write_it(is_ascii):
    value = 'pä"ss\nword'
    text = json.dumps({"a": value, "b": f"ValueError({value!r})"}, ensure_ascii=is_ascii)
    cleaned = Redactor.of({"A_TOKEN": value}, None).clean(text)
    assert json.loads(cleaned) == {"a": "***", "b": "ValueError('***')"}


def test_redactor_when_a_file_of_secrets_is_damaged_then_its_values_are_still_known(tmp_path):
    (tmp_path / "secrets").mkdir()
    whole = json.dumps({"last_version": 1, "secrets": {"DB": [1, 2.0, "first-value"]}})
    (tmp_path / "secrets" / "1000.json").write_text(whole[:-6])
    (tmp_path / "secrets" / "1001.json").write_text(whole.replace("first", "other"))
    found = Redactor.of({}, tmp_path)
    assert found.clean("first-value".removesuffix("ue") + " and other-value") == "*** and ***"
    assert found.clean("secrets") == "secrets"


def test_redactor_when_values_are_short_then_texts_stay_readable():
    assert Redactor.of({"API_KEY": "1"}, None).clean("1 of 11") == "1 of 11"


def test_redactor_when_one_value_holds_another_then_the_longer_goes_first():
    found = Redactor.of({"A_KEY": "secret", "B_KEY": "secret-and-more"}, None)
    assert found.clean("secret-and-more") == "***"


def test_variables_are_named_without_values():
    assert variables_set({"PICLOUD_HOME": "/x", "PATH": "/bin"}) == "PICLOUD_HOME"


def test_listing_when_folders_have_files_then_names_of_these_are_not_told(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "private-name").write_bytes(b"x" * 5000)
    (tmp_path / "store.db").write_bytes(b"12345")
    found = home_listing(tmp_path)
    assert found["blobs/"]["files"] == 1
    assert found["store.db"] == {"bytes": 5}
    assert "private-name" not in json.dumps(found)


def test_listing_when_a_file_goes_meanwhile_then_the_others_are_told(tmp_path, monkeypatch):
    (tmp_path / "gone").touch()
    (tmp_path / "store.db").touch()
    entries = list(os.scandir(tmp_path))
    (tmp_path / "gone").unlink()
    monkeypatch.setattr(os, "scandir", lambda _home: entries)
    assert set(home_listing(tmp_path)) == {"store.db", "(disk)"}


def test_log_when_long_then_its_end_from_a_whole_line_on(tmp_path):
    line = b"x" * 99 + b"\n"
    (tmp_path / "service.log").write_bytes(line * (LOG_BYTES // 100 + 50))
    text = log_ends(tmp_path)["service.log"]
    assert len(text) <= LOG_BYTES
    assert set(text.splitlines()) == {"x" * 99}


def test_store_when_there_is_none_or_a_damaged_one_then_said_and_not_changed(tmp_path):
    path = tmp_path / "store.db"
    assert store_check(path) == {"there": False}
    path.write_bytes(b"no database at all" * 100)
    assert store_check(path)["damage"] == ["file is not a database"]
    assert path.read_bytes() == b"no database at all" * 100
