#!/usr/bin/env bash
# Turns a Debian machine (12 or newer) into a lab host: Docker, containerlab, netlab and the server as a systemd service.
# Run it as root. It can be run repeatedly: it completes an installation and upgrades the server.
#
#   ./lab-host.sh                     newest release of the server
#   VERSION=2.0.0 ./lab-host.sh       that release
#   SOURCE=.. ./lab-host.sh           from a checkout
set -euo pipefail
cd "$(dirname "$0")"

CONTAINERLAB=${CONTAINERLAB:-0.75.0} # the release that netlab 26.10 requires
PREFIX=/opt/neops-remote-lab
STATE=/var/lib/neops-remote-lab
SERVER=neops-lab

say() { printf 'lab-host: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[[ $EUID -eq 0 ]] || die "run this as root"
command -v apt-get >/dev/null || die "this script knows Debian and its relatives alone"

say "packages"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# On Debian 13 the `docker` command is in a separate package.
docker_command=$(apt-cache --generate pkgnames docker-cli | grep -x docker-cli || true)
apt-get install -y -qq --no-install-recommends ${docker_command:+"$docker_command"} \
  bridge-utils ca-certificates curl docker.io iproute2 iptables openssh-client python3 python3-venv sqlite3 sshpass sudo
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 is older than 3.11: use Debian 12 or newer"
systemctl enable --quiet --now docker

# The vendor's package, verified with its published checksums. It creates the group clab_admins.
if [[ $(containerlab version 2>/dev/null | awk '/version:/ {print $2; exit}') != "$CONTAINERLAB" ]]; then
  say "containerlab $CONTAINERLAB"
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  package=containerlab_${CONTAINERLAB}_linux_$(dpkg --print-architecture).deb
  release=https://github.com/srl-labs/containerlab/releases/download/v$CONTAINERLAB
  (
    cd "$scratch"
    curl --fail --silent --show-error --location --remote-name "$release/$package" --remote-name "$release/checksums.txt"
    grep " $package\$" checksums.txt | sha256sum --check --quiet --strict -
  )
  chmod 755 "$scratch"
  apt-get install -y -qq --no-install-recommends --allow-downgrades "$scratch/$package"
fi
groupadd --force --system clab_admins

say "user $SERVER"
if ! id "$SERVER" >/dev/null 2>&1; then
  useradd --system --user-group --home-dir "$STATE" --no-create-home --shell /usr/sbin/nologin "$SERVER"
fi
usermod --append --groups docker,clab_admins "$SERVER"
install -d -o "$SERVER" -g "$SERVER" -m 755 "$STATE"
# netlab uses sudo for bridges, kernel modules and commands in a node's network. Access to Docker is equivalent to root anyway.
install -m 440 /dev/stdin /etc/sudoers.d/neops-remote-lab <<<"$SERVER ALL=(root) NOPASSWD: ALL"
visudo --check --quiet --file=/etc/sudoers.d/neops-remote-lab

say "server in $PREFIX"
[[ -x $PREFIX/bin/python ]] || python3 -m venv "$PREFIX"
"$PREFIX/bin/python" -m pip install --quiet --upgrade pip
if [[ -n ${SOURCE:-} ]]; then
  what="$(realpath "$SOURCE")[netlab,fast,postgresql]"
else
  what="neops-remote-lab[netlab,fast,postgresql]${VERSION:+==$VERSION}"
fi
"$PREFIX/bin/python" -m pip install --quiet --upgrade "$what"

say "service"
install -m 644 neops-remote-lab.service /etc/systemd/system/neops-remote-lab.service
systemctl daemon-reload
systemctl enable --quiet neops-remote-lab
systemctl restart neops-remote-lab

say "waiting for the server"
for _ in $(seq 60); do
  if curl --fail --silent --output /dev/null http://127.0.0.1:8000/readyz; then
    say "ready at http://127.0.0.1:8000; nobody else reaches it before you put a proxy in front (deploy/README.md)"
    exit 0
  fi
  sleep 1
done
curl --silent http://127.0.0.1:8000/readyz >&2 || true
die "not ready after a minute: journalctl -u neops-remote-lab"
