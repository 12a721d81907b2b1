#!/usr/bin/env bash
# Do the checkers see anything? Builds that are broken on purpose (features of Cargo.toml), each of
# which must be refused: three by the random days of rooms with a history, one by real nodes whose Redis
# is killed; and the healthy one, which must not.
#
#   tests/breaks.sh          compiles six times, so it is not part of tests/run.sh
#
# A build that does not compile, or fails for another reason than a day that went wrong, is no proof.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
out="$(mktemp)"
trap 'rm -f "$out"' EXIT

days() {
  RUST_BACKTRACE=0 cargo test --locked --test sim "$@" kept::days >"$out" 2>&1
}

for break in break-offset-reuse break-dropped-tail break-admission; do
  if days --features "$break"; then
    echo "$break: NOT SEEN, the checker is blind" >&2
    exit 1
  fi
  if ! grep -q '^this day failed' "$out"; then
    tail -n 30 "$out" >&2
    echo "$break: failed, but not for a day that went wrong" >&2
    exit 1
  fi
  echo "$break: refused"
  grep -A1 -m1 'panicked at' "$out" | tail -n 1 | cut -c 1-200
done

chaos() {
  RUST_BACKTRACE=0 CHAOS_ON=standalone CHAOS_FAULTS=kill CHAOS_COUNT=3 CHAOS_SEED=1 \
    cargo test --locked --test chaos "$@" on_one_server >"$out" 2>&1
}

if chaos --features break-resubscribe; then
  echo "break-resubscribe: NOT SEEN, the checker is blind" >&2
  exit 1
fi
if ! grep -q 'panicked at tests/chaos' "$out"; then
  tail -n 30 "$out" >&2
  echo "break-resubscribe: failed, but not for what it broke" >&2
  exit 1
fi
echo "break-resubscribe: refused"
grep -A1 -m1 'panicked at tests/chaos' "$out" | tail -n 1 | cut -c 1-200
if ! chaos; then
  tail -n 30 "$out" >&2
  echo "the healthy build is refused by chaos" >&2
  exit 1
fi

if ! days; then
  tail -n 30 "$out" >&2
  echo "the healthy build is refused" >&2
  exit 1
fi
echo "not broken: all days end well"
