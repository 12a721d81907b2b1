#!/usr/bin/env bash
# Holds many connections on this machine, both ends on it: all joined, heartbeats on, one message to
# every one of them. From nothing: builds, raises what the kernel limits, measures, prints a table,
# and leaves the machine as it was, also after Ctrl-C or a failure.
#
#   sudo benches/hold.sh                     1,000,000 connections, 3 minutes and 9 GiB on 2 cores
#   sudo benches/hold.sh 2000000             18 GiB
#   sudo benches/hold.sh 1000000 --floor     the same against the floor, which only holds sockets
#
#   --shards N     by default 60, or as many as the limit on open files asks for
#   --ping-s N     seconds between two heartbeats of a connection: 25, or as many as keep the machine
#                  at 40,000 of them a second, which already take one core of each end
#   --hold-s N     seconds to hold everybody after the message to all; two heartbeats and ten seconds
#   --no-tuning    leave the kernel's settings as they are (no root needed)
#   --no-build     take target/release as it is
#   --out FILE     write the table there too, and a line a second to FILE without .md, with .tsv
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."

command_line="benches/hold.sh $*"
connections=1000000
shards=""
hold_s=""
ping_s=""
contestant=campanile
tune=true
build=true
out=""
while [ "$#" -gt 0 ]; do
  case "$1" in
    --floor) contestant=floor ;;
    --no-tuning) tune=false ;;
    --no-build) build=false ;;
    --shards | --ping-s | --hold-s | --out)
      [ "$#" -ge 2 ] || { echo "benches/hold.sh: $1 wants a value" >&2; exit 2; }
      case "$1" in
        --shards) shards="$2" ;;
        --ping-s) ping_s="$2" ;;
        --hold-s) hold_s="$2" ;;
        --out) out="$2" ;;
      esac
      shift
      ;;
    [1-9]*[!0-9]* | -* | "" | [!1-9]*) sed -n '2,17s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
    *) connections="$1" ;;
  esac
  shift
done

least_ping_s=$((connections / 40000))
ping_s="${ping_s:-$((least_ping_s > 25 ? least_ping_s : 25))}"
hold_s="${hold_s:-$((ping_s * 2 + 10))}"

# Below this much free memory the run ends before the machine does.
MEMORY_FREE_KIB_MIN=$((600 * 1024))

began=$SECONDS
scratch="$(mktemp -d)"
undo="$scratch/tuning.undo"
server=""
load=""
guard=""
watch=""

say() { echo "hold: $*" >&2; }

# Ends a process that this script started, and waits until it has gone.
end() {
  local pid="$1" tenths="${2:-150}"
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
  local status=$?
  trap - EXIT INT TERM HUP
  # The host first: whoever ends this may not wait for long.
  if [ -e "$undo" ]; then tuning/apply.sh --undo --undo-file "$undo" >&2 || status=1; fi
  end "$guard" 10
  end "$watch" 10
  end "$load"
  end "$server" 300
  rm -rf "$scratch"
  exit "$status"
}
trap clean_up EXIT
trap 'say interrupted; exit 130' INT
trap 'say ended; exit 143' TERM HUP

# What the machine could still give. MemAvailable would count half of the inodes of open sockets as
# well, because their slab is marked as reclaimable.
free_kib() {
  awk '$1 == "MemFree:" || $1 == "Buffers:" || $1 == "Cached:" { sum += $2 } $1 == "Shmem:" { sum -= $2 } END { print sum }' /proc/meminfo
}
memory_kib() { awk -v key="$1:" '$1 == key { print $2 }' /proc/meminfo; }
# A counter of /proc/net/netstat.
tcp_counter() {
  awk -v key="$1" '$1 == "TcpExt:" { if (!n) { n = split($0, names) } else { for (i = 2; i <= n; i++) if (names[i] == key) print $i } }' /proc/net/netstat
}
# Pages of all TCP buffers, and open sockets: `tcp_now mem`, `tcp_now inuse`.
tcp_now() { awk -v key="$1" '$1 == "TCP:" { for (i = 2; i < NF; i += 2) if ($i == key) print $(i + 1) }' /proc/net/sockstat; }
# Ticks of processor time of the server.
server_ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' "/proc/$server/stat" 2>/dev/null || echo 0; }
server_rss_kib() { awk '$1 == "VmRSS:" { print $2 }' "/proc/$server/status" 2>/dev/null || echo 0; }
# The first number of that name in the generator's JSON.
found() { grep -o "\"$1\": *[-0-9.]*" "$scratch/load.json" | head -1 | sed 's/.*: *//'; }
# Attempts to connect that failed and were made again, or given up, by reason.
tries() { { grep -o '"\(failed\|retried\)": *{[^}]*}' "$scratch/load.json" || true; } | tr -d '"' | paste -sd' '; }
calc() { awk "BEGIN { printf \"$1\", $2 }"; }

if "$build"; then
  say "building"
  cargo build --release --locked --bin campanile --example floor
fi
campanile=target/release/campanile
[ -x "$campanile" ] || { say "$campanile is not there: leave --no-build out"; exit 1; }

# One file a connection, in tables of one shard each; some room for chance and for other files.
files="$(ulimit -Hn)"
if [ "$files" = unlimited ] || [ "$files" -gt 1048576 ]; then files=1048576; fi
a_table=$((files * 17 / 20))
needed=$(((connections + a_table - 1) / a_table))
shards="${shards:-$((needed > 60 ? needed : 60))}"

if "$tune"; then
  say "raising what the kernel limits"
  tuning/apply.sh --apply --undo-file "$undo" >&2
fi

drops=(ListenOverflows ListenDrops TCPTimeouts TCPRcvQDrop TCPMemoryPressures PruneCalled)
declare -A drops_before
for name in "${drops[@]}"; do drops_before[$name]="$(tcp_counter "$name")"; done

say "starting the server: $contestant with $shards shards"
if [ "$contestant" = floor ]; then
  # As many as a ring's own table of files may have.
  members=$((connections / shards * 11 / 10 < files ? connections / shards * 11 / 10 : files))
  target/release/examples/floor --listen 127.0.0.1:0 --mode idle --threads "$shards" \
    --members "$members" >"$scratch/server.out" 2>"$scratch/server.log" &
else
  "$campanile" serve --listen 127.0.0.1:0 --ops-listen 127.0.0.1:0 --shards "$shards" \
    --private-fd-tables true --limits-ping-interval-ms "$((ping_s * 1000))" \
    --limits-handshake-timeout-ms 60000 --auth-user-rights publish,broadcast >"$scratch/server.out" 2>"$scratch/server.log" &
fi
server=$!
for _ in $(seq 300); do
  grep -q 'listening on' "$scratch/server.out" && break
  kill -0 "$server" 2>/dev/null || { cat "$scratch/server.log" >&2; say "the server did not start"; exit 1; }
  sleep 0.1
done
public="$(sed -n 's#.*listening on \(ws://\)\{0,1\}\([0-9.:]*\).*#\2#p' "$scratch/server.out")"
ops="$(sed -n 's#.*ops on http://\([0-9.:]*\).*#\1#p' "$scratch/server.out")"
[ -n "$public" ] || { cat "$scratch/server.log" >&2; say "the server never said where it listens"; exit 1; }

rss_before_kib="$(server_rss_kib)"
free_before_kib="$(free_kib)"
slab_before_kib="$(memory_kib Slab)"

say "connecting $connections"
more=()
[ "$contestant" = floor ] || more+=(--broadcast --broadcast-timeout-s 300)
# Both ends share these cores, and towards the end heartbeats have most of them: few handshakes at a
# time and long patience, because who gives up and comes again makes it no faster.
"$campanile" load idle --conns "$connections" --room-mix --hold-s "$hold_s" --timeout-s 1800 \
  --connect-concurrency 64 --handshake-timeout-s 120 \
  --url "ws://$public/ws" --pid "$server" --json "${more[@]}" >"$scratch/load.json" &
load=$!

# Ends everything before the kernel has to choose whom to end.
(
  while kill -0 "$load" 2>/dev/null; do
    if [ "$(free_kib)" -lt "$MEMORY_FREE_KIB_MIN" ]; then
      say "less than $((MEMORY_FREE_KIB_MIN / 1024)) MiB are free: giving up"
      kill -KILL "$load" "$server" 2>/dev/null || true
      exit
    fi
    sleep 0.3
  done
) &
guard=$!

# A line a second, until the generator ends.
series="$scratch/series.tsv"
(
  printf 'second\tconnections\tpings\tserver_ticks\tserver_rss_kib\tfree_kib\tslab_kib\ttcp_pages\ttcp_sockets\n'
  first=$SECONDS
  while kill -0 "$load" 2>/dev/null; do
    open=0 pings=0
    if [ -n "$ops" ]; then
      read -r open pings < <(curl -sf --max-time 5 "http://$ops/metrics" | awk '
        { key = $1; sub(/\{.*/, "", key) }
        key == "campanile_connections" { open += $NF }
        key == "campanile_pings_total" { pings += $NF }
        END { print open + 0, pings + 0 }') || true
    fi
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$((SECONDS - first))" "${open:-0}" "${pings:-0}" \
      "$(server_ticks)" "$(server_rss_kib)" "$(free_kib)" "$(memory_kib Slab)" \
      "$(tcp_now mem)" "$(tcp_now inuse)"
    sleep 1
  done
) >"$series" &
watch=$!

load_status=0
wait "$load" || load_status=$?
load=""
end "$guard" 10
guard=""
end "$watch" 60
watch=""
if [ ! -s "$scratch/load.json" ]; then
  tail -5 "$scratch/server.log" >&2
  say "the generator ended without a result"
  exit 1
fi

joined="$(found joined)"
some=$((joined > 0 ? joined : 1))
# Held is what the last line shows in which both ends of everybody were open; the hold is the time
# before it, without what the message to all left to do.
read -r held_s pings ticks free_held_kib slab_held_kib < <(awk -F'\t' -v hold="$hold_s" -v both="$((joined * 2))" '
  NR > 1 { n++; t[n] = $1; p[n] = $3; c[n] = $4; f[n] = $6; s[n] = $7; if ($9 >= both) last = n }
  END {
    if (!last) last = n
    first = last; while (first > 1 && t[first - 1] >= t[last] - hold + 3) first--
    print t[last] - t[first], p[last] - p[first], c[last] - c[first], f[last], s[last]
  }' "$series")
free_least_kib="$(awk -F'\t' 'NR > 1 && (!min || $6 < min) { min = $6 } END { print min + 0 }' "$series")"
pages_most="$(awk -F'\t' 'NR > 1 && $8 > max { max = $8 } END { print max + 0 }' "$series")"
ticks_a_second="$(getconf CLK_TCK)"

table() {
  echo "| \`$command_line\` | |"
  echo "|---|---|"
  echo "| joined | $joined of $connections |"
  echo "| time to join | $(calc %.1f "$(found seconds)") s, $(calc %.0f "$(found per_second)") a second |"
  echo "| server | $contestant, $shards shards; RSS $((rss_before_kib / 1024)) MiB before; $(calc %.0f "$(found rss_per_conn)") B a connection |"
  echo "| machine, both ends | $(calc %.0f "($free_before_kib - $free_held_kib) * 1024 / $some") B a connection ($(calc %.0f "$(found machine_per_conn)") by MemAvailable, which counts half of the sockets' inodes as free) |"
  echo "| of it kernel slab, both ends | $(calc %.0f "($slab_held_kib - $slab_before_kib) * 1024 / $some") B a connection |"
  echo "| least memory free | $((free_least_kib / 1024)) MiB of $(($(memory_kib MemTotal) / 1024)); $((free_before_kib / 1024)) before |"
  if [ "$contestant" = campanile ]; then
    echo "| one message to all | $(found received) of $(found expected) received it, the last after $(calc %.1f "$(found max_us) / 1e6") s, half after $(calc %.1f "$(found p50_us) / 1e6") s |"
    echo "| heartbeats while held | $pings pings in $held_s s: $(calc %.0f "$pings / ($held_s > 0 ? $held_s : 1)") a second, $(calc %.0f "$connections / $ping_s") are due, one every $ping_s s to each |"
    echo "| server while held | $(calc %.2f "$ticks / $ticks_a_second / ($held_s > 0 ? $held_s : 1)") cores, $(calc %.1f "$ticks * 1e6 / $ticks_a_second / ($pings > 0 ? $pings : 1)") µs a ping and its pong |"
  else
    echo "| server while held | $(calc %.2f "$ticks / $ticks_a_second / ($held_s > 0 ? $held_s : 1)") cores |"
  fi
  echo "| connections lost, attempts that failed | $(found lost_connections), $(tries) |"
  echo "| most pages in TCP buffers | $pages_most |"
  local name row=""
  for name in "${drops[@]}"; do
    row+="${row:+, }$name $(($(tcp_counter "$name") - ${drops_before[$name]}))"
  done
  echo "| kernel's counters | $row |"
  echo "| all of it | $((SECONDS - began)) s; kernel $(uname -r), $(nproc) cores, commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown) |"
}
table | tee "$scratch/table.md"
if [ -n "$out" ]; then
  mkdir -p "$(dirname "$out")"
  cp "$scratch/table.md" "$out"
  cp "$series" "${out%.md}.tsv"
fi
if [ "$load_status" -ne 0 ]; then
  grep -o '"shortfalls": *\[[^]]*\]' "$scratch/load.json" >&2 || true
  say "not everything was reached"
fi
exit "$load_status"
