"""What an answer that waits for its reader takes of what the server has for all of them."""

from __future__ import annotations

from tdb_server.domain.budget import Budget


class AnswerRoom:
    """One call's part of the memory and of the disk.

    Args:
        memory: for answers of all calls.
        disk: the same on disk.
        caller: whose call it is.
        reserved_bytes: on disk, which are the call's until it ends.

    Raises:
        OverLimit: so much disk is not left.
    """

    def __init__(self, memory: Budget, disk: Budget, caller: str, reserved_bytes: int = 0) -> None:
        self._memory = memory
        self._disk = disk
        self._caller = caller
        self._reserved_bytes = self._disk_bytes = reserved_bytes
        self._memory_bytes = 0
        disk.take(caller, reserved_bytes)

    def has_memory(self, n_bytes: int) -> bool:
        """Takes memory where there is some left for this caller; whether there was."""
        has_some = self._memory.try_take(self._caller, n_bytes)
        self._memory_bytes += n_bytes * has_some
        return has_some

    def give_memory(self, n_bytes: int) -> None:
        """Memory is free again."""
        self._memory_bytes -= n_bytes
        self._memory.give_back(self._caller, n_bytes)

    def use_disk(self, n_bytes: int) -> None:
        """So much is on disk now.

        Raises:
            OverLimit: so much is not left.
        """
        more = max(n_bytes, self._reserved_bytes) - self._disk_bytes
        if more > 0:
            self._disk.take(self._caller, more)
        elif more < 0:
            self._disk.give_back(self._caller, -more)
        self._disk_bytes += more

    def close(self) -> None:
        """The call has ended."""
        self._memory.give_back(self._caller, self._memory_bytes)
        self._disk.give_back(self._caller, self._disk_bytes)
        self._memory_bytes = self._disk_bytes = self._reserved_bytes = 0
