#!/usr/bin/env bash
# What attackers of one address do to an honest client of the same node, and to its memory: a table, a
# row an attack, each at full speed.
#
#   benches/attacks.sh                       all of them, 5 s each and 5 s of baseline: 5 minutes
#   benches/attacks.sh --only histories      one of them
#   benches/attacks.sh --seconds 20
#   benches/attacks.sh --rounds 3            each of them and its baseline three times, in turn
#   benches/attacks.sh --bound-mib 512       its limits.memory_bytes_max, 1024 by default; 64 more may be resident
#   benches/attacks.sh --soak-minutes 10     those that want memory all at once
#   benches/attacks.sh -- --scheduling other     flags for the server
#
# CAMPANILE=path takes another server than the one that is built here.
#
# The server is pinned to core 0, the bystander and the attackers to core 1. The baseline is the same
# bystander while the same attackers attack another server, which has core 0 only when the first one
# leaves it. What is compared is the p99 of the second in the middle: of seconds in which the host
# itself stood still there are few. The p99 of all messages stands beside it. benches/attacks/ has the
# attacks.
#
# Needs two cores. Ends what it starts, changes nothing on the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder="${CARGO_TARGET_DIR:-target}"
if [ -z "${CAMPANILE:-}" ]; then
  cargo build --quiet --release --locked --bin campanile
  CAMPANILE="$folder/release/campanile"
fi
# Its own speed is not what is measured, and building it must not take the minutes of a release.
cargo build --quiet --locked --example attacks
read -r load _ </proc/loadavg
if [ "${load%%.*}" -ge 1 ]; then
  echo "benches/attacks.sh: other work runs here (load $load): its times will be in the table" >&2
fi
exec taskset -c 1 "$folder/debug/examples/attacks" --server "$CAMPANILE" "$@"
