#!/usr/bin/env bash
# What does each setting of tuning/ buy? Each row runs the same load before and after one change, in
# turns and in fresh processes, and prints the medians. Every setting is put back at the end, also
# after Ctrl-C. What needs a limit to be reached lowers that limit, and says so.
#
#   sudo benches/tuning.sh [ROW...]      all rows by default, about 6 minutes
#
#   --rounds N     3 by default
#   --no-build     take target/release as it is
#   --out FILE     write the table there too
# shellcheck disable=SC2034  # what a row is called and loaded with is read by its name
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
. benches/rates.sh

all_rows=(somaxconn somaxconn_old syn_backlog syn_backlog_cookies nr_open file_max tcp_mem tcp_min ports conntrack_connect conntrack_deliver busy_poll rps)
rows=()
rounds=3
build=true
out=""
while [ "$#" -gt 0 ]; do
  case "$1" in
    --no-build) build=false ;;
    --rounds | --out)
      [ "$#" -ge 2 ] || { echo "benches/tuning.sh: $1 wants a value" >&2; exit 2; }
      if [ "$1" = --rounds ]; then rounds="$2"; else out="$2"; fi
      shift
      ;;
    -*) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *)
      [[ " ${all_rows[*]} " == *" $1 "* ]] || { echo "rows: ${all_rows[*]}" >&2; exit 2; }
      rows+=("$1")
      ;;
  esac
  shift
done
[ "${#rows[@]}" -gt 0 ] || rows=("${all_rows[@]}")
[ "$(id -u)" -eq 0 ] || { echo "benches/tuning.sh: only root may change the kernel's settings" >&2; exit 1; }
if "$build"; then cargo build --release --locked --bin campanile; fi

campanile="$PWD/target/release/campanile"
scratch="$(mktemp -d)"
chmod 755 "$scratch"
server=""
load=""
nft_table=campanile_bench
nic_undo="$scratch/nic.undo"
declare -A was=()

end() {
  local pid="$1" tenths=200
  [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null || return 0
  kill -TERM "$pid" 2>/dev/null || true
  while [ "$tenths" -gt 0 ] && kill -0 "$pid" 2>/dev/null; do
    sleep 0.1
    tenths=$((tenths - 1))
  done
  kill -KILL "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}

clean_up() {
  local status=$? key
  trap - EXIT INT TERM HUP
  # The host first: whoever ends this may not wait for long.
  for key in "${!was[@]}"; do sysctl -qw "$key=${was[$key]}" || status=1; done
  untrack
  if [ -e "$nic_undo" ]; then tuning/nic.sh lo --undo --undo-file "$nic_undo" >&2 || status=1; fi
  end "$load"
  end "$server"
  # What has been measured is told, also when this was ended on the way.
  if [ -s "$scratch/results.tsv" ]; then tell; fi
  rm -rf "$scratch"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Sets a key; how it was is remembered from the first time.
key() {
  [ -n "${was[$1]:-}" ] || was[$1]="$(sysctl -n "$1")"
  sysctl -qw "$1=$2"
}
# How a key was when this began.
own() { echo "${was[$1]:-$(sysctl -n "$1")}"; }
back() { if [ -n "${was[$1]:-}" ]; then sysctl -qw "$1=${was[$1]}"; fi; }

untrack() { if command -v nft >/dev/null; then nft delete table inet "$nft_table" 2>/dev/null || true; fi; }
# A rule that looks at the state of a connection is what makes Linux track all of them.
track() { nft "table inet $nft_table { chain input { type filter hook input priority 0; ct state established accept; }; }"; }

counter() {
  awk -v key="$1" '$1 == "TcpExt:" { if (!n) { n = split($0, names) } else { for (i = 2; i <= n; i++) if (names[i] == key) print $i } }' /proc/net/netstat
}
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$server/stat"; }
found() { { grep -o "\"$1\": *[-0-9.]*" "$scratch/load.json" || echo 0; } | head -1 | sed 's/.*: *//'; }

# Starts a server with these flags; `as_nobody=1` before it: without root's privileges.
serve() {
  local who=()
  if [ -n "${as_nobody:-}" ]; then
    who=(setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps=-all --bounding-set=-all)
  fi
  "${who[@]}" "$campanile" serve --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 "${no_rates[@]}" "$@" \
    >"$scratch/server.out" 2>"$scratch/server.log" &
  server=$!
  for _ in $(seq 200); do
    if grep -q 'listening on' "$scratch/server.out"; then
      url="ws://$(sed -n 's#.*listening on ws://\([0-9.:]*\).*#\1#p' "$scratch/server.out")/ws"
      return
    fi
    sleep 0.05
  done
  cat "$scratch/server.log" >&2
  exit 1
}

# Runs the generator; that it did not reach everything is a result here, not a failure.
generate() {
  "$campanile" load "$@" --url "$url" --pid "$server" --json >"$scratch/load.json" 2>/dev/null &
  load=$!
  wait "$load" || true
  load=""
}

# --- loads: each prints NAME VALUE lines ---

# 15,000 come at once to one listener, as after a restart.
burst() {
  serve --shards 1 --cores 0
  local overflows timeouts cookies
  overflows="$(counter ListenOverflows)" timeouts="$(counter TCPTimeouts)" cookies="$(counter SyncookiesSent)"
  generate idle --conns 15000 --threads 4 --cores 1 --connect-concurrency 4000
  echo "all joined after, s" "$(LC_ALL=C printf %.2f "$(found seconds)")"
  echo "dropped at the listener" "$(($(counter ListenOverflows) - overflows))"
  echo "SYN cookies" "$(($(counter SyncookiesSent) - cookies))"
  echo "retransmission timeouts" "$(($(counter TCPTimeouts) - timeouts))"
  end "$server"
}

# 15,000 connections of a server that is not root's.
as_somebody() {
  as_nobody=1 serve --shards 1
  # Nobody is let in any more once all files are open: do not wait for long.
  generate idle --conns 15000 --retries 0 --connect-concurrency 15000 --handshake-timeout-s 4
  echo "joined of 15000" "$(found joined)"
  end "$server"
}

# One message to 60,000 connections.
to_everybody() {
  serve --shards 4 --private-fd-tables true --auth-user-rights publish,broadcast
  local drops timeouts pruned
  drops="$(counter TCPRcvQDrop)" timeouts="$(counter TCPTimeouts)" pruned="$(counter PruneCalled)"
  generate idle --conns 60000 --room-size 100 --broadcast --broadcast-timeout-s 60
  echo "received of 60000" "$(found received)"
  echo "the last after, ms" "$(awk "BEGIN { printf \"%.0f\", $(found max_us) / 1000 }")"
  echo "dropped at receivers" "$(($(counter TCPRcvQDrop) - drops))"
  echo "pruned" "$(($(counter PruneCalled) - pruned))"
  echo "retransmission timeouts" "$(($(counter TCPTimeouts) - timeouts))"
  end "$server"
}

# 26,000 connections from one address to one port, which is 92 % of the ports a Linux begins with.
one_source() {
  serve --shards 2 --private-fd-tables true
  generate idle --conns 26000 --source 127.0.0.1 --handshake-timeout-s 60
  echo "joined of 26000" "$(found joined)"
  echo "all joined after, s" "$(LC_ALL=C printf %.2f "$(found seconds)")"
  end "$server"
}

# One room of 1000, one message outstanding.
deliver() {
  serve --shards 1 --cores 0
  generate fanout --members 1000 --cores 1 --duration-s 5 --warmup-s 1
  echo "server cpu a delivery, µs" "$(awk "BEGIN { printf \"%.3f\", $(found server_cpu_us_per_delivery) }")"
  echo "p50, µs" "$(LC_ALL=C printf %.0f "$(found p50_us)")"
  echo "p99, µs" "$(LC_ALL=C printf %.0f "$(found p99_us)")"
  end "$server"
}

# 15,000 connects, 64 at a time: the cost of one, without a queue anywhere.
connect() {
  serve --shards 1 --cores 0
  local before
  before="$(ticks)"
  generate idle --conns 15000 --cores 1 --connect-concurrency 64
  echo "connects a second" "$(awk "BEGIN { printf \"%.0f\", $(found per_second) }")"
  echo "server cpu a connect, µs" "$(awk "BEGIN { printf \"%.1f\", ($(ticks) - $before) * 1e6 / $(getconf CLK_TCK) / 15000 }")"
  end "$server"
}

# Whether a limit on open files can be set to 18000.
set_limit() {
  if (ulimit -n 18000) 2>/dev/null; then echo "ulimit -n 18000 is taken" yes; else echo "ulimit -n 18000 is taken" no; fi
}

# --- rows: NAME_what, NAME_load, NAME_before, NAME_after ---

somaxconn_what="net.core.somaxconn 4096 → 65535"
somaxconn_load=burst
somaxconn_before() { key net.core.somaxconn 4096; }
somaxconn_after() { key net.core.somaxconn 65535; }

somaxconn_old_what="net.core.somaxconn 128 (before Linux 5.4) → 65535"
somaxconn_old_load=burst
somaxconn_old_before() { key net.core.somaxconn 128; }
somaxconn_old_after() { key net.core.somaxconn 65535; }

syn_backlog_what="net.ipv4.tcp_max_syn_backlog 2048 → 131072, tcp_syncookies 1"
syn_backlog_load=burst
syn_backlog_before() { key net.core.somaxconn 65535; key net.ipv4.tcp_max_syn_backlog 2048; }
syn_backlog_after() { key net.core.somaxconn 65535; key net.ipv4.tcp_max_syn_backlog 131072; }

syn_backlog_cookies_what="the same with tcp_syncookies 0"
syn_backlog_cookies_load=burst
syn_backlog_cookies_before() { key net.ipv4.tcp_syncookies 0; syn_backlog_before; }
syn_backlog_cookies_after() { key net.ipv4.tcp_syncookies 0; syn_backlog_after; }

nr_open_what="fs.nr_open lowered to 16384 → 1048576"
nr_open_load=set_limit
nr_open_before() { key fs.nr_open 16384; }
nr_open_after() { key fs.nr_open 1048576; }

file_max_what="fs.file-max lowered to what is open and 20,000 → 8388608; a server that is not root"
file_max_load=as_somebody
file_max_before() { key fs.file-max "$(($(cut -f1 /proc/sys/fs/file-nr) + 20000))"; }
file_max_after() { key fs.file-max 8388608; }

# This host's for a million connections, as much of it as 60,000 are of a million.
scaled_tcp_mem() { own net.ipv4.tcp_mem | awk '{ for (i = 1; i <= 3; i++) printf "%d ", $i * 0.06 }'; }

tcp_mem_what="net.ipv4.tcp_mem: 6 % of what it is untuned, as 60,000 connections are of a million → twice a page each"
tcp_mem_load=to_everybody
tcp_mem_before() { key net.ipv4.tcp_mem "$(scaled_tcp_mem)"; }
tcp_mem_after() { key net.ipv4.tcp_mem "60000 120000 240000"; }

tcp_min_what="tcp_rmem and tcp_wmem minimum 4096 → 16384, with 6 % of tcp_mem"
tcp_min_load=to_everybody
tcp_min_set() {
  key net.ipv4.tcp_mem "$(scaled_tcp_mem)"
  key net.ipv4.tcp_rmem "$1 $(own net.ipv4.tcp_rmem | awk '{ print $2, $3 }')"
  key net.ipv4.tcp_wmem "$1 $(own net.ipv4.tcp_wmem | awk '{ print $2, $3 }')"
}
tcp_min_before() { tcp_min_set 4096; }
tcp_min_after() { tcp_min_set 16384; }

ports_what="net.ipv4.ip_local_port_range 32768–60999 → 10240–65535, one source address"
ports_load=one_source
ports_before() { key net.ipv4.ip_local_port_range "32768 60999"; }
ports_after() { key net.ipv4.ip_local_port_range "10240 65535"; }

conntrack_connect_what="connections tracked (one nftables rule with ct state) → not"
conntrack_connect_load=connect
conntrack_connect_before() { track; }
conntrack_connect_after() { untrack; }

conntrack_deliver_what="connections tracked → not"
conntrack_deliver_load=deliver
conntrack_deliver_before() { track; }
conntrack_deliver_after() { untrack; }

busy_poll_what="net.core.busy_poll and busy_read 0 → 50 µs"
busy_poll_load=deliver
busy_poll_before() { key net.core.busy_poll 0; key net.core.busy_read 0; }
busy_poll_after() { key net.core.busy_poll 50; key net.core.busy_read 50; }

rps_what="tuning/nic.sh lo: RPS and RFS off → on"
rps_load=deliver
rps_before() { tuning/nic.sh lo --undo --undo-file "$nic_undo" >/dev/null; }
rps_after() { tuning/nic.sh lo --apply --undo-file "$nic_undo" >/dev/null; }

restore() {
  local key
  untrack
  if [ -e "$nic_undo" ]; then tuning/nic.sh lo --undo --undo-file "$nic_undo" >/dev/null; fi
  for key in "${!was[@]}"; do back "$key"; done
}

run_row() {
  local row="$1" round when load_of="${1}_load" order
  if [[ "$row" == conntrack_* ]] && ! { command -v nft >/dev/null && [ -e /proc/sys/net/netfilter/nf_conntrack_max ]; }; then
    echo "tuning: $row: not measured, there is no nft or no connection tracking here" >&2
    return
  fi
  for ((round = 1; round <= rounds; round++)); do
    order="before after"
    if [ $((round % 2)) -eq 0 ]; then order="after before"; fi
    for when in $order; do
      "${row}_$when"
      "${!load_of}" >"$scratch/lines"
      server=""
      sed "s/ \([^ ]*\)$/\t\1/; s/^/$row\t$when\t/" "$scratch/lines" | tee -a "$scratch/results.tsv" >&2
    done
  done
  restore
}

# Medians, and the least and most beside them.
table() {
  local row what
  echo "| change | measured | before | after |"
  echo "|---|---|---|---|"
  for row in "${rows[@]}"; do
    what="${row}_what"
    awk -F'\t' -v row="$row" -v what="${!what}" '
      function median(list, n,   a, i, j, t) {
        n = split(list, a, " ")
        for (i = 2; i <= n; i++) for (j = i; j > 1 && a[j] + 0 < a[j - 1] + 0; j--) { t = a[j]; a[j] = a[j - 1]; a[j - 1] = t }
        return a[1] == a[n] ? a[1] : sprintf("%s (%s–%s)", a[int((n + 1) / 2)], a[1], a[n])
      }
      $1 == row { if (!($3 in seen)) { seen[$3] = 1; order[++m] = $3 }; v[$3, $2] = v[$3, $2] " " $4 }
      END {
        for (i = 1; i <= m; i++)
          printf "| %s | %s | %s | %s |\n", i == 1 ? what : "", order[i], median(v[order[i], "before"]), median(v[order[i], "after"])
      }' "$scratch/results.tsv"
  done
  echo
  echo "\`benches/tuning.sh --rounds $rounds ${rows[*]}\`: medians of $rounds rounds, least and most in brackets; kernel $(uname -r), $(nproc) cores, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)"
}

tell() {
  table | tee "$scratch/table.md"
  if [ -n "$out" ]; then
    mkdir -p "$(dirname "$out")"
    cp "$scratch/table.md" "$out"
  fi
}

: >"$scratch/results.tsv"
for row in "${rows[@]}"; do run_row "$row"; done
