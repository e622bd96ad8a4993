"""Whether client and server speak the same version of the interface.

docs/compatibility.md says what is promised. A client asks once per channel, beside its first call and after
that was taken up, so that nothing waits for it.
"""

from __future__ import annotations

import re
import warnings
from functools import cache
from importlib.metadata import version

API_VERSION = "v1"
"""The version of the interface that this client speaks."""

CHECK_SECONDS = 1.0
"""How long the end of a call may wait for the server's version; it has mostly come before."""

_MAJOR = re.compile(r"v\d+")


class ApiVersionWarning(UserWarning):
    """The server says that it speaks another version of the interface than this client."""


class VersionCheck:
    """One channel's check: compares once, and warns at most once."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._is_due = True

    def take_turn(self) -> bool:
        """Whether the caller is to ask for the server's version: true once."""
        is_due, self._is_due = self._is_due, False
        return is_due

    def compare(self, api_version: str) -> None:
        """Warns when the server's version is another one."""
        self._is_due = False
        problem = version_problem(api_version)
        if problem is not None:
            warnings.warn(f"{self._server}: {problem}", ApiVersionWarning, stacklevel=4)


def version_problem(api_version: str) -> str | None:
    """What is wrong with a server of this version of the interface, and what to do; None when it fits.

    What follows the first number does not matter: within v1 everything is compatible.
    """
    found = _MAJOR.match(api_version)
    if found is not None and found[0] == API_VERSION:
        return None
    said = f"speaks interface {api_version!r}" if api_version else "does not say which interface it speaks"
    return (
        f"the server {said}, this client (transformer-debugger-client {client_version()}) speaks"
        f" {API_VERSION!r}; answers may be incomplete or wrong. Install the client of the server's version"
    )


@cache
def client_version() -> str:
    """The version of this package, such as `0.1.0`."""
    return version("transformer-debugger-client")
