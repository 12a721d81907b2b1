#!/usr/bin/env bash
# What histories and presence cost Redis when a hundred thousand come at once.
#
#   benches/kept.sh recovery [N]    N clients of one room come back, are cut and come back once more, each
#                                   with 100 messages to be brought: how often does Redis read a stream?
#   benches/kept.sh presence [N]    N users come into one room: how long does that take, beside the same
#                                   room without presence, and what do Redis and its processor have of it?
#   benches/kept.sh publishes       acknowledged publishes a second that one Redis core keeps, with and
#                                   without a replica that has to have them
#   benches/kept.sh quiet [N]       N rooms with a member each in which nothing happens: what of a core do this
#                                   server and Redis take in a minute, and how often is a position read?
#   benches/kept.sh memory          what a room's history takes in Redis: one message, a hundred, with its
#                                   own setting of stream-node-max-bytes and with 1024
#
# N is 100,000. Starts its own redis-server; needs redis-server and redis-cli.
#   --no-build     take target/release, or the file that CAMPANILE names, as it is
#   --shards N     shards of the server, each with a table of files of its own. 8
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. benches/rates.sh

what="${1:-}"
[ "$#" -eq 0 ] || shift
conns=100000 shards=8 build=true
while [ "$#" -gt 0 ]; do
  case "$1" in
    --no-build) build=false ;;
    --shards)
      [ "$#" -ge 2 ] || { echo "benches/kept.sh: $1 wants a value" >&2; exit 2; }
      shards="$2"
      shift
      ;;
    *[!0-9]* | "") what="" ;;
    *) conns="$1" ;;
  esac
  shift
done
case "$what" in
  recovery | presence | publishes | quiet | memory) ;;
  *) sed -n '2,19s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

scratch="$(mktemp -d)"
pids=()
finish() {
  for pid in "${pids[@]}"; do
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  rm -rf "$scratch"
}
trap finish EXIT

if "$build"; then cargo build --locked --release --bin campanile >&2; fi

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

wait_for() {
  for _ in $(seq 300); do
    "$@" >/dev/null 2>&1 && return 0
    sleep 0.1
  done
  echo "benches/kept.sh: waited in vain for: $*" >&2
  return 1
}

# Starts redis-server on a port of its own, with further settings; the port is in `redis_port`.
start_redis() {
  redis_port="$(free_port)"
  mkdir "$scratch/redis-$redis_port"
  redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no \
    --dir "$scratch/redis-$redis_port" "$@" >/dev/null 2>&1 &
  pids+=("$!")
  wait_for redis-cli -p "$redis_port" ping
}

redis_field() { redis-cli -p "$redis_port" info "$1" | sed -n "s/^$2[:=]\([^,]*\).*/\1/p" | tr -d '\r'; }

# Calls of a command that Redis has carried out.
calls() {
  local line
  line="$(redis-cli -p "$redis_port" info commandstats | tr -d '\r' | grep "^cmdstat_$1:" || true)"
  sed -n 's/^[^:]*:calls=\([0-9]*\).*/\1/p' <<<"${line:-cmdstat_$1:calls=0}"
}

# Milliseconds of processor time of Redis' main thread.
redis_cpu_ms() {
  local user system
  user="$(redis_field cpu used_cpu_user_main_thread)" system="$(redis_field cpu used_cpu_sys_main_thread)"
  awk -v a="$user" -v b="$system" 'BEGIN { printf "%.0f", (a + b) * 1000 }'
}

# Starts a server of ours; its addresses are in `address` and `ops`.
start_node() {
  local said="$scratch/said"
  ops="127.0.0.1:$(free_port)"
  "${CAMPANILE:-target/release/campanile}" serve --listen 127.0.0.1:0 --ops-listen "$ops" --log-level warn \
    --shards "$shards" --private-fd-tables true --backplane "redis://127.0.0.1:$redis_port" \
    "${no_rates[@]}" "$@" \
    >"$said" 2>"$scratch/log" &
  node="$!"
  pids+=("$node")
  wait_for grep -q 'listening on' "$said"
  address="$(sed -n 's#.*listening on \(ws://\)\{0,1\}\([0-9.:]*\).*#\2#p' "$said" | head -1)"
  wait_for curl -fs "http://$ops/readyz"
}

# The sum of a metric of the server, whatever its labels.
metric() { curl -s "http://$ops/metrics" | awk -v name="campanile_$1" 'index($1, name) == 1 { sum += $2 } END { printf "%.0f", sum }'; }

field() { python3 -c 'import json, sys; value = json.load(open(sys.argv[1]))
for key in sys.argv[2:]: value = value[key]
print(value)' "$@"; }

commit="$(git rev-parse --short HEAD)"

recovery() {
  start_redis
  start_node --namespaces 'kept: history_size=200, history_ttl_s=3600'
  local payload
  payload="$(printf '%0120d' 0 | tr 0 x)"
  for _ in $(seq 100); do
    curl -fs -X POST "http://$ops/v1/publish" -H 'content-type: application/json' \
      -d "{\"room_id\":\"kept:0\",\"payload\":\"$payload\"}" >/dev/null
  done
  curl -fs "http://$ops/v1/rooms/kept:0/history?limit=1" >"$scratch/history.json"
  local epoch join reads_before commands_before bytes_before
  epoch="$(field "$scratch/history.json" epoch)"
  join='{"type":"join","room_id":"{room}","id":1,"since":{"epoch":"'"$epoch"'","offset":0}}'
  reads_before="$(calls xrevrange)" commands_before="$(redis_field stats total_commands_processed)"
  bytes_before="$(metric bytes_out_total)"
  target/release/campanile load storm --conns "$conns" --room-size "$conns" --room-prefix kept: \
    --path /ws --init "$join" --timeout-s 500 --handshake-timeout-s 120 --json \
    --url "ws://$address/ws" >"$scratch/load.json" 2>"$scratch/load.log" || true
  [ -s "$scratch/load.json" ] || { cat "$scratch/load.log" "$scratch/log" >&2; exit 1; }
  echo "| \`benches/kept.sh recovery $conns\` | |"
  echo "|---|---|"
  echo "| joined with 100 messages each, s | $(field "$scratch/load.json" connect seconds) |"
  echo "| cut, and all are back with 100 messages each, s | $(field "$scratch/load.json" storm seconds) |"
  echo "| came back | $(field "$scratch/load.json" storm rejoined) of $conns |"
  echo "| joins that were brought what they missed | $(curl -s "http://$ops/metrics" | sed -n 's/^campanile_recoveries_total{result="recovered"} //p') |"
  echo "| of all joins, those that waited for a read | $(metric recoveries_waited_total) |"
  echo "| reads of streams (XREVRANGE) that Redis carried out | $(($(calls xrevrange) - reads_before)) |"
  echo "| all commands, canaries and the bystanders' publishes included | $(($(redis_field stats total_commands_processed) - commands_before)) |"
  echo "| sent to clients, MB | $((($(metric bytes_out_total) - bytes_before) / 1000000)) |"
  echo
  echo "commit $commit, $shards shards, $(nproc) cores"
}

presence() {
  local kind
  echo "| \`benches/kept.sh presence $conns\` | without presence | with it |"
  echo "|---|---|---|"
  for kind in plain here; do
    start_redis
    start_node --namespaces 'here: presence=true'
    local memory cpu
    memory="$(redis_field memory used_memory)" cpu="$(redis_cpu_ms)"
    target/release/campanile load idle --conns "$conns" --room-size "$conns" --room-prefix "$kind:" \
      --hold-s 15 --timeout-s 500 --handshake-timeout-s 120 --json --pid "$node" \
      --url "ws://$address/ws" >"$scratch/$kind.json" 2>"$scratch/load.log" &
    local load="$!"
    pids+=("$load")
    # In the middle of the hold: everybody is there, and Redis knows it.
    wait_for_all() { [ "$(metric connections)" -ge "$conns" ]; }
    for _ in $(seq 1200); do wait_for_all && break; sleep 0.1; done
    if [ "$kind" = here ]; then
      for _ in $(seq 300); do
        [ "$(redis-cli -p "$redis_port" --scan --pattern 'campanile:*:pr:*' | head -1 |
          xargs -r redis-cli -p "$redis_port" hlen)" = "$conns" ] && break
        sleep 0.1
      done
      local began ended
      began="$(date +%s%N)"
      curl -fs "http://$ops/v1/rooms/here:0/presence" >"$scratch/here-list.json"
      ended="$(date +%s%N)"
      answer_ms="$(((ended - began) / 1000000))"
      counted="$(field "$scratch/here-list.json" count)"
    fi
    declare "memory_$kind=$(($(redis_field memory used_memory) - memory))"
    declare "cpu_$kind=$(($(redis_cpu_ms) - cpu))"
    wait "$load" || true
    declare "seconds_$kind=$(field "$scratch/$kind.json" connect seconds)"
    kill -KILL "$node"
    wait "$node" 2>/dev/null || true
  done
  # shellcheck disable=SC2154 # declared above
  {
    echo "| all have joined, s | $seconds_plain | $seconds_here |"
    echo "| Redis' memory for it, bytes a user | $((memory_plain / conns)) | $((memory_here / conns)) |"
    echo "| its main thread's processor time, µs a user | $((cpu_plain * 1000 / conns)) | $((cpu_here * 1000 / conns)) |"
    echo "| users that \`/v1/rooms/{id}/presence\` counts | | $counted |"
    echo "| and how long it takes to say so, ms | | $answer_ms |"
  }
  echo
  echo "commit $commit, $shards shards, $(nproc) cores"
}

publishes() {
  local durability
  echo "| \`benches/kept.sh publishes\` | publishes a second | µs of Redis' core each |"
  echo "|---|---|---|"
  for durability in none async replicated; do
    start_redis
    local master="$redis_port" space='default: history_size=0'
    if [ "$durability" = replicated ]; then
      start_redis --replicaof 127.0.0.1 "$master"
      redis_port="$master"
      has_replica() { [ "$(redis_field replication connected_slaves)" = 1 ]; }
      wait_for has_replica
    fi
    [ "$durability" = none ] || space="default: history_size=100, durability=$durability"
    shards=1
    start_node --namespaces "$space"
    local cpu
    cpu="$(redis_cpu_ms)"
    target/release/campanile load fanout --members 1 --rooms 200 --window 16 --duration-s 5 --json \
      --url "ws://$address/ws" >"$scratch/load.json" 2>"$scratch/load.log" || true
    [ -s "$scratch/load.json" ] || { cat "$scratch/load.log" "$scratch/log" >&2; exit 1; }
    local sent
    sent="$(metric backplane_publishes_total)"
    awk -v what="$durability" -v sent="$sent" -v cpu="$(($(redis_cpu_ms) - cpu))" \
      'BEGIN { printf "| %s | %.0f | %.1f |\n", what == "none" ? "no history" : "history, " what, sent / 5, cpu * 1000 / sent }'
    kill -KILL "$node"
    wait "$node" 2>/dev/null || true
  done
  echo
  echo "commit $commit, 1 shard, $(nproc) cores; 200 rooms of one member, 16 outstanding in each, 5 s"
}

# Joins rooms kept:0 … , 1000 on a connection, says so, and stays until it is killed.
join_rooms() {
  python3 -u - "$address" "$1" <<'PY'
import base64, os, re, socket, struct, sys, time

address, rooms = sys.argv[1], int(sys.argv[2])
host, port = address.rsplit(":", 1)
PER_CONNECTION = 1000


def connect():
    stream = socket.create_connection((host, int(port)))
    key = base64.b64encode(os.urandom(16)).decode()
    stream.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    return stream


def text(message):  # masked with zeros
    body = message.encode()
    return struct.pack("!BB4x", 0x81, 0x80 | len(body)) + body


def wait_for_welcome(stream):
    received = b""
    while b'"welcome"' not in received:
        received += stream.recv(65536)


ANSWER = re.compile(rb'"type":"(ok|error)"[^{}]*?"id":(\d+)[,}]')


def join_all(stream, rooms):
    def join(room):
        stream.sendall(text('{"type":"join","room_id":"kept:%d","id":%d}' % (room, room)))

    waiting, received = len(rooms), b""
    for room in rooms:
        join(room)
    while waiting > 0:
        more = stream.recv(65536)
        assert more, "the server has closed the connection"
        received += more
        end = 0
        for answer in ANSWER.finditer(received):
            end = answer.end()
            if answer[1] == b"ok":
                waiting -= 1
            else:  # Redis did not answer in time, as on a busy host
                time.sleep(0.1)
                join(int(answer[2]))
        received = received[end:]


streams = []
for first in range(0, rooms, PER_CONNECTION):
    stream = connect()
    wait_for_welcome(stream)
    join_all(stream, range(first, min(first + PER_CONNECTION, rooms)))
    streams.append(stream)
print("joined")
time.sleep(3600)
PY
}

# Milliseconds of processor time of a process, and the reads that it has sent to Redis.
process_cpu_ms() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); printf "%.0f", ($12 + $13) * 1000 / hz }' "/proc/$1/stat"; }

quiet() {
  start_redis
  shards=1
  # Longer than the bench: pings of the hundred connections are not what is measured.
  start_node --namespaces 'kept: history_size=100, history_ttl_s=3600' \
    --limits-rooms-per-connection-max 1024 --limits-ping-interval-ms 600000
  join_rooms "$conns" >"$scratch/joined" 2>"$scratch/load.log" &
  pids+=("$!")
  for _ in $(seq 3000); do grep -q joined "$scratch/joined" && break; sleep 0.1; done
  grep -q joined "$scratch/joined" || { cat "$scratch/load.log" "$scratch/log" >&2; exit 1; }
  sleep 5
  local node_ms redis_ms reads began
  node_ms="$(process_cpu_ms "$node")" redis_ms="$(redis_cpu_ms)" reads="$(calls xrevrange)"
  began="$(date +%s%N)"
  sleep 60
  local took_ms="$((($(date +%s%N) - began) / 1000000))"
  percent() { awk -v ms="$1" -v of="$took_ms" 'BEGIN { printf "%.2f", ms * 100 / of }'; }
  echo "| \`benches/kept.sh quiet $conns\` | |"
  echo "|---|---|"
  echo "| histories followed | $(metric histories) |"
  echo "| of a core, this server, % | $(percent $(($(process_cpu_ms "$node") - node_ms))) |"
  echo "| of a core, Redis' main thread, % | $(percent $(($(redis_cpu_ms) - redis_ms))) |"
  echo "| reads of streams (XREVRANGE) a second | $(awk -v n="$(($(calls xrevrange) - reads))" -v ms="$took_ms" 'BEGIN { printf "%.1f", n * 1000 / ms }') |"
  echo
  echo "commit $commit, 1 shard, $(nproc) cores"
}

# Rooms kept:0 … with so many messages of 120 characters each, by HTTP.
fill() {
  python3 - "$ops" "$1" "$2" <<'PY'
import http.client, json, sys

ops, rooms, messages = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
connection = http.client.HTTPConnection(ops)
batch = []


def send():
    body = json.dumps({"messages": batch})
    connection.request("POST", "/v1/publish/batch", body, {"content-type": "application/json"})
    answer = connection.getresponse()
    said = answer.read()
    assert answer.status == 200, said
    batch.clear()


for room in range(rooms):
    for _ in range(messages):
        batch.append({"room_id": f"kept:{room}", "payload": "x" * 120})
        if len(batch) == 500:
            send()
if batch:
    send()
PY
}

memory() {
  local node_bytes before
  echo "| \`benches/kept.sh memory\` | 1 message | 100 messages |"
  echo "|---|---|---|"
  for node_bytes in 4096 1024; do
    local row="| Redis' bytes a room, stream-node-max-bytes $node_bytes"
    for messages in 1 100; do
      start_redis --stream-node-max-bytes "$node_bytes"
      start_node --namespaces 'kept: history_size=100, history_ttl_s=3600'
      fill 1 1
      before="$(redis_field memory used_memory)"
      fill 1000 "$messages"
      row="$row | $((($(redis_field memory used_memory) - before) / 1000))"
      kill -KILL "$node"
      wait "$node" 2>/dev/null || true
    done
    echo "$row |"
  done
  echo
  echo "commit $commit; payloads of 120 characters, 1000 rooms"
}

"$what"
