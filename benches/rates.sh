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
