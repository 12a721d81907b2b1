#!/usr/bin/env bash
# Builds the explorer of tests/fuzz, with the counters and comparisons that libFuzzer reads, and prints
# its path.
#
# Stable Rust has all of it behind unstable flags, hence RUSTC_BOOTSTRAP. AddressSanitizer sees what the
# unsafe code of dependencies does to memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

host="$(rustc -vV | sed -n 's/^host: //p')"
flags=(
  --cfg libfuzzer
  -Cpasses=sancov-module
  -Cllvm-args=-sanitizer-coverage-level=4
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
  -Cllvm-args=-sanitizer-coverage-pc-table
  -Cllvm-args=-sanitizer-coverage-trace-compares
  -Zsanitizer=address
)
# Other tests' dependencies are built as well, and need not be fast; nor is our own code worth minutes
# of optimising.
slow=(campanile iced-x86 criterion loom proptest serde_yaml_ng)
profile=()
for package in "${slow[@]}"; do
  profile+=(--config "profile.release.package.$package.opt-level=1")
done
# With a target of its own the flags are not those of build scripts and macros.
env RUSTC_BOOTSTRAP=1 RUSTFLAGS="${flags[*]}" CARGO_INCREMENTAL=0 CARGO_TARGET_DIR=target/fuzz \
  CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1 \
  CARGO_PROFILE_RELEASE_PANIC=unwind CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true \
  CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true \
  cargo build "${profile[@]}" --locked --release --target "$host" --example explore >&2
echo "$PWD/target/fuzz/$host/release/examples/explore"
