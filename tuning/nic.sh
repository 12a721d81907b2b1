#!/usr/bin/env bash
# Spreads a network card's work over the cores that have shards: interrupts and queues (RSS), packets
# (RPS, RFS) and sends (XPS). Shows what it would change, and changes nothing.
#
#   tuning/nic.sh eth0                       what would change, and the lines that would undo it
#   tuning/nic.sh eth0 --apply               changes it until the next boot, and writes an undo file
#   tuning/nic.sh eth0 --undo                makes it as it was before the first --apply
#
#   --cores LIST       cores that have shards, as in `serve --cores`; all that are online by default
#   --undo-file FILE   default /run/campanile-nic-INTERFACE.undo
#   --root FOLDER      a host whose proc/ and sys/ are below FOLDER, for tests
set -euo pipefail

usage() {
  echo "usage: tuning/nic.sh INTERFACE [--apply | --undo] [--cores LIST] [--undo-file FILE] [--root FOLDER]" >&2
  exit 2
}

mode=show
cores_said=""
undo=""
root=""
[ "$#" -ge 1 ] || usage
interface="$1"
case "$interface" in -* | */* | "") usage ;; esac
shift
while [ "$#" -gt 0 ]; do
  case "$1" in
    --apply) mode=apply ;;
    --undo) mode=undo ;;
    --cores | --undo-file | --root)
      [ "$#" -ge 2 ] || usage
      case "$1" in
        --cores) cores_said="$2" ;;
        --undo-file) undo="$2" ;;
        --root) root="${2%/}" ;;
      esac
      shift
      ;;
    *) usage ;;
  esac
  shift
done
undo="${undo:-/run/campanile-nic-$interface.undo}"
net="/sys/class/net/$interface"

fail() {
  echo "tuning/nic.sh: $1" >&2
  exit 1
}

[ -d "$root$net" ] || fail "there is no interface $interface. These are: $(cd "$root/sys/class/net" && echo *)"
[ "$mode" = show ] || [ -n "$root" ] || [ "$(id -u)" -eq 0 ] ||
  fail "only root may change this. Nothing was changed."

# 0-3,6 -> 0 1 2 3 6
expand() {
  local part first last core
  for part in ${1//,/ }; do
    first="${part%-*}" last="${part#*-}"
    [[ "$first$last" =~ ^[0-9]+$ ]] || fail "--cores $1: write it as 0-3,6"
    for ((core = first; core <= last; core++)); do echo "$core"; done
  done
}

# Cores as the kernel writes a mask: words of 32 bits in hexadecimal, the highest first.
mask_of() {
  local -a words=()
  local core i top=0 out=""
  for core in "$@"; do
    i=$((core / 32))
    words[i]=$((${words[i]:-0} | 1 << core % 32))
    if [ "$i" -gt "$top" ]; then top=$i; fi
  done
  for ((i = top; i >= 0; i--)); do out+="$(printf '%08x' "${words[i]:-0}"),"; done
  echo "${out%,}"
}

# As a number of that kind would be written after all leading zeroes are gone: to compare two.
plain() {
  local text="${1//,/}"
  text="${text#"${text%%[!0]*}"}"
  echo "${text:-0}"
}

read_file() { tr -s '[:space:]' ' ' <"$root$1" | sed 's/^ //; s/ $//'; }

changes=0
refused=0

# Sets one file, for one reason: PATH VALUE WHAT.
set_file() {
  local path="$1" value="$2" what="$3" present
  [ -e "$root$path" ] || return 0
  # A card with a single queue answers ENOENT for what only several have.
  present="$(read_file "$path" 2>/dev/null)" || return 0
  if [ "$(plain "$present")" = "$(plain "$value")" ]; then
    echo "  good      $what: $present"
    return 0
  fi
  changes=$((changes + 1))
  if [ "$mode" = show ]; then
    echo "  would be  $what: $present -> $value"
    echo "            undo: echo $present > $path"
    return 0
  fi
  note "$path" "$present"
  if { echo "$value" >"$root$path"; } 2>/dev/null; then
    echo "  changed   $what: $present -> $value"
  else
    echo "  REFUSED   $what: $present -> $value ($path): the driver keeps it to itself" >&2
    refused=1
  fi
}

note() {
  if [ ! -e "$undo" ]; then
    mkdir -p "$(dirname "$undo")"
    echo "# How $interface was before tuning/nic.sh --apply. Back: tuning/nic.sh $interface --undo" >"$undo"
  fi
  grep -qF "$1 = " "$undo" || echo "$1 = $2" >>"$undo"
}

undo_all() {
  if [ ! -e "$undo" ]; then
    echo "Nothing to undo: there is no $undo."
    return
  fi
  local path was
  while IFS='=' read -r path was; do
    path="${path% }" was="${was# }"
    case "$path" in "" | \#*) continue ;; esac
    if [ "$path" = channels ]; then
      ethtool -L "$interface" combined "$was"
      echo "  restored  queues: $was"
    elif { echo "$was" >"$root$path"; } 2>/dev/null; then
      echo "  restored  $path = $was"
    # What was refused when it was changed is as it was.
    elif [ "$(plain "$(read_file "$path")")" = "$(plain "$was")" ]; then
      echo "  is still  $path = $was"
    else
      echo "  REFUSED   $path = $was" >&2
      refused=1
    fi
  done < <(tac "$undo")
  [ "$refused" -eq 0 ] || fail "$undo is kept."
  rm -f "$undo"
  echo "$interface is as it was."
}

# Numbers of the card's interrupts that move packets, in the order of its queues. A virtio card's
# are its parent's; those for configuration and events carry nothing.
interrupts() {
  local folder irq name
  for folder in "$root$net/device/msi_irqs" "$root$net/device/../msi_irqs"; do
    [ -d "$folder" ] || continue
    for irq in $(ls "$folder" | sort -n); do
      name="$(awk -v irq="$irq:" '$1 == irq { print $NF }' "$root/proc/interrupts")"
      case "$name" in "" | *config* | *event* | *ctrl* | *cmd* | *async* | *misc*) ;; *) echo "$irq $name" ;; esac
    done
    return
  done
}

# Asks the card for a queue for each core, where it has as many. Needs ethtool.
channels() {
  [ -z "$root" ] && command -v ethtool >/dev/null || return 0
  local now most wanted
  read -r most now < <(ethtool -l "$interface" 2>/dev/null |
    awk '/^Combined:/ { n[++i] = $2 } END { print n[1] + 0, n[2] + 0 }')
  wanted="$((${#cores[@]} < most ? ${#cores[@]} : most))"
  [ "$wanted" -gt "$now" ] || return 0
  changes=$((changes + 1))
  if [ "$mode" = show ]; then
    echo "  would be  queues (RSS): $now -> $wanted"
    echo "            undo: ethtool -L $interface combined $now"
  else
    note channels "$now"
    ethtool -L "$interface" combined "$wanted"
    echo "  changed   queues (RSS): $now -> $wanted"
  fi
}

change_all() {
  local rx tx irq name i=0 all flows=32768
  mapfile -t cores < <(expand "${cores_said:-$(read_file /sys/devices/system/cpu/online)}")
  [ "${#cores[@]}" -gt 0 ] || fail "no cores: write --cores 0-3"
  all="$(mask_of "${cores[@]}")"
  if [ -z "$root" ] && pgrep -x irqbalance >/dev/null; then
    echo "  beware    irqbalance runs, and will move interrupts again: systemctl disable --now irqbalance"
  fi
  channels

  # Each interrupt to one core, in turn: with as many queues as shards, each shard's core receives.
  while read -r irq name; do
    # A card with one pair of queues calls its interrupts rx and tx (or input and output), which are one queue's.
    set_file "/proc/irq/$irq/smp_affinity" "$(mask_of "${cores[i % ${#cores[@]}]}")" "interrupt $irq ($name)"
    case "$name" in *rx* | *input*) ;; *) i=$((i + 1)) ;; esac
  done < <(interrupts)

  rx=("$root$net"/queues/rx-*)
  tx=("$root$net"/queues/tx-*)
  # Fewer queues than cores: the receiving core only passes packets on, and RFS to the core where
  # the connection's shard runs. With enough queues the interrupt is on the right core already.
  if [ "${#rx[@]}" -lt "${#cores[@]}" ]; then
    set_file /proc/sys/net/core/rps_sock_flow_entries "$flows" "flows to remember (RFS)"
    for ((i = 0; i < ${#rx[@]}; i++)); do
      set_file "$net/queues/rx-$i/rps_cpus" "$all" "cores of queue rx-$i (RPS)"
      set_file "$net/queues/rx-$i/rps_flow_cnt" "$((flows / ${#rx[@]}))" "flows of queue rx-$i (RFS)"
    done
  fi
  # Each send queue to the cores that come to it in turn, so that two shards share none they need not.
  if [ "${#tx[@]}" -gt 1 ]; then
    for ((i = 0; i < ${#tx[@]}; i++)); do
      local mine=() n
      for ((n = i % ${#cores[@]}; n < ${#cores[@]}; n += ${#tx[@]})); do mine+=("${cores[n]}"); done
      set_file "$net/queues/tx-$i/xps_cpus" "$(mask_of "${mine[@]}")" "cores of queue tx-$i (XPS)"
    done
  fi

  if [ "$changes" -eq 0 ]; then
    echo "Nothing to change."
  elif [ "$mode" = show ]; then
    echo "Nothing was changed. As root: tuning/nic.sh $interface --apply"
  else
    echo "How it was: $undo. Back: tuning/nic.sh $interface --undo"
  fi
  [ "$refused" -eq 0 ]
}

cores=()
case "$mode" in
  undo) undo_all ;;
  *) change_all ;;
esac
