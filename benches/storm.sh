#!/usr/bin/env bash
# Cuts everybody at once and waits until all are back, ours and the floor in turn: how long it takes,
# and what twenty bystanders who were not cut notice meanwhile.
#
#   benches/storm.sh                        15,000 connections, one shard on core 0, generator on core 1
#   benches/storm.sh 1000000 --shards 60    both ends on all cores (needs benches/hold.sh's settings)
#
#   --rounds N     turns of both; the median counts. 3
#   --serve ARGS   further arguments of `campanile serve`
#   --no-build     take target/release as it is
#   --out FILE     write the table there too
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. benches/rates.sh

command_line="benches/storm.sh $*"
connections=15000 shards=1 rounds=3 build=true out="" serve=""
while [ "$#" -gt 0 ]; do
  case "$1" in
    --no-build) build=false ;;
    --shards | --rounds | --serve | --out)
      [ "$#" -ge 2 ] || { echo "benches/storm.sh: $1 wants a value" >&2; exit 2; }
      declare "${1#--}=$2"
      shift
      ;;
    *[!0-9]* | "") sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) connections="$1" ;;
  esac
  shift
done

scratch="$(mktemp -d)"
trap 'end_running; rm -rf "$scratch"' EXIT

if "$build"; then cargo build --locked --release --bin campanile --example floor >&2; fi

# One shard and a generator of one thread have a core each; more go wherever the kernel puts them.
# The floor's sockets live in its rings' own tables, which may be as long as a table of files.
pin_ours=() pin_floor=() pin_load=()
if [ "$shards" -eq 1 ]; then
  pin_ours=(--cores 0) pin_floor=(--core 0) pin_load=(--cores 1)
fi
members=$((connections / shards * 12 / 10 + 64))
most="$(ulimit -Hn)"
[ "$members" -lt "$most" ] || members="$most"

start() {
  if [ "$1" = floor ]; then
    target/release/examples/floor --listen 127.0.0.1:0 --mode accept --threads "$shards" \
      --members "$members" "${pin_floor[@]}" >"$scratch/said" 2>"$scratch/log" &
  else
    # shellcheck disable=SC2086 # several arguments
    "$campanile" serve --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --log-level warn \
      --shards "$shards" --private-fd-tables true "${no_rates[@]}" "${pin_ours[@]}" $serve \
      >"$scratch/said" 2>"$scratch/log" &
  fi
  await_server
}

# The floor's bystanders hear nothing, because it delivers nothing: the run says so and is not `ok`.
storm_rounds "$rounds" "$connections" floor campanile

table() {
  python3 - "$scratch" "$rounds" "$connections" "$shards" "$command_line" <<'PY'
import json, statistics, subprocess, sys

folder, rounds, connections, shards, command = sys.argv[1:]
runs = {
    who: [json.load(open(f"{folder}/{who}.{n}.json")) for n in range(1, int(rounds) + 1)]
    for who in ("floor", "campanile")
}
for who, all_of_them in runs.items():
    for run in all_of_them:
        back = (run.get("storm") or {}).get("rejoined", 0)
        if back != int(connections):
            sys.exit(f"{who}: {back} of {connections} came back: {run['shortfalls']}")


def of(who, *path):
    def one(run):
        for key in path:
            run = run[key]
        return run

    return [one(run) for run in runs[who]]


def spread(values, digits=2):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def row(name, path):
    ours, floor = of("campanile", *path), of("floor", *path)
    ratios = [a / b for a, b in zip(ours, floor)]
    print(f"| {name} | {spread(ours)} | {spread(floor)} | {spread(ratios)} |")


print(f"| `{command}` | campanile | floor | ratio |\n|---|---|---|---|")
row(f"{connections} join, seconds", ("connect", "seconds"))
row("cut, and all are back, seconds", ("storm", "seconds"))
ours, floor = of("campanile", "storm", "seconds"), of("floor", "connect", "seconds")
ratios = spread([a / b for a, b in zip(ours, floor)])
print(f"| all are back, beside the floor's time to accept as many | {spread(ours)} | {spread(floor)} | {ratios} |")
before, during = (of("campanile", "storm", f"bystanders_{when}", "p99_us") for when in ("before", "during"))
print(f"| bystanders' p99 before, ms | {spread([us / 1000 for us in before])} | | |")
print(f"| bystanders' p99 meanwhile, ms | {spread([us / 1000 for us in during])} | | "
      f"{spread([b / a for a, b in zip(before, during)])} × before |")
print(f"| bystanders' messages lost | {sum(of('campanile', 'storm', 'bystanders_lost'))} | | |")
refused = sum(retried.get("http_503", 0) for retried in of("campanile", "storm", "retried"))
print(f"| told to come back later | {refused} | | |")
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True).stdout.strip()
print(f"\n{rounds} rounds, median (least to most); {shards} shards; kernel {kernel}, commit {commit}")
PY
}
publish_table "$out"
