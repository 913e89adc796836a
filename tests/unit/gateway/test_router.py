"""Routes are found by method and path."""

import pytest

from picloud_jupyter.protocol.errors import InvalidRequest, NotFound
from picloud_services.gateway.router import Router
from picloud_services.gateway.words import Route

ROUTES = [
    Route("GET", "/v1/jobs"),
    Route("GET", "/v1/jobs/{jid}/result"),
    Route("GET", "/v1/jobs/{jid}/samples"),
    Route("PUT", "/v1/uploads/{upload}"),
    Route("POST", "/v1/uploads/{upload}"),
]


@pytest.mark.parametrize(
    ("method", "path", "index", "names"),
    [
        ("GET", "/v1/jobs", 0, ()),
        ("GET", "/v1/jobs/17/result", 1, ("17",)),
        ("GET", "/v1/jobs/a%20b/samples", 2, ("a b",)),
        ("POST", "/v1/uploads/ab", 4, ("ab",)),
    ],
)
def test_find_when_known_then_route_and_names(method, path, index, names):
    assert Router(ROUTES).find(method, path) == (ROUTES[index], names)


@pytest.mark.parametrize(
    "path", ["/", "/v1/job", "/v1/jobs/", "/v1/jobs//result", "/v1/jobs/1/2/3"]
)
def test_find_when_unknown_then_not_found(path):
    with pytest.raises(NotFound):
        Router(ROUTES).find("GET", path)


def test_find_when_other_method_then_405_names_the_right_ones():
    with pytest.raises(InvalidRequest, match="use POST or PUT") as caught:
        Router(ROUTES).find("GET", "/v1/uploads/ab")
    assert caught.value.status == 405
