"""Reserved keywords: taken out, checked, refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.cloud.keywords import DEFAULT_OPTIONS, take_options
from picloud_jupyter.protocol.jobs import EndReason, NetworkPolicy, RetryPolicy


def take(func=None, environ=(), callbacks=True, **keywords):
    return take_options(keywords, func=func, environ=dict(environ), callbacks=callbacks)


def test_no_keywords_gives_the_defaults():
    keywords = {"a": 1}
    assert take_options(keywords, func=None, environ={}) is DEFAULT_OPTIONS
    assert keywords == {"a": 1}


@pytest.mark.parametrize(
    ("keyword", "field", "value"),
    [
        ({"_label": "x"}, "label", "x"),
        ({"_priority": 2}, "priority", 2),
        ({"_restartable": False}, "restartable", False),
        ({"_depends_on": 7}, "depends_on", ((7, 7),)),
        ({"_depends_on": [range(1, 4), 9]}, "depends_on", ((1, 3), (9, 9))),
        ({"_depends_on_errors": "ignore"}, "depends_on_errors", "ignore"),
        ({"_fast_serialization": 2}, "fast_serialization", 2),
        ({"_type": "f2"}, "core_type", "f2"),
        ({"_high_cpu": True}, "core_type", "c2"),
        ({"_type": "m1", "_cores": 4}, "cores", 4),
        ({"_env": 5}, "environment", "5"),
        ({"_vol": "/a:/b"}, "volumes", ("/a:/b",)),
        ({"_vol": ["/a:/b", "c"]}, "volumes", ("/a:/b", "c")),
        ({"_max_runtime": 2}, "max_runtime_seconds", 120.0),
        ({"_profile": 1}, "profile", True),
        ({"_secrets": ["B", "A"]}, "secrets", (("A", "A"), ("B", "B"))),
        ({"_secrets": "A"}, "secrets", (("A", "A"),)),
        ({"_secrets": {"VARIABLE": "A"}}, "secrets", (("VARIABLE", "A"),)),
        ({"_secrets": None}, "secrets", ()),
        ({"_gpu": 2}, "gpus", 2),
        ({"_gpu": 0}, "gpus", 0),
        ({"_kill_process": "yes"}, "kill_process", True),
        ({"_os_env_vars": {"B": "2", "A": "1"}}, "variables", (("A", "1"), ("B", "2"))),
        ({"_os_env_vars": ["HERE", "ABSENT"]}, "variables", (("HERE", "x"),)),
        ({"_network": "none"}, "network", NetworkPolicy.NONE),
        ({"_retries": 3}, "retries", RetryPolicy(3)),
        ({"_cache": True}, "cache", True),
        ({"_key": "order-17"}, "key", "order-17"),
    ],
)
def test_keyword_becomes_its_option(keyword, field, value):
    assert getattr(take(environ={"HERE": "x"}, **keyword), field) == value


def test_retries_may_name_reasons_and_a_delay():
    found = take(_retries={"count": 2, "reasons": ["oom"], "delay_seconds": 5}).retries
    assert found == RetryPolicy(2, (EndReason.OOM,), 5.0)


@pytest.mark.parametrize(
    ("keyword", "error"),
    [
        ({"_label": 5}, TypeError),
        ({"_label": "grüße"}, TypeError),
        ({"_priority": "high"}, TypeError),
        ({"_priority": True}, TypeError),
        ({"_restartable": 1}, TypeError),
        ({"_depends_on": "7"}, TypeError),
        ({"_depends_on": [0]}, ValueError),
        ({"_depends_on_errors": "maybe"}, ValueError),
        ({"_fast_serialization": True}, TypeError),
        ({"_fast_serialization": 3}, ValueError),
        ({"_type": "c9"}, ValueError),
        ({"_type": 2}, TypeError),
        ({"_cores": 0}, TypeError),
        ({"_cores": 1.5}, TypeError),
        ({"_cores": 3}, ValueError),
        ({"_cores": 2, "_type": "s1"}, ValueError),
        ({"_vol": 5}, TypeError),
        ({"_vol": [5]}, TypeError),
        ({"_max_runtime": "5"}, TypeError),
        ({"_max_runtime": float("nan")}, TypeError),
        ({"_max_runtime": 0}, ValueError),
        ({"_max_runtime": 1e307}, ValueError),
        ({"_max_runtime": 10**400}, ValueError),
        ({"_os_env_vars": 5}, TypeError),
        ({"_os_env_vars": "PATH"}, TypeError),
        ({"_os_env_vars": {"A": 1}}, TypeError),
        ({"_os_env_vars": {"A=B": "1"}}, ValueError),
        ({"_network": "lan"}, ValueError),
        ({"_retries": "many"}, TypeError),
        ({"_retries": -1}, ValueError),
        ({"_retries": {"reasons": ["killed"]}}, ValueError),
        ({"_retries": {"reasons": 5}}, TypeError),
        ({"_retries": {"often": 2}}, ValueError),
        ({"_retries": {"delay_seconds": -1}}, ValueError),
        ({"_key": ""}, ValueError),
        ({"_key": "a b"}, ValueError),
        ({"_callback": 5}, TypeError),
        ({"_callback_on_error": [print, 5]}, TypeError),
    ],
)
def test_wrong_value_is_refused_with_the_keyword_named(keyword, error):
    with pytest.raises(error, match=r"_\w+|job id"):
        take(**keyword)


def test_unknown_keyword_goes_to_a_function_that_takes_it():
    keywords = {"_mine": 4}
    take_options(keywords, func=lambda _mine: _mine, environ={})
    assert keywords == {"_mine": 4}
    take_options(keywords, func=lambda **more: more, environ={})
    assert keywords == {"_mine": 4}


def test_unknown_keyword_is_refused_with_near_ones():
    with pytest.raises(TypeError, match=r"_lable is not a keyword.*_label"):
        take(func=lambda a: a, _lable="x")
    with pytest.raises(TypeError, match="_zzzzzzzz"):
        take(func=None, _zzzzzzzz=1)


def test_map_has_no_callbacks():
    with pytest.raises(ValueError, match="_callback"):
        take(callbacks=False, _callback=print)


def test_options_differing_in_key_and_callbacks_make_the_same_spec():
    assert take(_key="a", _callback=[print]) == take(_key="b")
    assert hash(take(_key="a", _callback=[print])) == hash(take(_key="b"))


@given(st.dictionaries(st.from_regex(r"_[a-z]{1,12}", fullmatch=True), st.none(), max_size=3))
def test_no_underscore_keyword_is_ever_left_or_lost(keywords):
    given_names = set(keywords)
    try:
        take_options(keywords, func=lambda a: a, environ={})
    except (TypeError, ValueError):
        return
    assert not keywords or not given_names


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"_secrets": 5}, TypeError),
        ({"_secrets": [5]}, TypeError),
        ({"_secrets": ["a b"]}, ValueError),
        ({"_secrets": {"PICLOUD_JID": "A"}}, ValueError),
        ({"_gpu": -1}, ValueError),
        ({"_gpu": True}, TypeError),
        ({"_gpu": 0.5}, TypeError),
    ],
)
def test_secrets_and_gpus_that_cannot_be_are_refused(keywords, error):
    with pytest.raises(error, match="_gpu|secret"):
        take(**keywords)


def test_a_secret_of_this_job_is_not_copied_into_a_spec_as_a_plain_variable():
    environ = {"TOKEN": "hidden", "PLAIN": "x", "PICLOUD_SECRETS": "OTHER,TOKEN"}
    assert take(environ=environ, _os_env_vars=["PLAIN"]).variables == (("PLAIN", "x"),)
    with pytest.raises(ValueError, match="secret TOKEN") as caught:
        take(environ=environ, _os_env_vars=["PLAIN", "TOKEN"])
    assert "hidden" not in str(caught.value)
