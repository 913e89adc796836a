"""Secrets and the end of the service."""

import os

import pytest

from picloud_jupyter import cloud
from tests.tools.service_under_test import ServiceUnderTest

pytestmark = pytest.mark.isolation


def test_secrets_outlive_the_service_and_go_with_its_home(
    own_service: ServiceUnderTest,
) -> None:
    own_service.start()
    cloud.secret.set("KEPT", value="c4nary-value")
    own_service.cli("down")
    cloud.close()
    assert (
        cloud.result(cloud.call(lambda: os.environ["KEPT"], _secrets=["KEPT"]))
        == "c4nary-value"
    )
    own_service.end()
    assert not own_service.home.exists()
