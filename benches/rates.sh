# shellcheck shell=bash
# Sourced by the scripts here that start a server: one connection of a benchmark sends as much as it
# can, and all connections may be of one user: the rates and the limit of a user in docs/limits.md are off,
# and that is printed.
# shellcheck disable=SC2034 # for those that source it
no_rates=(
  --limits-messages-per-s-max 0 --limits-received-bytes-per-s-max 0
  --limits-joins-per-s-max 0 --limits-requests-per-s-max 0
  --limits-connections-per-user-max 0
)
echo "server: campanile serve ${no_rates[*]}" >&2

# For scripts that measure in turns. They set scratch, a temporary folder, and each process that is to
# end with its turn is in running.
running=()

# The server that is measured: what is built here, or what CAMPANILE names.
campanile="${CAMPANILE:-target/release/campanile}"

end_running() {
  local pid
  for pid in "${running[@]}"; do
    kill -KILL "$pid" 2>/dev/null || true
    wait "$pid" 2>/dev/null || true
  done
  running=()
}

# The process that was started last is a server, which writes to said and log: waits until it listens,
# and sets address.
await_server() {
  running+=("$!")
  for _ in $(seq 300); do
    grep -q 'listening on' "$scratch/said" && break
    kill -0 "$!" 2>/dev/null || { cat "$scratch/log" >&2; exit 1; }
    sleep 0.1
  done
  address="$(sed -n 's#.*listening on \(ws://\)\{0,1\}\([0-9.:]*\).*#\2#p' "$scratch/said" | head -1)"
}

# storm_rounds ROUNDS CONNECTIONS CONTESTANT...: each in turn, so often: `start CONTESTANT`, then a storm of
# so many, whose numbers go to CONTESTANT.ROUND.json. pin_load: further arguments of the generator.
storm_rounds() {
  local rounds="$1" connections="$2" round who
  shift 2
  for round in $(seq "$rounds"); do
    for who in "$@"; do
      echo "round $round of $rounds: $who" >&2
      start "$who"
      "$campanile" load storm --conns "$connections" --timeout-s 900 --json \
        --handshake-timeout-s 60 "${pin_load[@]}" --url "ws://$address/ws" \
        >"$scratch/$who.$round.json" 2>"$scratch/load.log" || true
      [ -s "$scratch/$who.$round.json" ] || { cat "$scratch/load.log" "$scratch/log" >&2; exit 1; }
      end_running
      sleep 1
    done
  done
}

# publish_table FILE: shows what the function table prints, and puts it into FILE, if that is given.
publish_table() {
  table | tee "$scratch/table.md"
  if [ -n "$1" ]; then
    mkdir -p "$(dirname "$1")"
    cp "$scratch/table.md" "$1"
  fi
}
