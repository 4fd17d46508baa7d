#!/bin/sh
# Gives this host what check.sh finds lacking, as far as a running kernel can be given it: kernel settings, interrupts,
# packet steering, governor, clock source, irqbalance. Not what needs another kernel command line, another
# card setting (ethtool -L) or other settings of millrace: check.sh names those.
#
#   tuning/apply.sh             shows what it would write, and writes nothing
#   tuning/apply.sh --apply     writes it, and saves the values from before
#   tuning/apply.sh --undo      writes those back, the last first, and forgets them
#
# What is written lasts until the next start of the host. CORES etc. come from the running millrace or from this
# shell's environment, as with check.sh; without a CPU beside CORES, or with
# CONNECTION_PLACEMENT=cpu, interrupts and packets stay where they are.
# Exit status: 0, or 1 when something could not be written, or 2 for a wrong argument or without root.
#
# CHECK_ROOT names a directory to work in instead of /, for tests; SYSTEMCTL the command that stops and starts irqbalance.
set -u
export LC_ALL=C

root=${CHECK_ROOT-}
# Gone with the next start of the host, as what is applied is.
saved=$root/run/millrace-tuning/saved
systemctl=${SYSTEMCTL-systemctl}
here=$(dirname "$0")
failed=0
# shellcheck source=tuning/host.sh
. "$here/host.sh"

complain() { printf 'apply.sh: %s\n' "$*" >&2; }

case ${1-}:$# in
:0) mode=show ;;
--apply:1) mode=apply ;;
--undo:1) mode=undo ;;
*)
    complain 'wanted: nothing, --apply or --undo'
    exit 2
    ;;
esac
if [ "$mode" != show ] && [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
    complain "--$mode needs root"
    exit 2
fi

# A line per value from before: its file, a tab, the value; or `service`, a tab, its name. What an earlier --apply saved
# stays: it is what --undo is to bring back.
remember() {
    added=
    [ -e "$saved" ] && cut -f 1 "$saved" | grep -qxF -- "$1" && return 0
    added=1
    mkdir -p "${saved%/*}" && printf '%s\t%s\n' "$1" "$2" >>"$saved"
}
# The line saved last, for what was then refused.
forget() {
    sed '$d' "$saved" >"$saved.new" && mv "$saved.new" "$saved"
}

# FILE VALUE: gives the file this value, unless it has it.
give() {
    old=$(line "$1")
    [ -n "$old" ] || return 0
    [ "$old" != "$2" ] || return 0
    if [ "$mode" = show ]; then
        printf 'would write %s to %s (now %s)\n' "$2" "$1" "$old"
        return
    fi
    if ! remember "$1" "$old"; then
        complain "$saved cannot be written, so $1 stays as it is"
        failed=1
    elif write "$1" "$2"; then
        printf '%s: %s (was %s)\n' "$1" "$2" "$old"
    elif [ -n "$added" ]; then
        forget
    fi
}

# The kernel refuses some values, for example for interrupts that it manages itself.
write() {
    { printf '%s\n' "$2" >"$root$1"; } 2>/dev/null && return
    complain "$1 does not take $2"
    failed=1
    return 1
}

if [ "$mode" = undo ]; then
    # An empty one is what --apply leaves when everything was refused.
    if ! [ -s "$saved" ]; then
        echo 'nothing was applied'
        rm -f "$saved"
        exit
    fi
    # The last first. What is refused stays saved, in the order in which it was.
    sed -n '1!G;h;$p' "$saved" | {
        refused=
        while IFS='	' read -r what value; do
            if [ "$what" = service ]; then
                "$systemctl" start "$value" </dev/null
            elif ! [ -e "$root$what" ]; then
                printf '%s: gone, so nothing to undo\n' "$what"
                continue
            else
                write "$what" "$value"
            fi && printf '%s: %s\n' "$what" "$value" && continue
            refused="$what	$value
$refused"
        done
        printf '%s' "$refused" >"$saved.new" && mv "$saved.new" "$saved"
        [ -z "$refused" ]
    } && rm -f "$saved"
    exit
fi

look_at_host ''

# As 99-millrace.conf has them; one that is larger already stays.
while IFS='= ' read -r key value; do
    case $key in '' | '#'*) continue ;; esac
    key=${key#-}
    file=/proc/sys/$(printf '%s' "$key" | tr . /)
    found=$(line "$file")
    [ "$key" = net.core.somaxconn ] && [ -n "$found" ] && [ "$found" -ge "$value" ] && continue
    give "$file" "$value"
done <"$here/99-millrace.conf"

for core in $cores; do
    give "/sys/devices/system/cpu/cpu$core/cpufreq/scaling_governor" performance
done

clocks=/sys/devices/system/clocksource/clocksource0
case $(line "$clocks/current_clocksource") in
tsc | arch_sys_counter | kvm-clock | hyperv_clocksource_tsc_page) ;;
*)
    case " $(line "$clocks/available_clocksource") " in
    *' tsc '*) give "$clocks/current_clocksource" tsc ;;
    esac
    ;;
esac

# The queue that CPU number $1 of $2 in a row sends to, of $3 queues.
for nic in $nics; do
    sent=0 mapped=0
    for queue in "$root/sys/class/net/$nic"/queues/tx-*; do
        sent=$((sent + 1))
        [ -z "$(unmask "$(line "${queue#"$root"}/xps_cpus")")" ] || mapped=1
    done
    if [ "$sent" -gt 1 ] && [ "$mapped" = 0 ]; then
        number=0
        while [ "$number" -lt "$sent" ]; do
            mine='' at=0
            for cpu in $online; do
                [ $((at % sent)) -ne "$number" ] || mine="$mine$cpu "
                at=$((at + 1))
            done
            [ -z "$mine" ] || give "/sys/class/net/$nic/queues/tx-$number/xps_cpus" "$(mask "$mine")"
            number=$((number + 1))
        done
    fi
done

if [ "$(setting CONNECTION_PLACEMENT)" = cpu ]; then
    echo 'CONNECTION_PLACEMENT=cpu: interrupts and packets belong on CORES, and stay where they are'
    exit "$failed"
fi
if [ -z "$spare" ]; then
    echo 'CORES takes all CPUs: interrupts and packets stay where they are'
    exit "$failed"
fi

balance=$(process_named irqbalance)
banned=
[ -z "$balance" ] ||
    banned=$(tr '\0' '\n' 2>/dev/null <"$root$balance/environ" | sed -n 's/^IRQBALANCE_BANNED_CPULIST=//p')
if [ -n "$balance" ] && [ -n "$(without "$cores" "$(expand "$banned")")" ]; then
    if [ "$mode" = show ]; then
        echo 'would stop irqbalance'
    elif remember service irqbalance && "$systemctl" stop irqbalance </dev/null; then
        echo 'irqbalance: stopped'
    else
        complain 'irqbalance could not be stopped'
        failed=1
    fi
fi

for number in $(interrupts_on "$cores"); do
    give "/proc/irq/$number/smp_affinity_list" "$(commas "$spare")"
done

for nic in $nics; do
    for queue in "$root/sys/class/net/$nic"/queues/rx-*; do
        file=${queue#"$root"}/rps_cpus
        [ -z "$(common "$(unmask "$(line "$file")")" "$cores")" ] || give "$file" "$(mask "$spare")"
    done
done

exit "$failed"
