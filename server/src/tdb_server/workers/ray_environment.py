"""Variables that Ray reads when it is imported, so that they must be set before."""

from __future__ import annotations

import os
import secrets

from tdb_server.pool_settings import LOCAL


def prepare_ray(address: str) -> None:
    """Sets what Ray does not take as arguments, where nobody else has set it.

    Args:
        address: of the cluster; a Ray that is started on this machine is for this server alone.
    """
    variables = {"RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1"}  # SIGTERM is no failure
    if address == LOCAL:
        variables |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system: listen on loopback alone
            "RAY_USAGE_STATS_ENABLED": "0",
        }
    for name, value in variables.items():
        os.environ.setdefault(name, value)
