#!/usr/bin/env bash
# Does a client's first send take a whole join over a real network's segments?
#
#   sudo benches/veth.sh [JOINS]          default: 20 joins of each size
#
# Over loopback a segment has 64 KB, and a fresh socket takes more than it would from any other host.
# Here client and server have a network namespace each, with a veth pair of MTU 1500 between them:
#
#   1. a bare socket with the server's own options (TCP_NOTSENT_LOWAT, as many bytes as
#      limits.socket_unsent_bytes_max) sends once, without waiting: how much does the kernel take?
#   2. the server: a fresh connection joins a room and recovers about so many bytes; how many of its
#      writes were short (campanile_socket_writes_short_total), and how long did the join take?
#
# CAMPANILE=path takes another server than the one that is built here. Needs root, for namespaces;
# removes them when it ends.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

joins="${1:-20}"
if [ "$(id -u)" -ne 0 ]; then
  echo "benches/veth.sh: network namespaces and a veth pair need root: sudo benches/veth.sh" >&2
  exit 2
fi
if [ -z "${CAMPANILE:-}" ]; then
  cargo build --quiet --release --locked --bin campanile
  CAMPANILE="${CARGO_TARGET_DIR:-target}/release/campanile"
fi

here="campanile-s$$"
there="campanile-c$$"
address=10.231.77.1
work="$(mktemp -d)"
server=""
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  ip netns del "$here" 2>/dev/null || true
  ip netns del "$there" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

if ! ip netns add "$here" || ! ip netns add "$there" ||
  ! ip link add veth0 netns "$here" mtu 1500 type veth peer name veth0 netns "$there" mtu 1500; then
  echo "benches/veth.sh: this kernel or container makes no network namespaces or no veth pairs" >&2
  exit 2
fi
ip -n "$here" addr add "$address/24" dev veth0
ip -n "$there" addr add 10.231.77.2/24 dev veth0
for namespace in "$here" "$there"; do
  ip -n "$namespace" link set lo up
  ip -n "$namespace" link set veth0 up
done

ip netns exec "$here" "$CAMPANILE" serve --listen "$address:8080" --ops-listen 127.0.0.1:8090 \
  --shards 1 --log-level error --namespaces 'default: history_size=1000' >"$work/server" 2>&1 &
server=$!

python3 benches/veth.py --here "$here" --there "$there" --address "$address" --joins "$joins"
