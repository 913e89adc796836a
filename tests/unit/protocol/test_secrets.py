"""Names and values of secrets, and how they are taken out of texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.secrets import (
    MAX_JOB_SECRETS,
    MAX_SECRET_BYTES,
    check_job_secrets,
    check_name,
    check_value,
    scrub,
)


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "a=b", "ü", "a" * 65, "../x", "a\n"])
def test_check_name_when_no_variable_could_be_called_that_then_it_is_refused(name):
    with pytest.raises(ValueError, match="name"):
        check_name(name)


@pytest.mark.parametrize(
    "value", ["", "a\0b", "x" * (MAX_SECRET_BYTES + 1), "hidden-part\udcff"]
)
def test_check_value_when_it_cannot_be_kept_then_the_words_do_not_show_it(value):
    with pytest.raises(ValueError, match="secret") as caught:
        check_value(value)
    assert "hidden-part" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_check_value_when_it_is_no_text_then_type_error():
    with pytest.raises(TypeError, match="bytes"):
        check_value(b"x")


def test_check_job_secrets_then_they_are_in_order_of_the_variables():
    assert check_job_secrets([("B", "x"), ("A", "y")]) == (("A", "y"), ("B", "x"))


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("PICLOUD_JID", "a")], "belong to the service"),
        ([("A", "x"), ("A", "y")], "twice"),
        ([(f"V{n}", "x") for n in range(MAX_JOB_SECRETS + 1)], "at most"),
        ([("A", "b c")], "letters"),
    ],
)
def test_check_job_secrets_when_they_cannot_be_given_then_it_says_why(pairs, words):
    with pytest.raises(ValueError, match=words):
        check_job_secrets(pairs)


@given(st.text(), st.text(min_size=4), st.text())
def test_scrub_then_the_value_is_not_in_the_text(before, value, after):
    if value in "[secret Z]":
        return
    assert f"{before}{value}{after}".count(value) >= 1
    found = scrub(f"<{value}>", {"Z": value})
    assert found == "<[secret Z]>"


def test_scrub_when_it_stands_as_repr_or_within_another_then_it_goes_too():
    key = "-----BEGIN\nab'c\n-----END"
    assert scrub(f"bad key {key!r}", {"K": key}).count("ab") == 0
    assert scrub("long-value", {"A": "long", "B": "long-value"}) == "[secret B]"


def test_scrub_when_a_value_is_very_short_then_the_text_stays():
    assert scrub("error 1 in line 11", {"N": "1"}) == "error 1 in line 11"
