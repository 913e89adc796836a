"""Requests about the machines that run jobs."""

from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply


async def list_nodes(services: Services, request: Request) -> Reply:  # as all handlers
    """GET /v1/nodes."""
    return json_reply({"nodes": services.nodes()})
