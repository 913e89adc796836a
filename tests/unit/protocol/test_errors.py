import pickle

import pytest

from picloud_jupyter.protocol import errors

CLASSES = sorted(errors.BY_CODE.values(), key=lambda c: c.__name__)


def test_codes_are_unique_and_statuses_are_errors():
    assert len({c.code for c in CLASSES}) == len(CLASSES) > 15
    assert all(400 <= c.http_status < 600 for c in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_each_error_survives_pickle_and_wire(cls):
    error = cls("what happened", 7, hint="do this", reason="oom")
    for back in (
        pickle.loads(pickle.dumps(error)),
        errors.error_from_wire(errors.error_to_wire(error)),
    ):
        assert type(back) is cls
        assert str(back) == str(error)
        assert (back.jid, back.status, back.retry, back.reason) == (
            7,
            cls.http_status,
            cls.retryable,
            "oom",
        )


@pytest.mark.parametrize("cls", CLASSES)
def test_docstring_says_when_it_is_raised(cls):
    assert cls.__doc__
    assert cls.__doc__.startswith(("Raised", "Base of"))


def test_unknown_codes_become_the_root():
    assert (
        type(errors.error_from_wire({"error": {"code": "new", "message": "m"}}))
        is errors.CloudException
    )
    assert "no text" in str(errors.error_from_wire({}))


@pytest.mark.parametrize(
    "value", [{}, {"error": None}, {"error": [1]}, {"error": "no"}, {"error": 5}]
)
def test_error_from_wire_when_there_is_none_in_it_says_so(value):
    assert "no text" in str(errors.error_from_wire(value))
