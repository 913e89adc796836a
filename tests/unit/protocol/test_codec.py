import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from picloud_jupyter.protocol.codec import from_wire, to_wire
from picloud_jupyter.protocol.jobs import EndReason, HostPython, JobSpec, Kind, RetryPolicy

specs = st.builds(
    JobSpec,
    function_name=st.text(max_size=5),
    host_python=st.builds(HostPython, *[st.text(max_size=3)] * 4, paths=st.just(("/a", "/b"))),
    kind=st.sampled_from(Kind),
    label=st.none() | st.text(max_size=3),
    depends_on=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=2).map(tuple),
    variables=st.lists(st.tuples(st.text(max_size=2), st.text(max_size=2)), max_size=2).map(
        tuple
    ),
    max_runtime_seconds=st.none() | st.floats(0, 10),
    retries=st.builds(RetryPolicy, st.integers(0, 5), st.just((EndReason.OOM,))),
)


@given(specs)
def test_every_spec_survives_the_wire(spec):
    assert from_wire(JobSpec, to_wire(spec)) == spec


def test_defaults_are_left_out_and_unknown_fields_ignored():
    spec = JobSpec("f", HostPython("p", "p", "p", "3.11"))
    wire = to_wire(spec)
    assert set(wire) == {"function_name", "host_python"}
    assert from_wire(JobSpec, wire | {"from_the_future": 1}) == spec


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"priority": "high"}, "priority"),
        ({"kind": "dance"}, "kind"),
        ({"restartable": 1}, "restartable"),
        ({"depends_on": 5}, "depends_on"),
        ({"host_python": {}}, "executable"),
        ({"retries": {"count": True}}, "count"),
    ],
)
def test_wrong_values_name_their_path(change, where):
    wire = to_wire(JobSpec("f", HostPython("p", "p", "p", "3.11"))) | change
    with pytest.raises(ValueError, match=where):
        from_wire(JobSpec, wire)


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RetryPolicy().count = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        pytest.param("max_runtime_seconds", 10**400, "seconds is larger", id="huge"),
        ("depends_on", [[1]], r"depends_on\[0\] must have 2 items, got 1"),
        ("depends_on", [[1, 2, 3]], r"depends_on\[0\] must have 2 items, got 3"),
        ("depends_on", [[1, "a"]], r"depends_on\[0\]\[1\]"),
    ],
)
def test_from_wire_when_a_number_or_a_group_does_not_fit_names_its_path(field, value, words):
    host = {"executable": "", "prefix": "", "base_prefix": "", "version": ""}
    with pytest.raises(ValueError, match=words):
        from_wire(JobSpec, {"function_name": "f", "host_python": host, field: value})
