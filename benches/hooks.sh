#!/usr/bin/env bash
# Cuts everybody at once and waits until all are back, while a service is asked about each of them:
# how long it takes, and what twenty bystanders who were not cut notice meanwhile. In turn: without a
# hook, with one that takes 50 ms for each answer, and with one that is dead (and on_failure = allow).
#
#   benches/hooks.sh                  15,000 connections, one shard on core 0, generator on core 1
#   benches/hooks.sh 5000 --rounds 1
#
#   --rounds N     turns of all; the median counts. 3
#   --answer-ms N  how long the service takes. 50
#   --no-build     take target/release as it is
#   --out FILE     write the table there too
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. benches/rates.sh

command_line="benches/hooks.sh $*"
connections=15000 rounds=3 answer_ms=50 build=true out=""
while [ "$#" -gt 0 ]; do
  case "$1" in
    --no-build) build=false ;;
    --rounds | --answer-ms | --out)
      [ "$#" -ge 2 ] || { echo "benches/hooks.sh: $1 wants a value" >&2; exit 2; }
      name="${1#--}"
      declare "${name//-/_}=$2"
      shift
      ;;
    *[!0-9]* | "") sed -n '2,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) connections="$1" ;;
  esac
  shift
done

scratch="$(mktemp -d)"
trap 'end_running; rm -rf "$scratch"' EXIT

if "$build" && [ -z "${CAMPANILE:-}" ]; then cargo build --locked --release --bin campanile >&2; fi

# The service: any number of connections, each answered after a while. Prints its port.
start_service() {
  # Not on the shard's core, and behind the bystanders: on a host of two cores all would wait for it.
  taskset -c 1 python3 -u - "$answer_ms" >"$scratch/port" 2>"$scratch/service.log" <<'PY' &
import asyncio, sys

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"allow":true}'


async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            await reader.readexactly(int(fields[b"content-length"]))
            await asyncio.sleep(int(sys.argv[1]) / 1000)
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1])
    await server.serve_forever()


asyncio.run(main())
PY
  running+=("$!")
  for _ in $(seq 100); do
    [ -s "$scratch/port" ] && return
    sleep 0.1
  done
  cat "$scratch/service.log" >&2
  exit 1
}

pin_load=(--cores 1)
start() {
  local hook=()
  case "$1" in
    hook)
      start_service
      hook=(--hooks-connect-url "http://127.0.0.1:$(cat "$scratch/port")/hook")
      ;;
    dead) hook=(--hooks-connect-url "http://127.0.0.1:1/hook" --hooks-on-failure allow) ;;
  esac
  "$campanile" serve --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --log-level error \
    --shards 1 --cores 0 --private-fd-tables true "${no_rates[@]}" "${hook[@]}" \
    --limits-handshakes-max 20000 --hooks-waiting-max 20000 --hooks-waiting-timeout-ms 30000 \
    >"$scratch/said" 2>"$scratch/log" &
  await_server
}

storm_rounds "$rounds" "$connections" plain hook dead

table() {
  python3 - "$scratch" "$rounds" "$connections" "$command_line" <<'PY'
import json, statistics, subprocess, sys

folder, rounds, connections, command = sys.argv[1:]
columns = ("plain", "hook", "dead")
runs = {
    who: [json.load(open(f"{folder}/{who}.{n}.json")) for n in range(1, int(rounds) + 1)]
    for who in columns
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


def row(name, value):
    cells = []
    for who in columns:
        values = value(who)
        cells.append(f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})")
    print(f"| {name} | {' | '.join(cells)} |")


def p99(who, when):
    return [us / 1000 for us in of(who, "storm", f"bystanders_{when}", "p99_us")]


print(f"| `{command}` | no hook | a hook that answers | a dead hook |\n|---|---|---|---|")
row("cut, and all are back, seconds", lambda who: of(who, "storm", "seconds"))
row("bystanders' p99 before, ms", lambda who: p99(who, "before"))
row("bystanders' p99 meanwhile, ms", lambda who: p99(who, "during"))
plain = statistics.median(p99("plain", "during"))
row("the same, × that without a hook", lambda who: [ms / plain for ms in p99(who, "during")])
row("bystanders' messages lost", lambda who: of(who, "storm", "bystanders_lost"))
commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
kernel = subprocess.run(["uname", "-r"], capture_output=True, text=True).stdout.strip()
print(f"\n{rounds} rounds, median (least to most); one shard; kernel {kernel}, commit {commit}")
PY
}
publish_table "$out"
