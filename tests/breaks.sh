#!/usr/bin/env bash
# Does the checker see anything? Three builds that are broken on purpose (features of Cargo.toml), each
# of which the random days of rooms with a history must refuse; and the healthy one, which they must not.
#
#   tests/breaks.sh          compiles four times, so it is not part of tests/run.sh
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

if ! days; then
  tail -n 30 "$out" >&2
  echo "the healthy build is refused" >&2
  exit 1
fi
echo "not broken: all days end well"
