"""The stores of a service, opened."""

from dataclasses import dataclass

from picloud_services.accounts.keys import KeyRing
from picloud_services.accounts.secrets import SecretStore
from picloud_services.accounts.service import Accounts
from picloud_services.base.database import Database
from picloud_services.base.filesystem import DiskWatch
from picloud_services.blobs.filesystem import FileBlobStore
from picloud_services.metrics.service import MetricsService


@dataclass(frozen=True, slots=True)
class Stores:
    """Where this service keeps things."""

    database: Database
    metrics: MetricsService
    blobs: FileBlobStore
    code_blobs: FileBlobStore
    keys: KeyRing
    secrets: SecretStore
    disk: DiskWatch
    accounts: Accounts
