"""What is said of GPUs. Pure."""

from typing import Any


def gpus_of(service: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the GPUs of all machines of GET /v1/service."""
    return [gpu for node in service.get("nodes") or [] for gpu in node.get("gpus") or []]


def gpu_words(service: dict[str, Any]) -> str:
    """Return which GPUs jobs may use, or why there are none."""
    gpus = gpus_of(service)
    if not gpus:
        notes = [node.get("gpu_note") for node in service.get("nodes") or []]
        return f"none ({'; '.join(filter(None, notes)) or 'no machine is connected yet'})"
    named = ", ".join(f"{gpu.get('model') or 'NVIDIA'} {gpu['device']}" for gpu in gpus)
    words = f"{len(gpus)} ({named})"
    if service.get("container_kind") == "plain":
        words += "; they are not kept from other jobs: CUDA_VISIBLE_DEVICES alone tells each which is its own"
    return words
