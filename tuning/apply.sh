#!/usr/bin/env bash
# Shows what tuning/sysctl.conf would change on this host; with --apply, changes it until the next
# boot. A single number is only ever raised: a host that already has more keeps it.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

apply=false
case "${1:-}" in
  "") ;;
  --apply) apply=true ;;
  *)
    echo "usage: tuning/apply.sh [--apply]" >&2
    exit 2
    ;;
esac

changes=0
while IFS='=' read -r key wanted; do
  key="${key// /}"
  case "$key" in "" | \#*) continue ;; esac
  wanted="$(echo "$wanted" | xargs)"
  file="/proc/sys/${key//.//}"
  if [ ! -r "$file" ]; then
    echo "  missing   $key: this kernel does not have it"
    continue
  fi
  present="$(xargs <"$file")"
  # Numbers beyond 64 bits of shell arithmetic do not occur; file-max may be 2^63 - 1.
  if [ "$present" = "$wanted" ] ||
    { [[ "$wanted" != *" "* ]] && [ "$present" -ge "$wanted" ]; }; then
    echo "  good      $key = $present"
    continue
  fi
  changes=$((changes + 1))
  if "$apply"; then
    sysctl -q -w "$key=$wanted"
    echo "  changed   $key: $present -> $wanted"
  else
    echo "  would be  $key: $present -> $wanted"
  fi
done <sysctl.conf

if [ "$changes" -eq 0 ]; then
  echo "Nothing to change."
elif "$apply"; then
  echo "To keep it: cp $PWD/sysctl.conf /etc/sysctl.d/60-campanile.conf"
else
  echo "Nothing was changed. As root: tuning/apply.sh --apply"
fi
