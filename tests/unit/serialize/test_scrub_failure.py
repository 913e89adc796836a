"""Failures of jobs that have secrets."""

from picloud_jupyter.serialize.failure import (
    MAX_FRAME_BYTES,
    dump_failure,
    load_failure,
    scrub_failure,
)

SECRETS = {"TOKEN": "s3cret-value", "SHORT": "1"}


def test_scrub_when_the_text_holds_a_secret_then_it_travels_as_words_without_it():
    data = dump_failure(ValueError("401 for s3cret-value"), "Traceback: s3cret-value")
    clean = scrub_failure(data, SECRETS)
    assert b"s3cret" not in clean
    failure = load_failure(clean)
    assert (failure.message, failure.traceback) == (
        "401 for [secret TOKEN]",
        "Traceback: [secret TOKEN]",
    )
    assert failure.exception is None


def test_scrub_when_only_the_exception_holds_it_then_the_words_stay():
    error = KeyError("denied")
    error.request = {"Authorization": "s3cret-value"}  # type: ignore[attr-defined]
    data = dump_failure(error, "Traceback: denied", message="denied")
    assert b"s3cret" in data
    clean = scrub_failure(data, SECRETS)
    assert b"s3cret" not in clean
    assert load_failure(clean).message == "denied"


def test_scrub_when_there_is_no_secret_in_it_then_nothing_changes():
    data = dump_failure(ValueError("line 1"), "Traceback: line 1")
    assert scrub_failure(data, SECRETS) == data


def test_scrub_when_names_are_longer_than_the_values_then_still_what_a_body_holds():
    data = dump_failure(ValueError("abcd" * 9000), "abcd" * 9000)
    clean = scrub_failure(data, {"A_LONG_NAME_OF_A_VARIABLE": "abcd"})
    assert b"abcd" not in clean
    assert len(clean) <= MAX_FRAME_BYTES
    assert load_failure(clean).message.startswith("[secret A_LONG_NAME_OF_A_VARIABLE]")
