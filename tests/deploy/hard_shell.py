"""Runs a server behind the walls that the unit for systemd puts up, without systemd.

Shown are: a file system of which two folders can be written, of one of them the size, no capabilities and no
way to gain any, and the system calls that there are. It needs root, `unshare`, `mount` and `setpriv`
(util-linux) and libseccomp. Not shown by it: another user, limits of memory and of tasks, which are
control groups, and what else systemd hides of `/proc` and `/sys`.

Run as a program, inside the walls, it puts up the last one and becomes the command.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import subprocess
import sys
from pathlib import Path

WALLS = """
set -e
mount --make-rprivate /
mount -t tmpfs -o "$3" tmpfs "$1"
mount --bind "$2" "$2"
awk '$2 !~ "^/(proc|dev|sys)(/|$)" { print $2 }' /proc/mounts | while read -r place; do
    case "$place" in "$1"|"$2") ;; *) mount -o remount,bind,ro "$place" ;; esac
done
shift 3
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""
"""In a mount namespace of its own: spool, state, the spool's options, then the command."""
ACT_ALLOW, ACT_ERRNO = 0x7FFF0000, 0x00050000


def behind_walls(command: list[str], spool: Path, state: Path, options: str, filter_set: str) -> list[str]:
    """The command that runs another with nothing writable but two folders.

    Args:
        command: to run.
        spool: where answers wait.
        state: what else may be written.
        options: of the mount for the spool.
        filter_set: of systemd, the system calls that are allowed.
    """
    inner = [sys.executable, __file__, ",".join(sorted(system_calls(filter_set))), *command]
    return ["unshare", "--mount", "sh", "-c", WALLS, "sh", str(spool), str(state), options, *inner]


def system_calls(filter_set: str) -> set[str]:
    """Names in a set of systemd's, and in `@default`, which it always adds."""
    found: set[str] = set()
    waiting, seen = [filter_set, "@default"], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        told = subprocess.run(
            ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True
        )
        for line in map(str.strip, told.stdout.splitlines()[1:]):
            if line.startswith("@"):
                waiting.append(line)
            elif line and not line.startswith("#"):
                found.add(line)
    return found


def allow_only(names: list[str]) -> None:
    """From here on other system calls fail with EPERM, as `SystemCallErrorNumber=EPERM` says."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    filter_ = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(ACT_ERRNO | errno.EPERM)))
    n_allowed = 0
    for name in names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others are of other machines
            allowed = library.seccomp_rule_add(filter_, ctypes.c_uint32(ACT_ALLOW), number, ctypes.c_uint(0))
            n_allowed += allowed == 0
    if n_allowed < len(names) // 2 or library.seccomp_load(filter_) != 0:
        sys.exit("the filter of system calls cannot be put up")


if __name__ == "__main__":
    allow_only(sys.argv[1].split(","))
    os.execvp(sys.argv[2], sys.argv[2:])
