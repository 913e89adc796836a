"""Failures of jobs that have secrets."""

import pytest

from picloud_jupyter.serialize.failure import MAX_FRAME_BYTES, dump_failure, load_failure

SECRETS = {"TOKEN": "s3cret-value", "SHORT": "1"}


def test_dump_when_the_text_holds_a_secret_then_it_travels_as_words_without_it():
    error = ValueError("401 for s3cret-value")
    data = dump_failure(error, "Traceback: s3cret-value", secrets=SECRETS)
    assert b"s3cret" not in data
    failure = load_failure(data)
    assert (failure.message, failure.traceback) == (
        "401 for [secret TOKEN]",
        "Traceback: [secret TOKEN]",
    )
    assert failure.exception is None


def test_dump_when_only_the_exception_holds_it_then_the_words_stay():
    error = KeyError("denied")
    error.request = {"Authorization": "s3cret-value"}  # type: ignore[attr-defined]
    assert b"s3cret" in dump_failure(error, "Traceback: denied", message="denied")
    data = dump_failure(error, "Traceback: denied", message="denied", secrets=SECRETS)
    assert b"s3cret" not in data
    assert load_failure(data).message == "denied"


def test_dump_when_there_is_no_secret_in_it_then_nothing_changes():
    error = ValueError("line 1")
    data = dump_failure(error, "Traceback: line 1", secrets=SECRETS)
    assert data == dump_failure(error, "Traceback: line 1")


@pytest.mark.parametrize("before", range(8180, 8200))
def test_dump_when_the_text_is_cut_in_a_secret_then_no_part_of_it_is_left(before):
    text = "x" * before + "s3cret-zzqq" + "y" * 40_000
    data = dump_failure(ValueError(text), text, secrets={"TOKEN": "s3cret-zzqq"})
    assert b"s3cr" not in data
    assert b"zqq" not in data


def test_dump_when_names_are_longer_than_the_values_then_still_what_a_body_holds():
    secrets = {"A_LONG_NAME_OF_A_VARIABLE": "abcd"}
    data = dump_failure(ValueError("abcd" * 9000), "abcd" * 9000, secrets=secrets)
    assert b"abcd" not in data
    assert len(data) <= MAX_FRAME_BYTES
    assert load_failure(data).message.startswith("[secret A_LONG_NAME_OF_A_VARIABLE]")
