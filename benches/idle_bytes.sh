#!/usr/bin/env bash
# What an idle connection costs, by owner: the server's memory and the kernel's.
#
#   benches/idle_bytes.sh [SHARDS] [CONNECTIONS] [SECONDS] [TOKENS]     default: 1 15000 30 none
#
# TOKENS: none, the clients are anonymous; plain, each has a token that names its user; grants, one that
# names rooms as well, the same for all; expiry, that and when it expires.
# CAMPANILE=path takes another server than the one that is built here.
#
# Each connection has a user of its own and is in a room of a hundred; it is held for so many seconds,
# by default over a heartbeat.
# Two runs, with a third of the connections and with all of them, each against a fresh server: the
# difference is what a connection costs, the rest is what a shard needs to begin with. The kernel's
# share is the growth of each cache in /proc/slabinfo (root may read it); server and generator are
# both on this machine, both wait in epoll, so a connection counts for two sockets and each cache is
# halved.
#
# Ends what it starts. Changes nothing on the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

shards="${1:-1}"
conns="${2:-15000}"
hold_s="${3:-30}"
tokens="${4:-none}"
secret=a-secret-of-thirty-two-bytes-or-more
# As long as the names of anonymous clients are, to the step in which an allocator counts.
user='"sub":"user-aaaaaaaaaaaaaaaaaaaa{n}"'
case "$tokens" in
  none) claims="" ;;
  plain) claims="{$user}" ;;
  grants) claims="{$user,\"rooms\":[\"load-*\"]}" ;;
  expiry) claims="{$user,\"rooms\":[\"load-*\"],\"exp\":4102444800}" ;;
  *) echo "benches/idle_bytes.sh: TOKENS is none, plain, grants or expiry" >&2; exit 2 ;;
esac
serve_tokens=() load_tokens=()
if [ -n "$claims" ]; then
  serve_tokens=(--auth-hmac-secret "$secret")
  load_tokens=(--path '/ws?{room_ids}&token={token}' --token-secret "$secret" --token-claims "$claims")
fi
work="$(mktemp -d)"
server=""
cleanup() {
  [ -z "$server" ] || kill "$server" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT

campanile="${CAMPANILE:-target/release/campanile}"
if [ -z "${CAMPANILE:-}" ]; then cargo build --quiet --release --bin campanile; fi

# Name, bytes and number of living objects. An object counts for its share of its slab: slabs that an
# earlier run has left half empty must not make this one look free.
slabs() {
  sed -n '3,$p' /proc/slabinfo 2>/dev/null | awk '{ print $1, $2 * $6 * 4096 / $5, $2 }' | sort
}

# The kernel merges caches of one size and lists them under one of their names: which others these are.
merged() {
  local cache name
  for cache in $(cut -d' ' -f1 "$1"); do
    for name in eventpoll_pwq tcp_bind_bucket tcp_bind2_bucket; do
      [ "$cache" != "$name" ] && [ -e "/sys/kernel/slab/$cache" ] || continue
      if [ "/sys/kernel/slab/$cache" -ef "/sys/kernel/slab/$name" ]; then
        echo "  ($cache counts $name, too)"
      fi
    done
  done
}

resident() { awk '/^VmRSS:/ { print $2 * 1024 }' "/proc/$server/status"; }

# measure CONNECTIONS NAME: writes NAME.rss (growth in bytes) and NAME.slabs (growth by cache)
measure() {
  "$campanile" serve --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --log-level error \
    --shards "$shards" --private-fd-tables true "${serve_tokens[@]}" >"$work/said" &
  server=$!
  until grep -q 'listening on .*, ops on' "$work/said"; do
    kill -0 "$server" || { echo "the server ended" >&2; return 1; }
    sleep 0.05
  done
  url="$(sed -n 's/.*listening on \(ws:[^,]*\),.*/\1/p' "$work/said")"
  local before
  before="$(resident)"
  slabs >"$work/before"
  "$campanile" load idle --url "$url" --conns "$1" --room-size 100 --hold-s "$hold_s" \
    "${load_tokens[@]}" --pid "$server" >"$work/$2.load" &
  local load=$!
  sleep "$((hold_s - 2))"
  echo "$(($(resident) - before))" >"$work/$2.rss"
  slabs >"$work/during"
  wait "$load" || { cat "$work/$2.load" >&2; return 1; }
  kill "$server"
  wait "$server" || true
  server=""
  join "$work/before" "$work/during" | awk '{ print $1, $4 - $2, $5 - $3 }' >"$work/$2.slabs"
}

few=$((conns / 3))
measure "$few" few
measure "$conns" many

echo "server, $shards shard(s), tokens: $tokens: growth of VmRSS"
awk -v few="$few" -v many="$conns" -v shards="$shards" '
  { rss[NR] = $1 }
  END {
    each = (rss[2] - rss[1]) / (many - few)
    printf "  %6d connections  %8.0f KiB, %4.0f B each\n", few, rss[1] / 1024, rss[1] / few
    printf "  %6d connections  %8.0f KiB, %4.0f B each\n", many, rss[2] / 1024, rss[2] / many
    printf "  one more           %4.0f B; to begin with %.0f KiB a shard\n", each, (rss[1] - each * few) / shards / 1024
  }' "$work/few.rss" "$work/many.rss"

echo "kernel: growth of /proc/slabinfo by connection, one of its two ends"
sort -k2,2nr "$work/many.slabs" | awk -v conns="$conns" '
  $2 / conns / 2 >= 4 { printf "  %-22s %6.0f B  %5.2f objects\n", $1, $2 / conns / 2, $3 / conns / 2 }
  { sum += $2 }
  END { printf "  %-22s %6.0f B\n", "all caches", sum / conns / 2 }'
awk -v conns="$conns" '$2 / conns / 2 >= 4' "$work/many.slabs" >"$work/grown"
merged "$work/grown"
