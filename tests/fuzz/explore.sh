#!/usr/bin/env bash
# Explores the targets of tests/fuzz with libFuzzer, and minimises what it found into their corpora.
#
#   tests/run.sh fuzz --minutes 60                 each target for an hour, one after another
#   tests/run.sh fuzz --minutes 5 --target json    only this one
#   tests/run.sh fuzz --minutes 0                  only minimises what was found before
#
# An input that fails is in target/fuzz/failed/ and its report above the table; the exit code is 1 then.
# FUZZ_EXPLORER=path takes a binary that tests/fuzz/build.sh has built before.
#
# A bug that is fixed gets its input into tests/fuzz/corpus/<target>/bug-<what>. Those and seed-<number>,
# which were written by hand, are removed by no minimising.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

minutes=60
targets=()
while [ "$#" -gt 0 ]; do
  case "$1" in
    --minutes) minutes="${2:?--minutes wants a number}" ;;
    --target) targets+=("${2:?--target wants a name}") ;;
    *)
      echo "no such option: $1" >&2
      exit 2
      ;;
  esac
  shift 2
done
if [ "${#targets[@]}" -eq 0 ]; then
  for folder in tests/fuzz/corpus/*/; do targets+=("$(basename "$folder")"); done
fi

explorer="${FUZZ_EXPLORER:-$(bash tests/fuzz/build.sh)}"
work=target/fuzz
mkdir -p "$work/failed" "$work/logs"
# Ends by its time, or else by its memory or a single slow input.
limits=(-max_len=4096 -timeout=20 -rss_limit_mb=2048 -detect_leaks=0)

explore() { # target
  local found="$work/found/$1" dictionary="tests/fuzz/dictionaries/$1.txt" options=()
  mkdir -p "$found"
  [ ! -e "$dictionary" ] || options+=("-dict=$dictionary")
  FUZZ_TARGET="$1" nice -n 19 "$explorer" "$found" "tests/fuzz/corpus/$1" "${limits[@]}" "${options[@]}" \
    -max_total_time="$((minutes * 60))" -print_final_stats=1 -verbosity=1 \
    -artifact_prefix="$work/failed/$1-" >"$work/logs/$1.log" 2>&1
}

# Adds to seeds and bugs the smallest inputs that reach edges which none of them does. How often an edge
# was passed does not count, or the corpora would have thousands of files.
minimise() { # target
  local corpus="tests/fuzz/corpus/$1" smallest="$work/smallest/$1"
  rm -rf "$smallest"
  mkdir -p "$smallest" "$work/found/$1"
  find "$corpus" -type f \( -name 'seed-*' -o -name 'bug-*' \) -exec cp -t "$smallest" {} +
  FUZZ_TARGET="$1" nice -n 19 "$explorer" -merge=1 -use_counters=0 "${limits[@]}" \
    "$smallest" "$corpus" "$work/found/$1" >"$work/logs/$1-minimise.log" 2>&1
  find "$corpus" -type f -delete
  cp "$smallest"/* "$corpus/"
}

row() { # target
  local log="$work/logs/$1.log" executions edges
  touch "$log"
  executions="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
  edges="$(sed -n 's/.*cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)"
  printf '| `%s` | %s | %s | %s | %s |\n' "$1" "$minutes" "${executions:-?}" "${edges:-?}" \
    "$(find "tests/fuzz/corpus/$1" -type f | wc -l)"
}

failed=0
rows=()
for target in "${targets[@]}"; do
  echo "exploring $target for $minutes minutes: $work/logs/$target.log" >&2
  if [ "$minutes" != 0 ] && ! explore "$target"; then
    failed=1
    tail -n 40 "$work/logs/$target.log" >&2
  else
    minimise "$target"
  fi
  rows+=("$(row "$target")")
done
printf '| target | minutes | executions | edges | inputs |\n|---|---|---|---|---|\n'
printf '%s\n' "${rows[@]}"
exit "$failed"
