"""Requests about users and their quotas: for root and the service's owner, never for code inside a job."""

from dataclasses import replace

from picloud_jupyter.protocol.users import Quota
from picloud_services.gateway.decode import read_as, read_int, read_json
from picloud_services.gateway.services import Services
from picloud_services.gateway.words import Reply, Request, json_reply


async def list_users(services: Services, request: Request) -> Reply:  # as all handlers
    """GET /v1/users."""
    reports = await services.accounts.users(services.held())
    users = [
        replace(report, counts=await services.jobs.counts(report.user_id)) for report in reports
    ]
    return json_reply({"users": users})


async def set_quota(services: Services, request: Request) -> Reply:
    """PUT /v1/users/UID/quota: what is not named is as the service's settings say."""
    user_id = read_int({"user": request.names[0]}, "user")
    quota = read_as(Quota, read_json(request.body), "quota")
    await services.accounts.set_quota(user_id, quota)
    return json_reply({"user": await services.accounts.user(user_id, services.held())})
