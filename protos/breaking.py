"""Compares the protos with those of an earlier version: may a client of then call a server of now?

Usage: python protos/breaking.py [REF]

Without a REF it is the last release tag (`v1.2.3`), and before the first one the published main branch. A
shallow clone has neither and asks its origin for them. Works from any branch, and with a detached head.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
BUF = Path(sys.executable).parent / "buf"
COMPARED = ("buf.yaml", "protos")
GIT_SECONDS = 60.0
_RELEASE = re.compile(r"v(\d+)\.(\d+)\.(\d+)")


def git(*arguments: str) -> str | None:
    """What git says, or None when it cannot, or takes too long to reach an origin."""
    try:
        done = subprocess.run(
            ["git", "-C", REPOSITORY, *arguments],
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
            timeout=GIT_SECONDS,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit_of(ref: str) -> str | None:
    """The commit that a name stands for, if there is one."""
    return git("rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")


def last_release() -> str | None:
    """The newest release tag, but for one of the present commit, which would be compared with itself."""
    if git("rev-parse", "--is-shallow-repository") == "true":
        git("fetch", "--quiet", "--depth=1", "origin", "refs/tags/v*:refs/tags/v*")
    present = commit_of("HEAD")
    releases = [
        (tuple(map(int, found.groups())), tag)
        for tag in (git("tag", "--list", "v*") or "").splitlines()
        if (found := _RELEASE.fullmatch(tag)) and commit_of(tag) != present
    ]
    return max(releases)[1] if releases else None


def published_main() -> str | None:
    """The main branch as others have it, else our own; fetched where the clone has neither."""
    known = ("refs/remotes/origin/main", "refs/heads/main")
    found = next((ref for ref in known if commit_of(ref)), None)
    if found is None and git("fetch", "--quiet", "--depth=1", "origin", "main") is not None:
        return commit_of("FETCH_HEAD")
    return found


def compare_with(ref: str) -> int:
    """Runs `buf breaking` against a commit; the exit status is buf's."""
    archive = subprocess.run(
        ["git", "-C", REPOSITORY, "archive", "--format=tar", ref, "--", *COMPARED],
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        print(archive.stderr.decode(errors="replace"), end="", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as earlier:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(earlier, filter="data")
        return subprocess.run([BUF, "breaking", "--against", earlier], cwd=REPOSITORY, check=False).returncode


def main() -> int:
    """Runs the command; returns the exit status, not 0 when clients of the earlier version would break."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("ref", metavar="REF", nargs="?", help="tag, branch or commit to compare with")
    ref = parser.parse_args().ref
    if commit_of("HEAD") is None:
        print("protos: no git repository here, so nothing to compare with", file=sys.stderr)
        return 1 if ref else 0
    ref = ref or last_release() or published_main() or "HEAD"
    print(f"protos: compared with {ref}")
    return compare_with(ref)


if __name__ == "__main__":
    sys.exit(main())
