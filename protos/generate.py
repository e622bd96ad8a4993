"""Generates the Python code of the protos, or checks that what is committed is what would be generated.

Usage: python protos/generate.py [--check]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
PACKAGE = Path("transformer_debugger/v1")
COMMITTED = PROTOS / "gen" / "python"


def generate(out: Path) -> None:
    """Writes the code of every proto file under `out`, which must exist."""
    # protoc looks for mypy's plugins on the path; they stand next to this Python.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    every = [str(PACKAGE / proto.name) for proto in sorted((PROTOS / PACKAGE).glob("*.proto"))]
    services = [name for name in every if name.endswith("_service.proto")]
    for kinds, names in ((("python", "mypy"), every), (("grpc_python", "mypy_grpc"), services)):
        command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
        command += [f"--{kind}_out={'quiet:' if 'mypy' in kind else ''}{out}" for kind in kinds]
        subprocess.run([*command, *names], check=True, env={**os.environ, "PATH": path})


def read(folder: Path) -> dict[str, bytes]:
    """Returns the generated files under `folder` by name."""
    return {path.name: path.read_bytes() for path in sorted((folder / PACKAGE).glob("*_pb2*.py*"))}


def main() -> int:
    """Runs the command; returns the exit status, 1 when `--check` finds a difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when out of date")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        wanted = read(Path(folder))
    present = read(COMMITTED)
    stale = sorted(name for name in wanted.keys() | present.keys() if wanted.get(name) != present.get(name))
    if check:
        for name in stale:
            print(f"{COMMITTED / PACKAGE / name} is out of date: run `make generate`", file=sys.stderr)
        return 1 if stale else 0
    (COMMITTED / PACKAGE).mkdir(parents=True, exist_ok=True)
    for name in stale:
        path = COMMITTED / PACKAGE / name
        if name in wanted:
            path.write_bytes(wanted[name])
        else:
            path.unlink()
    print(f"{len(wanted)} files, {len(stale)} changed, in {COMMITTED}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
