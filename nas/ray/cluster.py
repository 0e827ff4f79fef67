"""A Ray cluster: how this process becomes a driver of one, and how much it holds."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from search_spaces import InputError

CONNECT_S = 5.0


def capacity(resources: dict[str, float]) -> int:
    """How many workers the cluster's nodes hold now."""
    wanted = {name.upper(): amount for name, amount in resources.items() if amount} or {"CPU": 1}
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return sum(min(math.floor(node.get(name, 0) / amount) for name, amount in wanted.items()) for node in alive)


@contextmanager
def connected(address: str) -> Iterator[None]:
    """This process as a driver of a Ray cluster, with Ray's token where there is one; one that is a driver stays it.

    Raises:
        InputError: If there is no cluster at the address, or it does not let this driver in.
    """
    if ray.is_initialized():
        yield
        return
    host, _, port = address.rpartition(":")
    if host:
        _check_listening(address, host, port)
    try:
        with _silenced():
            if host:
                _use_token()
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:
        raise InputError(_refused(address, error)) from None
    try:
        yield
    finally:
        ray.shutdown()


def _use_token() -> None:
    """Turns token authentication on where this user has a token, as Ray itself does for `auto` and `local` only."""
    try:
        from ray._private.authentication import authentication_token_setup as setup
    except ImportError:  # a Ray that turns it on for nobody
        return
    setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _check_listening(address: str, host: str, port: str) -> None:
    """Ray itself would try for minutes."""
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"`--ray` must be the address of a running Ray cluster, but `{address}` does not answer ({error}); start "
            "one with `ray start --head`, or find the right one with `ray status`."
        ) from None


def _refused(address: str, error: Exception) -> str:
    said = " ".join(str(error).split())[:200]
    if "Could not find any running Ray" in said:
        return (
            f"`--ray {address}` must find a Ray cluster on this machine, but none runs; start one with `ray start "
            "--head`, or give its address as host:port."
        )
    if "ersion mismatch" in said:
        return f"the driver and the Ray cluster must have the same versions: {said}"
    return (
        f"the Ray cluster at `{address}` must let this driver in, but it did not ({said}). Where the cluster uses "
        "token authentication, set RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN here (`ray get-auth-token` "
        "prints it on the head node)."
    )


@contextmanager
def _silenced() -> Iterator[None]:
    """Standard error of this process, C++ libraries included, goes nowhere for the duration."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
