#!/usr/bin/env bash
# The doctor and tuning/apply.sh from the untuned host and back: red, apply, green, so many
# connections held, undo, red. Ends with 1 where one of these is not as it should be.
#
#   sudo benches/tuned.sh [CONNECTIONS]      200,000 by default
#
#   --shards N     12 by default, each with a table of files of its own: for 200,000 connections a
#                  listener of 12 has to take more at once than an untuned host lets it
#   --no-build     take target/release as it is
#   --out FILE     write everything there too
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

connections=200000
shards=12
build=(cargo build --release --locked --bin campanile --example floor)
out=/dev/null
while [ "$#" -gt 0 ]; do
  case "$1" in
    --no-build) build=(true) ;;
    --shards | --out)
      [ "$#" -ge 2 ] || { echo "benches/tuned.sh: $1 wants a value" >&2; exit 2; }
      if [ "$1" = --shards ]; then shards="$2"; else out="$2"; fi
      shift
      ;;
    *[!0-9]* | "") sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) connections="$1" ;;
  esac
  shift
done
[ "$(id -u)" -eq 0 ] || { echo "benches/tuned.sh: only root may tune a host" >&2; exit 1; }

"${build[@]}"
scratch="$(mktemp -d)"
undo="$scratch/tuning.undo"
clean_up() {
  local status=$?
  trap - EXIT INT TERM HUP
  if [ -e "$undo" ]; then tuning/apply.sh --undo --undo-file "$undo" >&2 || status=1; fi
  rm -rf "$scratch"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs the doctor and wants this exit code.
doctor() {
  local wanted="$1" got=0
  echo "\$ campanile doctor --connections $connections --shards $shards --private-fd-tables true"
  target/release/campanile doctor --connections "$connections" --shards "$shards" \
    --private-fd-tables true || got=$?
  echo "(exit code $got)"
  [ "$got" -eq "$wanted" ] || { echo "tuned: the exit code should have been $wanted" >&2; exit 1; }
}

step() { printf '\n--- %s\n' "$*"; }

settings() { sysctl -a 2>/dev/null | grep -E "^($(sed -n 's/^\([a-z][^ ]*\) = .*/\1/p' tuning/sysctl.conf | paste -sd'|'))"; }

all() {
  settings >"$scratch/before"
  step "untuned"
  doctor 1
  step "tuning/apply.sh --apply"
  tuning/apply.sh --apply --undo-file "$undo"
  step "tuned"
  doctor 0
  step "held"
  benches/hold.sh "$connections" --shards "$shards" --no-tuning --no-build
  step "tuning/apply.sh --undo"
  tuning/apply.sh --undo --undo-file "$undo"
  step "untuned again"
  doctor 1
  settings >"$scratch/after"
  cmp "$scratch/before" "$scratch/after"
  step "every setting is as it was"
}
mkdir -p "$(dirname "$out")"
all 2>&1 | tee "$out"
