"""Connection to a Ray cluster, and how many workers its nodes have room for."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from search_spaces import InputError
from search_spaces.errors import short_error

CONNECT_S = 5.0


def max_workers(resources: dict[str, float]) -> int:
    """How many workers the nodes of the cluster have room for now.

    Args:
        resources: Name -> what one worker takes.
    """
    worker = {name.upper(): amount for name, amount in resources.items() if amount} or {"CPU": 1}
    nodes = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return sum(min(math.floor(node.get(name, 0) / amount) for name, amount in worker.items()) for node in nodes)


@contextmanager
def ray_connection(address: str) -> Iterator[None]:
    """Makes this process a driver of a Ray cluster for a block; does nothing if it is one already.

    Raises:
        InputError: If there is no cluster at the address, or it rejects this driver.
    """
    if ray.is_initialized():
        yield
        return
    host, _, port = address.rpartition(":")
    if host:
        _check_listening(address, host, port)
    try:
        with _stderr_silenced():
            if host:
                _enable_token_authentication()
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        raise InputError(_connection_error(address, error)) from None
    try:
        yield
    finally:
        ray.shutdown()


def _enable_token_authentication() -> None:
    """Turns token authentication on if this user has a token; Ray itself does so for `auto` and `local` only.

    Ray has no public function for it: `RAY_AUTH_MODE` is read when Ray is imported.
    """
    try:
        from ray._private.authentication import authentication_token_setup as setup
    except ImportError:  # a version of Ray without it
        return
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_listening(address: str, host: str, port: str) -> None:
    """Raises InputError at once if nothing listens; Ray itself would try for minutes."""
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"`--ray` must be the address of a running Ray cluster, but `{address}` does not answer ({error}); start "
            "one with `ray start --head`, or find the right one with `ray status`."
        ) from None


def _connection_error(address: str, error: Exception) -> str:
    message = short_error(error)
    if "Could not find any running Ray" in message:
        return (
            f"`--ray {address}` must find a Ray cluster on this machine, but none runs; start one with `ray start "
            "--head`, or give its address as host:port."
        )
    if "ersion mismatch" in message:
        return f"the driver and the Ray cluster must have the same versions: {message}"
    return (
        f"the Ray cluster at `{address}` must accept this driver, but it did not ({message}). If the cluster uses "
        "token authentication, set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN here (`ray get-auth-token` "
        "prints it on the head node)."
    )


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Discards the standard error of this process during a block, that of C++ libraries too."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
