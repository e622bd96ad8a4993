"""Builds the image without a container engine: each step of the Dockerfile in a folder, by `chroot`.

Debian's own Python stands in for the base image. Only what our Dockerfile says is understood; anything else
fails. Needs root, debootstrap and the package index, as `docker build` would.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
DEBIAN, PACKAGES = "bookworm", "python3,python3-venv,ca-certificates"
MIRROR = "http://deb.debian.org/debian"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
MOUNTS = """
mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && mount -t tmpfs tmpfs "$0/tmp" || exit 125
if [ -n "$WHEELS" ]; then mkdir -p "$0$WHEELS" && mount --bind "$WHEELS" "$0$WHEELS" || exit 125; fi
"""
"""In a mount namespace of their own, which ends with the command."""


@dataclass
class Stage:
    """One stage of the build: a folder that looks like its file system, and what it has been told."""

    root: Path
    environment: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def run(self, command: list[str], environment: dict[str, str] | None = None) -> None:
        """A command inside, as the stage's user; fails when it fails."""
        subprocess.run(self.arguments(command), env=self.variables(environment), check=True)

    def arguments(self, command: list[str]) -> list[str]:
        """What runs it from outside; the process becomes the command."""
        inside = f'cd {shlex.quote(self.folder)} && exec "$@"'
        enter = f'exec chroot --userspec={self.user} "$0" /bin/sh -c {shlex.quote(inside)} sh "$@"'
        return ["unshare", "--mount", "sh", "-c", MOUNTS + enter, str(self.root), *command]

    def variables(self, more: dict[str, str] | None = None) -> dict[str, str]:
        """Those of the image, and how this machine reaches its package index."""
        ours = {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
        wheels = os.environ.get("PIP_FIND_LINKS", "")
        path = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return {**path, **ours, "WHEELS": wheels, **self.environment, **(more or {})}


def build(folder: Path, arguments: dict[str, str]) -> Stage:
    """Runs all steps.

    Args:
        folder: for the stages.
        arguments: values of ARG, as `--build-arg` gives them.

    Returns:
        The last stage.
    """
    base = _base(folder / "base")
    stages: dict[str, Stage] = {}
    known: dict[str, str] = {}
    stage = Stage(base)
    for instruction, rest in instructions(DOCKERFILE.read_text()):
        print(f"{instruction} {rest[:100]}", flush=True)
        if instruction == "ARG":
            name, _, value = rest.partition("=")
            known[name] = arguments.get(name, value)
        elif instruction == "FROM":
            stage = Stage(folder / f"stage-{len(stages)}")
            subprocess.run(["cp", "-a", str(base), str(stage.root)], check=True)
            stages[rest.partition(" AS ")[2] or "last"] = stage
        else:
            _take(stage, stages, instruction, rest, known)
    return stage


def instructions(text: str) -> list[tuple[str, str]]:
    """Pairs of an instruction and what it is given, comments and line ends taken out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def _take(
    stage: Stage, stages: dict[str, Stage], instruction: str, rest: str, arguments: dict[str, str]
) -> None:
    match instruction:
        case "ENV":
            for name, value in (word.split("=", 1) for word in shlex.split(rest)):
                stage.environment[name] = value.replace("${PATH}", stage.variables()["PATH"])
        case "WORKDIR":
            stage.folder = rest
            (stage.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        case "RUN":
            stage.run(["/bin/sh", "-c", rest], arguments)
        case "COPY":
            _copy(stage, stages, rest.split())
        case "USER":
            stage.user = rest
        case "ENTRYPOINT":
            stage.entrypoint = _words(rest)
        case "CMD":
            stage.command = _words(rest)
        case "HEALTHCHECK":
            stage.health = _words(rest.partition("CMD ")[2])
        case "EXPOSE" | "STOPSIGNAL":
            pass  # said to the engine
        case _:
            raise AssertionError(f"a step that is not understood: {instruction}")


def _words(listed: str) -> list[str]:
    return [word.strip().strip('"') for word in listed.strip("[]").split(",")]


def _copy(stage: Stage, stages: dict[str, Stage], words: list[str]) -> None:
    source_root = ROOT
    if words[0].startswith("--from="):
        source_root = stages[words.pop(0).removeprefix("--from=")].root
    *sources, target = words
    for source in sources:
        found = source_root / source.lstrip("/")
        place = stage.root / os.path.normpath(os.path.join(stage.folder, target)).lstrip("/")  # noqa: PTH118
        if target.endswith("/"):
            place = place / found.name
        place.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
            shutil.copytree(found, place, symlinks=True, ignore=None if source_root != ROOT else skipped)
        else:
            shutil.copy2(found, place)


def _base(root: Path) -> Path:
    """A Debian with Python, which has the certificates and the name servers of this machine."""
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root), MIRROR]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (root / "usr/bin/python").symlink_to("python3")
    shutil.copy(CERTIFICATES, root / str(CERTIFICATES).lstrip("/"))
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    return root
