#!/usr/bin/env bash
# Shows what tuning/sysctl.conf would change on this host, and changes nothing.
#
#   tuning/apply.sh             what would change
#   tuning/apply.sh --apply     changes it until the next boot, and writes how it was to an undo file
#   tuning/apply.sh --undo      makes it as it was before the first --apply
#
# It only raises: a host that has more of something keeps it. Applied twice, the second time changes
# nothing, and the undo file still says how it was before the first.
#
#   --undo-file FILE   default /run/campanile-tuning.undo, or $CAMPANILE_TUNING_UNDO
#   --conf FILE        default sysctl.conf beside this script
#   --root FOLDER      a host whose proc/ is below FOLDER, for tests
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
conf="$here/sysctl.conf"
undo="${CAMPANILE_TUNING_UNDO:-/run/campanile-tuning.undo}"
root=""
mode=show

usage() {
  echo "usage: tuning/apply.sh [--apply | --undo] [--undo-file FILE] [--conf FILE] [--root FOLDER]" >&2
  exit 2
}

while [ "$#" -gt 0 ]; do
  case "$1" in
    --apply) mode=apply ;;
    --undo) mode=undo ;;
    --undo-file | --conf | --root)
      [ "$#" -ge 2 ] || usage
      case "$1" in
        --undo-file) undo="$2" ;;
        --conf) conf="$2" ;;
        --root) root="${2%/}" ;;
      esac
      shift
      ;;
    *) usage ;;
  esac
  shift
done

file_of() { echo "$root/proc/sys/${1//.//}"; }

# The numbers of a key, with one blank between them.
read_key() { tr -s '[:space:]' ' ' <"$(file_of "$1")" | sed 's/^ //; s/ $//'; }

# 0 when it was taken. The kernel may refuse in a container or above its own bounds.
write_key() { { echo "$2" >"$(file_of "$1")"; } 2>/dev/null && [ "$(read_key "$1")" = "$2" ]; }

refuse_without_root() {
  [ -n "$root" ] || [ "$(id -u)" -eq 0 ] || {
    echo "tuning/apply.sh: only root may change the kernel's settings. Nothing was changed." >&2
    exit 1
  }
}

# Whether $1 > $2, for whole numbers of any length: file-max may be 2^63 - 1 or more.
is_more() {
  local a="$1" b="$2"
  if [ "${#a}" -ne "${#b}" ]; then [ "${#a}" -gt "${#b}" ]; else [[ "$a" > "$b" ]]; fi
}

# The most that this host's memory allows of the n-th number of tcp_mem, in pages of 4 KiB.
tcp_mem_max() {
  local kib share=(8 4 2)
  kib="$(awk '/^MemTotal:/ { print $2 }' "$root/proc/meminfo")"
  echo "$((kib / 4 / share[$1]))"
}

# What a key should be: number by number the larger one, of what it is and what is wanted.
raised() {
  local key="$1" have want out=() i
  read -ra have <<<"$2"
  read -ra want <<<"$3"
  for i in "${!want[@]}"; do
    local wanted="${want[$i]}" present="${have[$i]}"
    if [ "$key" = net.ipv4.tcp_mem ]; then
      local most
      most="$(tcp_mem_max "$i")"
      if is_more "$wanted" "$most"; then wanted="$most"; fi
    fi
    # The first local port is the one number of which less is more.
    if [ "$key" = net.ipv4.ip_local_port_range ] && [ "$i" -eq 0 ]; then
      if is_more "$present" "$wanted"; then out+=("$wanted"); else out+=("$present"); fi
    elif is_more "$wanted" "$present"; then
      out+=("$wanted")
    else
      out+=("$present")
    fi
  done
  echo "${out[*]}"
}

# Notes how a key was, unless it is noted already.
note() {
  if [ ! -e "$undo" ]; then
    mkdir -p "$(dirname "$undo")"
    echo "# How this host was before tuning/apply.sh --apply. Back: tuning/apply.sh --undo" >"$undo"
  fi
  grep -q "^$1 = " "$undo" || echo "$1 = $2" >>"$undo"
}

undo_all() {
  if [ ! -e "$undo" ]; then
    echo "Nothing to undo: there is no $undo."
    return
  fi
  local key was failed=0
  # Backwards: what was raised last comes down first.
  while IFS='=' read -r key was; do
    key="${key// /}"
    case "$key" in "" | \#*) continue ;; esac
    was="${was# }"
    if write_key "$key" "$was"; then
      echo "  restored  $key = $was"
    else
      echo "  REFUSED   $key = $was: the kernel does not take it" >&2
      failed=1
    fi
  done < <(tac "$undo")
  if [ "$failed" -ne 0 ]; then
    echo "$undo is kept." >&2
    exit 1
  fi
  rm -f "$undo"
  echo "This host is as it was."
}

change_all() {
  local key wanted present target changes=0 failed=0
  while IFS='=' read -r key wanted; do
    key="${key// /}"
    case "$key" in "" | \#*) continue ;; esac
    wanted="$(echo "$wanted" | xargs)"
    if [ ! -r "$(file_of "$key")" ]; then
      echo "  missing   $key: this kernel does not have it"
      continue
    fi
    present="$(read_key "$key")"
    target="$(raised "$key" "$present" "$wanted")"
    if [ "$present" = "$target" ]; then
      echo "  good      $key = $present"
      continue
    fi
    changes=$((changes + 1))
    if [ "$mode" = show ]; then
      echo "  would be  $key: $present -> $target"
      continue
    fi
    note "$key" "$present"
    if write_key "$key" "$target"; then
      echo "  changed   $key: $present -> $target"
    else
      echo "  REFUSED   $key: $present -> $target: the kernel does not take it" >&2
      failed=1
    fi
  done <"$conf"

  if [ "$changes" -eq 0 ]; then
    echo "Nothing to change."
  elif [ "$mode" = show ]; then
    echo "Nothing was changed. As root: tuning/apply.sh --apply"
  else
    echo "How it was: $undo. Back: tuning/apply.sh --undo"
    echo "To keep it over a boot: cp $conf /etc/sysctl.d/60-campanile.conf (which also lowers what is higher now)"
  fi
  [ "$failed" -eq 0 ]
}

case "$mode" in
  show) change_all ;;
  apply)
    refuse_without_root
    change_all
    ;;
  undo)
    refuse_without_root
    undo_all
    ;;
esac
