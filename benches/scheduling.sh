#!/usr/bin/env bash
# What does each value of `scheduling` cost at both ends? Prints a Markdown table.
#
#   benches/scheduling.sh [--rounds N] [--seconds N] [--no-build]
#
# neighbour: the server shares core 0 with a program that never pauses (niceness as the server's), and
#   carries a low load: 20 messages a second to 10 members. What matters is p50.
# saturated: the server has core 0 for itself, all its threads on it, and carries all that it can: 100
#   rooms of 10 members, 8 messages outstanding in each. What matters is CPU time for each delivery.
#
# The generator has core 1. Each cell is the median of N rounds (3) of N seconds (10), in fresh
# processes and in turns, after 6 seconds of the same load: `auto` needs three to decide. `batch?` says
# how many threads are in SCHED_BATCH at the end of the load. Needs two cores on which nothing else runs.
# CAMPANILE names another program than target/release/campanile.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. benches/rates.sh

rounds=3 seconds=10 build=true
while [ "$#" -gt 0 ]; do
  case "$1" in
    --no-build) build=false ;;
    --rounds | --seconds)
      case "${2:-}" in
        "" | 0 | *[!0-9]*) echo "benches/scheduling.sh: $1 wants a number" >&2; exit 2 ;;
      esac
      if [ "$1" = --rounds ]; then rounds="$2"; else seconds="$2"; fi
      shift
      ;;
    *) sed -n '2,16s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done

if "$build"; then cargo build --locked --release --bin campanile >&2; fi
campanile="${CAMPANILE:-target/release/campanile}"
scratch="$(mktemp -d)"
server="" neighbour=""
end() {
  [ -n "$1" ] || return 0
  kill -KILL "$1" 2>/dev/null || true
  wait "$1" 2>/dev/null || true
}
trap 'end "$server"; end "$neighbour"; rm -rf "$scratch"' EXIT

free_port() {
  python3 -c '
import random, socket
for _ in range(100):
    port = random.randrange(20000, 32000)
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            continue
    print(port)
    break'
}

# Threads of the server in SCHED_BATCH (proc_pid_stat(5), field 41).
in_batch() { cat "/proc/$server"/task/*/stat | sed 's/.*) //' | awk '$39 == 3 { n++ } END { print n + 0 }'; }

# One run: scheduling, end, round. Appends p50, p99, deliveries a second, CPU time, threads in batch.
run() {
  local scheduling="$1" which="$2" port load
  port="$(free_port)"
  neighbour=""
  if [ "$which" = neighbour ]; then
    taskset -c 0 sh -c 'while :; do :; done' &
    neighbour=$!
    load=(--members 10 --rate 20)
  else
    load=(--members 10 --rooms 100 --window 8)
  fi
  taskset -c 0 "$campanile" serve --listen "127.0.0.1:$port" --ops-listen 127.0.0.1:0 --shards 1 \
    --scheduling "$scheduling" --log-level error "${no_rates[@]}" >"$scratch/said" 2>"$scratch/log" &
  server=$!
  for _ in $(seq 200); do
    if grep -q 'listening on' "$scratch/said"; then break; fi
    sleep 0.05
  done
  grep -q 'listening on' "$scratch/said" || { cat "$scratch/log" >&2; exit 1; }
  # In the last second of the measured time.
  (sleep $((6 + seconds - 1)) && in_batch >"$scratch/batch") &
  local looker=$!
  taskset -c 1 "$campanile" load fanout --url "ws://127.0.0.1:$port/ws" --pid "$server" --warmup-s 6 \
    --duration-s "$seconds" "${load[@]}" --json >"$scratch/load.json" 2>"$scratch/load.log" || true
  [ -s "$scratch/load.json" ] || { cat "$scratch/load.log" >&2; exit 1; }
  wait "$looker" || true
  python3 - "$scratch/load.json" "$(cat "$scratch/batch" 2>/dev/null || echo '?')" <<'PY' >>"$scratch/$scheduling.$which"
import json, sys
run = json.load(open(sys.argv[1]))["fanout"]
late = run["latency"]
cpu = run.get("server_cpu_us_per_delivery") or 0
print(late["p50_us"] / 1000, late["p99_us"] / 1000, run["deliveries_per_second"], cpu, sys.argv[2])
PY
  end "$server"
  end "$neighbour"
  server="" neighbour=""
  rm -f "$scratch/batch"
}

for round in $(seq "$rounds"); do
  for scheduling in batch other auto; do
    for which in neighbour saturated; do
      echo "round $round of $rounds: $scheduling, $which" >&2
      run "$scheduling" "$which"
    done
  done
done

# The median of a column of a file.
median() { awk -v column="$2" '{ print $column }' "$1" | sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }
number() { LC_ALL=C printf "$1" "$2"; }

echo "commit $(git rev-parse --short HEAD), $(uname -r), $rounds rounds of $seconds s"
echo
echo "| scheduling | neighbour: p50, ms | p99, ms | batch? | saturated: CPU for each delivery, µs | deliveries/s | p50, ms | batch? |"
echo "|---|---|---|---|---|---|---|---|"
for scheduling in batch other auto; do
  low="$scratch/$scheduling.neighbour" high="$scratch/$scheduling.saturated"
  echo "| \`$scheduling\` | $(number %.2f "$(median "$low" 1)") | $(number %.2f "$(median "$low" 2)") | $(median "$low" 5) \
| $(number %.3f "$(median "$high" 4)") | $(number %.0f "$(median "$high" 3)") | $(number %.2f "$(median "$high" 1)") | $(median "$high" 5) |"
done
