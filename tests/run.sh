#!/usr/bin/env bash
# Everything that says whether this tree is good: format, lints, documentation, every test, every
# benchmark once.
#
#   tests/run.sh            all of it, from a clean clone on a Debian machine that has only Rust
#   tests/run.sh chaos      a long run of faults out of a hat (tests/chaos), on each deployment of Redis:
#                             --minutes 30        for each of them
#                             --seed 7            which faults come
#                             --on sentinel       only there: standalone, several, sentinel, cluster
#                             --faults kill,freeze  only these
#                             --count 100         so many faults back to back, however long it takes
#   tests/run.sh chaos-matrix  each kind of fault by itself on each deployment, and a table of what was
#                           lost; on those with replicas a message that was acknowledged and is reported
#                           as lost counts, too:
#                             --count 100         so many faults of each kind
#                             --seed, --on, --faults  as above
#   tests/run.sh fuzz       explores what reads bytes from outside, guided by coverage (tests/fuzz):
#                             --minutes 60        for each target
#                             --target json       only this one
#   tests/run.sh versions   nodes of this version and of an older one in one system, under load
#                           (tests/versions); the older binary is built from git below target/
#
# What the tests need and the machine lacks is installed: Debian packages with apt-get (through sudo
# unless this is root), the client libraries below target/. Nothing is skipped when that fails.
#
# CAMPANILE_CHURN=100000 makes the churn test as long as a release wants it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
export RUST_BACKTRACE="${RUST_BACKTRACE:-1}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}"
# Incremental compilation pays for those who compile again. Set it to 1 while working.
export CARGO_INCREMENTAL="${CARGO_INCREMENTAL:-0}"

doing="starting"
finish() {
  local status=$?
  [ "$status" -eq 0 ] || echo "tests/run.sh: FAILED while $doing (exit code $status)" >&2
}
trap finish EXIT

step() {
  doing="$1"
  shift
  local began=$SECONDS
  printf '\n=== %s\n' "$doing"
  "$@"
  printf '=== %s: done in %s s\n' "$doing" "$((SECONDS - began))"
}

has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  else
    sudo "$@"
  fi
}

# Debian packages of the commands that are missing.
install_packages() {
  local missing=()
  has cc || missing+=(build-essential)
  has redis-server || missing+=(redis-server)
  has promtool || missing+=(prometheus)
  has curl || missing+=(curl)
  has openssl || missing+=(openssl)
  { has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null; } || missing+=(python3 python3-venv)
  has node || missing+=(nodejs)
  has npm || missing+=(npm)
  has chromium || missing+=(chromium)
  has haproxy || missing+=(haproxy)
  has nginx || missing+=(nginx-light)
  [ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
  if [ "${#missing[@]}" -eq 0 ]; then
    echo "all there"
    return
  fi
  if ! has apt-get; then
    echo "these are missing, and there is no apt-get to install them: ${missing[*]}" >&2
    return 1
  fi
  as_root apt-get update -qq
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
}

chaos() {
  local minutes=30 count=""
  while [ "$#" -gt 0 ]; do
    if [ "$#" -lt 2 ]; then
      echo "$1 wants a value" >&2
      return 2
    fi
    case "$1" in
      --minutes) minutes="$2" ;;
      --seed) export CHAOS_SEED="$2" ;;
      --on) export CHAOS_ON="$2" ;;
      --faults) export CHAOS_FAULTS="$2" ;;
      --count) count="$2" ;;
      *)
        echo "no such option: $1" >&2
        return 2
        ;;
    esac
    shift 2
  done
  if [ -n "$count" ]; then
    export CHAOS_COUNT="$count"
  else
    export CHAOS_SECONDS="$((minutes * 60))"
  fi
  cargo test --locked --test chaos nothing_is_lost -- --nocapture --test-threads 1
}

# One cell of the matrix: a row of the table.
chaos_cell() {
  local on="$1" fault="$2" count="$3" log="$4"
  local -x CHAOS_ON="$on" CHAOS_FAULTS="$fault" CHAOS_COUNT="$count"
  case "$on" in sentinel | cluster) local -x CHAOS_STRICT=1 ;; esac
  cargo test --locked --test chaos nothing_is_lost -- --nocapture --test-threads 1 >"$log" 2>&1 || true
  local summary faults lost
  if grep -q "can be done here" "$log"; then
    echo "| $on | $fault | – | – | does not exist there |"
    return
  fi
  summary="$(grep "chaos $on seed [0-9]*: .* faults: " "$log" | tail -n 1)"
  faults="$(grep -o "faults: $fault [0-9]*" <<<"$summary" | grep -o '[0-9]*$')"
  lost="$(grep -o 'violations [0-9]*' <<<"$summary" | grep -o '[0-9]*$')"
  echo "| $on | $fault | ${faults:-0} | ${lost:-no end} | $log |"
}

chaos_matrix() {
  local count=10 deployments="standalone several sentinel cluster"
  local kinds="kill empty freeze failover migrate kill_pubsub kill_normal pause scripts memory buffers
    node blackhole_up blackhole_down blackhole delay reset refuse"
  export CHAOS_SEED=7
  while [ "$#" -gt 0 ]; do
    case "$1" in
      --count) count="$2" ;;
      --seed) export CHAOS_SEED="$2" ;;
      --on) deployments="${2//,/ }" ;;
      --faults) kinds="${2//,/ }" ;;
      *)
        echo "no such option: $1" >&2
        return 2
        ;;
    esac
    shift 2
  done
  local folder="${CARGO_TARGET_DIR:-$PWD/target}/chaos-matrix" on fault row has_lost=0
  mkdir -p "$folder"
  cargo test --locked --test chaos --no-run
  echo "| on | fault | faults | violations | log (seed $CHAOS_SEED, $(git rev-parse --short HEAD)) |"
  echo "|---|---|---|---|---|"
  for on in $deployments; do
    for fault in $kinds; do
      row="$(chaos_cell "$on" "$fault" "$count" "$folder/$on-$fault.log")"
      echo "$row"
      grep -q '| \(0\|–\) | [^|]* |$' <<<"$row" || has_lost=1
    done
  done
  return "$has_lost"
}

# The version before nodes named what they read.
OLDER_COMMIT=af6c0be

versions() {
  local tree="$PWD/target/older-tree"
  if [ -z "${OLDER_BINARY:-}" ]; then
    [ -d "$tree" ] || git worktree add --detach "$tree" "$OLDER_COMMIT"
    CARGO_TARGET_DIR="$PWD/target/older" cargo build --locked --bin campanile \
      --manifest-path "$tree/Cargo.toml"
    export OLDER_BINARY="$PWD/target/older/debug/campanile"
  fi
  cargo test --locked --test versions -- --ignored --test-threads 1
}

if [ "${1:-}" = fuzz ]; then
  shift
  step "exploring" bash tests/fuzz/explore.sh "$@"
  exit
fi
step "installing packages that are missing" install_packages
if [ "${1:-}" = chaos ]; then
  shift
  step "chaos $*" chaos "$@"
  exit
fi
if [ "${1:-}" = chaos-matrix ]; then
  shift
  step "chaos-matrix $*" chaos_matrix "$@"
  exit
fi
if [ "${1:-}" = versions ]; then
  step "versions" versions
  exit
fi
step "installing the independent clients" bash tests/clients/install.sh
step "checking the format" cargo fmt --check
step "linting" cargo clippy --locked --all-targets -- -D warnings
# Also of what is private: the documentation is for whoever reads the source.
step "building the documentation" env RUSTDOCFLAGS="-D warnings" \
  cargo doc --no-deps --locked --document-private-items
step "testing" cargo test --locked
step "building the release binary" cargo build --release --locked
# How a node lives and ends differs there: a panic aborts, and code takes other times.
step "testing the release binary" env TEST_BINARY="$PWD/target/release/campanile" \
  cargo test --locked --test e2e -- ending:: closing_handshake:: log:: asking:: ops_port:: auth::
step "searching the release binary" env TEST_BINARY="$PWD/target/release/campanile" \
  cargo test --locked --test advisories
# In the profile of the tests: this asks whether every benchmark runs, not how fast. `cargo bench`
# measures.
step "running every benchmark once" cargo test --locked --bench '*'

printf '\ntests/run.sh: all good, in %s s\n' "$SECONDS"
