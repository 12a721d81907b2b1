#!/usr/bin/env bash
# Campanile, the floor and other servers, one after the other on the same core, driven by the same
# generator in the same run. README.md beside this file says what is measured and why it is fair.
#
#   benches/peers/run.sh [--quick] [--rounds N] [--resume] [--out FILE] [peer...]
#
# Peers: nchan sockudo ws socketio gorilla campanile-redis; all by default. Campanile, the floor and
# the joined floor always run. What is missing is installed: Debian packages by apt-get, everything
# else below target/peers; what cannot be installed is named and left out. --resume goes on where a
# run of the same commit was ended.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
. benches/rates.sh
readonly here=benches/peers
readonly there="$PWD/target/peers"
readonly server_core=0 generator_core=1
readonly sockudo_version=5.2.0
readonly all_peers=(campanile-redis nchan sockudo ws socketio gorilla)

command="benches/peers/run.sh $*"
quick=""
resume=""
rounds=3
out="$there/peers.md"
peers=()
while [ "$#" -gt 0 ]; do
  case "$1" in
    --quick) quick=1 rounds=1 ;;
    --resume) resume=1 ;;
    --rounds) rounds="$2"; shift ;;
    --out) out="$2"; shift ;;
    --help | -h) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
    -*) echo "run.sh: unknown option $1" >&2; exit 2 ;;
    *) peers+=("$1") ;;
  esac
  shift
done
[ "${#peers[@]}" -gt 0 ] || peers=("${all_peers[@]}")
for peer in "${peers[@]}"; do
  case " ${all_peers[*]} " in
    *" $peer "*) ;;
    *) echo "run.sh: no peer is called $peer; there are: ${all_peers[*]}" >&2; exit 2 ;;
  esac
done

if [ -n "$quick" ]; then
  members=20 duration=0.3 warmup=0.1 conns=200 hold=0
else
  members=1000 duration=3 warmup=1 conns=8000 hold=30
fi

say() { printf '%s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null 2>&1; }

# --- installing ---

packages() {
  has apt-get || { say "there is no apt-get to install: $*"; return 1; }
  local sudo=()
  [ "$(id -u)" -eq 0 ] || sudo=(sudo)
  "${sudo[@]}" apt-get update -qq &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
      apt-get install -y -qq --no-install-recommends "$@" >&2
}

install_redis() { has redis-server || packages redis-server; }

install_nchan() {
  [ -e /usr/lib/nginx/modules/ngx_nchan_module.so ] || packages nginx libnginx-mod-nchan
}

# Two of its dependencies compile protocol definitions and need protoc with its own includes.
install_sockudo() {
  [ -x "$there/sockudo-$sockudo_version/bin/sockudo" ] && return
  { has protoc && [ -e /usr/include/google/protobuf/timestamp.proto ]; } ||
    packages protobuf-compiler libprotobuf-dev || return
  cargo install sockudo --version "$sockudo_version" --locked \
    --root "$there/sockudo-$sockudo_version" --target-dir "$there/sockudo-build"
}

install_node() {
  { has node && has npm; } || packages nodejs npm || return
  cmp -s "$here/node/package-lock.json" "$there/node/installed" && return
  rm -rf "$there/node"
  mkdir -p "$there/node"
  cp "$here/node/package.json" "$here/node/package-lock.json" "$there/node/"
  npm ci --prefix "$there/node" --no-audit --no-fund --loglevel=error >&2 &&
    cp "$here/node/package-lock.json" "$there/node/installed"
}

install_ws() { install_redis && install_node; }
install_socketio() { install_redis && install_node; }
install_gorilla() {
  install_redis || return
  has go || { say "Go is not installed (https://go.dev/dl)"; return 1; }
  go build -C "$here/gorilla" -o "$there/gorilla" .
}
install_campanile-redis() { install_redis; }

# Leaves in `peers` those that can run.
install_all() {
  mkdir -p "$there"
  has python3 || packages python3
  cargo build --locked --release --quiet --bin campanile --example floor
  local able=()
  for peer in "${peers[@]}"; do
    if "install_$peer"; then able+=("$peer"); else say "LEFT OUT: $peer cannot be installed here"; fi
  done
  peers=("${able[@]}")
}

# --- versions, for the table ---

node_version() { NODE_PATH="$there/node/node_modules" node -p "require('$1/package.json').version"; }
version_of() {
  case "$1" in
    campanile*) git describe --always --dirty --abbrev=10 2>/dev/null || echo unknown ;;
    nchan) echo "nginx $(nginx -v 2>&1 | cut -d/ -f2), Nchan $(dpkg-query -Wf '${Version}' libnginx-mod-nchan)" ;;
    sockudo) echo "$sockudo_version" ;;
    ws) echo "ws $(node_version ws), redis $(node_version redis), Node $(node --version)" ;;
    socketio) echo "socket.io $(node_version socket.io), adapter $(node_version @socket.io/redis-adapter), Node $(node --version)" ;;
    gorilla) sed -n 's|.*gorilla/websocket |websocket |p; s|.*go-redis/v9 |go-redis |p' "$here/gorilla/go.mod" | paste -sd, | sed "s/,/, /; s/$/, $(go env GOVERSION)/" ;;
    *) echo "benches/floor" ;;
  esac
}

# --- servers: each start_* sets `url`, `pids` to be charged, and for a protocol that is not ours how
# to join (`joining`) and how to publish (`message`) ---

started=()   # everything that runs, latest last
pids=()
url=""
joining=()
message=()
envelope=()  # what stands around the payload in Campanile's deliveries; the floor sends the same

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Runs a command in the background on the server's core.
launch() {
  taskset -c "$server_core" "$@" >"$scratch/server.log" 2>&1 </dev/null &
  started+=("$!")
}

await_port() {
  local tries
  for tries in $(seq 200); do
    kill -0 "${started[-1]}" 2>/dev/null || break
    if (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return; fi
    sleep 0.05
  done
  say "the server did not begin to listen:"
  tail -5 "$scratch/server.log" >&2
  return 1
}

end_all() {
  local pid
  while [ "${#started[@]}" -gt 0 ]; do
    pid="${started[-1]}"
    unset 'started[-1]'
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.05; done
    kill -9 "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
}

start_redis() {
  redis_port=$(free_port)
  launch redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$scratch"
  await_port "$redis_port"
  pids=("${started[-1]}")
}

start_listening() {
  local port="$1"
  shift
  launch "$@"
  await_port "$port"
  pids+=("${started[-1]}")
}

start_campanile() {
  local port
  port=$(free_port)
  start_listening "$port" target/release/campanile serve --listen "127.0.0.1:$port" \
    --ops-listen 127.0.0.1:0 --shards 1 --cores "$server_core" --log-level error "${no_rates[@]}" "$@"
  url="ws://127.0.0.1:$port/ws"
}

start_campanile-redis() {
  start_redis && start_campanile --backplane "redis://127.0.0.1:$redis_port"
}

start_floor() {
  local port
  port=$(free_port)
  start_listening "$port" target/release/examples/floor --listen "127.0.0.1:$port" \
    --mode "${1:-each}" "${envelope[@]}"
  url="ws://127.0.0.1:$port/ws"
}

start_joined() { start_floor joined; }

# The port is probed once it listens, so nginx has its worker by then; the worker does the work.
start_nchan() {
  local port dir="$scratch/nginx"
  port=$(free_port)
  mkdir -p "$dir"
  # nginx gives up its rights for its worker, which still must write here.
  chmod 755 "$scratch" "$dir"
  sed "s|@DIR@|$dir|g; s|@PORT@|$port|g" "$here/nchan.conf" >"$dir/nginx.conf"
  start_listening "$port" "$(PATH="$PATH:/usr/sbin" command -v nginx)" -p "$dir" -c "$dir/nginx.conf"
  pids=($(pgrep -P "${started[-1]}"))
  [ "${#pids[@]}" -eq 1 ] || { say "nginx has ${#pids[@]} workers, not one"; return 1; }
  url="ws://127.0.0.1:$port/ws"
  joining=(--path '/ws/{room}' --ready '')
  message=(--message '{"type":"message","payload":"{payload}"}')
}

start_sockudo() {
  local port
  port=$(free_port)
  HOST=127.0.0.1 PORT="$port" RUST_LOG=error start_listening "$port" \
    "$there/sockudo-$sockudo_version/bin/sockudo" --config "$here/sockudo.toml"
  url="ws://127.0.0.1:$port/app/peer-key?protocol=7&client=load&version=1.0"
  joining=(
    --answer '{"event":"pusher:connection_established={"event":"pusher:subscribe","data":{"channel":"private-{room}","auth":"peer-key:{signature}"}}'
    --answer '{"event":"pusher:ping={"event":"pusher:pong","data":{}}'
    --sign 'peer-secret={field:socket_id}:private-{room}'
    --ready subscription_succeeded --no-echo
  )
  message=(--message '{"event":"client-message","channel":"private-{room}","data":"{payload}"}')
}

start_ws() {
  local port
  start_redis || return
  port=$(free_port)
  NODE_ENV=production NODE_PATH="$there/node/node_modules" start_listening "$port" \
    node "$here/node/ws.js" "$port" "redis://127.0.0.1:$redis_port"
  url="ws://127.0.0.1:$port/ws"
}

start_socketio() {
  local port
  start_redis || return
  port=$(free_port)
  NODE_ENV=production NODE_PATH="$there/node/node_modules" start_listening "$port" \
    node "$here/node/socketio.js" "$port" "redis://127.0.0.1:$redis_port"
  url="ws://127.0.0.1:$port/socket.io/?EIO=4&transport=websocket"
  joining=(--answer '0{=40' --answer '40{=42["join","{room}"]' --answer '2=3' --ready '"joined"')
  message=(--message '42["publish","{room}","{payload}"]')
}

start_gorilla() {
  local port
  start_redis || return
  port=$(free_port)
  start_listening "$port" "$there/gorilla" "127.0.0.1:$port" "127.0.0.1:$redis_port"
  url="ws://127.0.0.1:$port/ws"
}

# --- measuring ---

# Ticks that all processes of the machine have run, and those that ours have.
machine_ticks() {
  local user nice system irq softirq
  read -r _ user nice system _ _ irq softirq _ </proc/stat
  ticks=$((user + nice + system + irq + softirq))
}
own_ticks() {
  local stat
  read -r -a stat </proc/$$/stat
  ticks=$((stat[13] + stat[14] + stat[15] + stat[16]))
}

# measure ROUND NAME WHAT SCENARIO-ARGUMENTS...: a fresh server, one run, its report as a file.
measure() {
  local round="$1" name="$2" what="$3" pid report ticks machine own began
  shift 3
  report="$scratch/reports/$round.$name.$what.json"
  [ ! -s "$report" ] || return 0   # measured before this run was resumed
  machine_ticks && machine=$ticks
  own_ticks && own=$ticks
  began=$(date +%s%N)
  pids=() joining=() message=() url=""
  say "round $round: $name, $what"
  if "start_$name"; then
    local charged=()
    for pid in "${pids[@]}"; do charged+=(--pid "$pid"); done
    [ "$1" = fanout ] || message=()
    # A run that lost something says so in its report and by its exit code; the table shows it.
    taskset -c "$generator_core" target/release/campanile load "$@" --url "$url" \
      "${joining[@]}" "${message[@]}" "${charged[@]}" --cores "$generator_core" --json \
      >"$report.part" 2>"$scratch/load.log" || true
    mv "$report.part" "$report"   # not reached by a run that is ended: its report would accuse the server
    [ -s "$report" ] || { say "no report:"; tail -3 "$scratch/load.log" >&2; }
  fi
  end_all
  # Whatever else ran meanwhile: a stranger's compiler makes every number worse.
  machine_ticks && machine=$((ticks - machine))
  own_ticks && own=$((ticks - own))
  echo "$((machine - own)) $(getconf CLK_TCK) $(($(date +%s%N) - began))" >"${report%.json}.others"
}

fanout() {
  measure "$1" "$2" "window$3" fanout --window "$3" --members "$members" --payload-bytes 120 \
    --duration-s "$duration" --warmup-s "$warmup"
}

# The floor is to send the bytes that Campanile sends in this run.
learn_envelope() {
  measure 0 campanile envelope fanout --members 2 --duration-s 0.2 --warmup-s 0
  mapfile -t envelope < <(python3 "$here/table.py" "$scratch" --envelope)
  [ "${#envelope[@]}" -eq 4 ]
}

# All in turn, every other round in reverse: what drifts hits all alike.
measure_all() {
  local everybody=(campanile floor joined "${peers[@]}") order round name window i
  for round in $(seq "$rounds"); do
    order=("${everybody[@]}")
    if [ $((round % 2)) -eq 0 ]; then
      order=()
      for ((i = ${#everybody[@]} - 1; i >= 0; i--)); do order+=("${everybody[i]}"); done
    fi
    for window in 1 64; do
      for name in "${order[@]}"; do fanout "$round" "$name" "$window"; done
    done
  done
  # The floor's connections are only the kernel's.
  for name in campanile "${peers[@]}"; do
    measure 1 "$name" idle idle --conns "$conns" --room-size 100 --hold-s "$hold"
  done
}

ulimit -n "$(ulimit -Hn)"
scratch="$there/run"
state="$(version_of campanile)${quick:+ quick} $members $conns"
if [ -z "$resume" ]; then
  rm -rf "$scratch"
elif [ "$(cat "$scratch/state" 2>/dev/null)" != "$state" ]; then
  say "run.sh: there is no run of this commit to resume"
  exit 2
fi
mkdir -p "$scratch/reports"
echo "$state" >"$scratch/state"
trap end_all EXIT
trap 'exit 143' TERM
trap 'exit 130' INT
install_all
learn_envelope
measure_all
for name in campanile floor joined "${peers[@]}"; do
  printf '%s\t%s\n' "$name" "$(version_of "$name")"
done >"$scratch/versions"
mkdir -p "$(dirname "$out")"
python3 "$here/table.py" "$scratch" --command "$command" ${quick:+--quick} | tee "$out"
say "written to $out"
