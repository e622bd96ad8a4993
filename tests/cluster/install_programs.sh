#!/bin/sh
# Installs what the cluster tests drive and pip cannot bring. Without it they fail rather than be skipped.
set -eu

missing=
for program in nginx dnsmasq systemd-analyze debootstrap; do
    PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null || missing="$missing $program"
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
apt-get install -qq -y --no-install-recommends nginx dnsmasq-base systemd debootstrap >/dev/null
