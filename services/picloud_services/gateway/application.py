"""The table of requests, and the listeners that serve it."""

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from picloud_jupyter.protocol import routes
from picloud_jupyter.protocol.secrets import MAX_SECRET_BYTES
from picloud_services.accounts.keys import JobIdentity
from picloud_services.gateway import (
    files,
    jobs,
    logs,
    maps,
    nodes,
    results,
    secrets,
    service,
    uploads,
    users,
    words,
)
from picloud_services.gateway.handler import Door, Exchange
from picloud_services.gateway.held_memory import HeldMemory
from picloud_services.gateway.http_server import HttpServer
from picloud_services.gateway.router import Router
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, Route

MIB = 1024**2
JSON_BYTES = 16 * MIB  # a quarter of a million ranges of jids
SUBMIT_BYTES = 16 * MIB
MOST_CONNECTIONS = 256  # of one user of a system service, so that nobody takes all descriptors


def make_routes(services: Services) -> list[Route]:
    """Return every request of docs/internals.md 8."""

    def bind(
        handle: Callable[[Services, Request], Awaitable[Reply]],
    ) -> Callable[[Request], Awaitable[Reply]]:
        return partial(handle, services)

    def get(path: str, handle: Callable[[Services, Request], Awaitable[Reply]]) -> Route:
        return Route("GET", path, bind(handle))

    def of_owner(path: str, handle: Callable[[Services, Request], Awaitable[Reply]]) -> Route:
        return Route("GET", path, bind(handle), inside_jobs=False, owner_only=True)

    def post(
        path: str,
        handle: Callable[[Services, Request], Awaitable[Reply]],
        body_bytes: int = JSON_BYTES,
    ) -> Route:
        return Route("POST", path, bind(handle), body_bytes=body_bytes)

    return [
        get(routes.SERVICE, service.describe),
        get(routes.OPENAPI, service.openapi),
        post(routes.CALLS, jobs.create_call, SUBMIT_BYTES),
        post(routes.MAPS, maps.create_map, SUBMIT_BYTES),
        Route("PUT", routes.MAP_PART, bind(maps.put_part), body_bytes=SUBMIT_BYTES),
        post(routes.MAP_SEAL, maps.seal_map),
        get(routes.JOBS, jobs.list_jobs),
        post(routes.STATUS, jobs.read_statuses),
        post(routes.WAIT, jobs.wait),
        post(routes.RESULTS, results.read_results),
        get(routes.RESULT, results.read_result),
        get(routes.ARGUMENTS, results.read_arguments),
        get(routes.FUNCTION, results.read_function),
        post(routes.INFO, jobs.read_info),
        post(routes.KILL, jobs.kill),
        post(routes.DELETE, jobs.delete),
        get(routes.LOG, logs.read_log),
        get(routes.FILES, files.list_files),
        get(routes.FILE, files.read_file),
        get(routes.SAMPLES, logs.read_samples),
        get(routes.WHY, jobs.why),
        post(routes.UPLOADS, uploads.begin_upload),
        Route("PUT", routes.UPLOAD, open_sink=partial(uploads.UploadSink, services)),
        post(routes.UPLOAD, uploads.finish_upload),
        get(routes.CODE, uploads.find_code),
        Route("PUT", routes.CODE, open_sink=partial(uploads.CodeSink, services)),
        get(routes.NODES, nodes.list_nodes),
        Route("GET", routes.SECRETS, bind(secrets.list_secrets), inside_jobs=False),
        Route(
            "PUT",
            routes.SECRET,
            bind(secrets.set_secret),
            body_bytes=MAX_SECRET_BYTES,
            inside_jobs=False,
        ),
        Route("DELETE", routes.SECRET, bind(secrets.delete_secret), inside_jobs=False),
        of_owner(routes.USERS, users.list_users),
        of_owner(routes.METRICS, service.metrics),
        of_owner(routes.DIAGNOSIS, service.diagnose),
        Route(
            "PUT",
            routes.USER_QUOTA,
            bind(users.set_quota),
            body_bytes=1024,
            inside_jobs=False,
            owner_only=True,
        ),
        Route(
            "POST",
            routes.STOP,
            bind(service.stop),
            body_bytes=1024,
            inside_jobs=False,
            owner_only=True,
        ),
    ]


class Gateway:
    """The listeners: api.sock for programs of users, jobs.sock for code inside containers."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._router = Router(make_routes(services))
        self._servers: list[HttpServer] = []
        self._held = HeldMemory()

    async def listen(
        self, api_socket: Path, jobs_socket: Path, *, everybody: bool = False
    ) -> None:
        """Serve both sockets from now on; what was left of earlier ones is replaced.

        Called again, it listens anew; connections that were made before go on.

        ``everybody``: each user of the machine is served, as themselves; else our own user alone.

        Raises:
            OSError: a socket cannot be made there.
        """
        for server in self._servers:
            server.stop_listening()
        door = Door(self._router, self._check_key, os.getuid(), everybody=everybody)
        most = MOST_CONNECTIONS if everybody else None
        await self._serve(api_socket, door, 0o666 if everybody else 0o600, most)
        await self._serve(jobs_socket, Door(self._router, self._check_key, None), 0o600)

    async def _serve(self, path: Path, door: Door, mode: int, most: int | None = None) -> None:
        server = HttpServer(partial(Exchange, door), most, self._answered, self._held)
        await server.listen(path, mode)
        self._servers.append(server)

    def _answered(self, exchange: words.Exchange, status: int) -> None:
        assert isinstance(exchange, Exchange)
        self._services.answered(exchange.route, status)

    def _check_key(self, key: str) -> JobIdentity | None:
        job = self._services.keys.check(key)
        if job is None or not self._services.jobs.lease_is_live(
            job.lease, job.user_id, job.jid, job.attempt
        ):
            return None
        return job

    async def close(self) -> None:
        """Stop listening, remove the sockets, end what is being answered."""
        for server in self._servers:
            await server.close()
        self._servers.clear()
