#!/bin/sh
# Installs the programs that some tests drive: a browser for the report, shells for completion. Where that cannot be done it
# says so, and pytest's last lines name the tests that were skipped for it.
set -eu

missing=
for program in chromium zsh fish; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "NOT INSTALLED, so that the tests that need them will be SKIPPED:$missing" >&2
    echo "Install them yourself, or run this as root on Debian, where apt-get does it." >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# fonts-dejavu-core: a browser without any font draws nothing.
# shellcheck disable=SC2086
apt-get install -qq -y --no-install-recommends $missing fonts-dejavu-core >/dev/null
