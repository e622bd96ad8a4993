#!/bin/sh
# Installs what tests drive and pip cannot bring, given as PROGRAM=PACKAGE. Without it they would fail rather than be skipped.
set -eu

missing= packages=
for one in "$@"; do
    PATH="$PATH:/usr/sbin" command -v "${one%=*}" >/dev/null || {
        missing="$missing ${one%=*}"
        packages="$packages ${one#*=}"
    }
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "install these first, or run this as root on Debian:$missing" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
# Nothing that is installed here shall start by itself.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -qq -y --no-install-recommends $packages >/dev/null
