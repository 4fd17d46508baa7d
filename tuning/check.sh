#!/bin/sh
# Says what of tuning/ this host lacks: one line per knob, and below what is lacking the command that mends it.
# It only reads; apply.sh writes. Exit status: 0 nothing is lacking, 1 something is.
#
#   tuning/check.sh                            for the running millrace: its cores, limits and settings (flags, its
#                                              environment, its TOML file). Run it as root or as the server's user,
#                                              who alone may read those
#   tuning/check.sh PID                        for this one of several
#   MILLRACE_CORES=1-7 MILLRACE_MAX_WORKERS=64 tuning/check.sh
#                                              while none runs: those two, MILLRACE_MAX_CONNECTIONS, MILLRACE_LISTEN and
#                                              the spool's count here; as with the server, CORES etc. are read where the
#                                              prefixed name is not there
#
# CHECK_ROOT names a directory to look in instead of /, for tests.
# Exit status 2: PID is no millrace server.
set -u
export LC_ALL=C

root=${CHECK_ROOT-}
lacking=0
# shellcheck source=tuning/host.sh
. "$(dirname "$(readlink -f "$0")")/host.sh"

if [ "$#" -gt 1 ] || { [ "$#" = 1 ] && { [ -z "$(whole "$1")" ] || ! is_server "/proc/$1"; }; }; then
    printf 'check.sh: %s is no running millrace server: give the process id of one, or nothing\n' "$*" >&2
    exit 2
fi

ok() { printf 'ok     %-37s%s\n' "$1" "$2"; }
unseen() { printf -- '-      %-37s%s\n' "$1" "not visible here${2:+: $2}"; }
lacks() {
    printf 'lacks  %-37s%s\n' "$1" "$2"
    printf '       %-37smend: %s\n' '' "$3"
    lacking=1
}

# NAME at-least|is VALUE, as 99-millrace.conf has it.
check_sysctl() {
    found=$(line "/proc/sys/$(printf '%s' "$1" | tr . /)")
    if [ -z "$found" ]; then
        unseen "$1" "${4-}"
    elif [ "$found" = "$3" ] || { [ "$2" = at-least ] && [ "$found" -ge "$3" ]; }; then
        ok "$1" "$found"
    else
        lacks "$1" "$found, wanted $3" "sysctl -w $1=$3 (to stay: tuning/99-millrace.conf in /etc/sysctl.d)"
    fi
}

# NAME LIMIT WANTED MEND; a limit in bytes or files, or `unlimited`.
check_limit() {
    if [ -z "$2" ]; then
        unseen "$1"
    elif [ "$2" = unlimited ] || [ "$2" -ge "$3" ]; then
        ok "$1" "$2 for $whose, $3 wanted"
    else
        lacks "$1" "$2 for $whose, $3 wanted" "$4"
    fi
}

hard_limit() { sed -n "s/^$1  *[^ ]*  *\([^ ]*\) .*/\1/p" "$root${server:-/proc/self}/limits" 2>/dev/null; }

look_at_host "${1-}"
whose='this shell'
[ -z "$server" ] || whose="process ${server#/proc/}"
cores_named=$(commas "$cores")
spare_named=$(commas "$spare")
cores_count=$(count "$cores")

if [ -z "$online" ]; then
    unseen settings
elif [ -n "$server" ] && ! [ -r "$root$server/environ" ]; then
    unseen settings "of $settings_from: run this as root or as its user"
else
    ok settings "CORES $cores_named, of $settings_from"
fi

release=$(line /proc/sys/kernel/osrelease)
major=${release%%.*} minor=${release#*.}
minor=${minor%%[!0-9]*}
case $major.$minor in
. | .* | *. | *[!0-9.]*) unseen kernel "$release" ;;
*)
    if [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 1 ]; }; then
        ok kernel "$release"
    else
        lacks kernel "$release, wanted 6.1 or newer" 'run a newer kernel: Debian 12, Ubuntu 24.04 or RHEL 10 have one'
    fi
    ;;
esac

check_sysctl kernel.io_uring_disabled is 0 'kernels before 6.6 have no such switch'
check_sysctl net.core.somaxconn at-least 65535
check_sysctl net.ipv4.tcp_slow_start_after_idle is 0
check_sysctl net.ipv4.tcp_tw_reuse is 1

# As src/limits.rs adds them up: per core connections, two files a worker, 64, three for each further address, and those
# of the spool; 128 for the process.
files=$((cores_count * (${connections:-16384} + 2 * ${workers:-32} + 64 + 3 * (addresses - 1) + spool_files) + 128))
check_limit 'open files' "$(hard_limit 'Max open files')" "$files" \
    "LimitNOFILE=$files (unit), --ulimit nofile=$files (docker run); above fs.nr_open raise that first"

# Three times 512 KiB per executor, control included, and as much as 256 KiB for its rings.
memlock=$(((cores_count + 1) * (3 * 512 + 192) * 1024))
check_limit 'locked memory' "$(hard_limit 'Max locked memory')" "$memlock" \
    'LimitMEMLOCK=infinity (unit), --ulimit memlock=-1 (docker run)'

if [ -z "$online" ]; then
    unseen 'control core'
elif [ -n "$spare" ]; then
    ok 'control core' "CPU $spare_named beside CORES $cores_named"
else
    lacks 'control core' "CORES takes all $cores_count CPUs" 'cores = "1-N" in /etc/millrace/millrace.toml leaves CPU 0'
fi

placement=$(setting CONNECTION_PLACEMENT)
isolate="isolcpus=managed_irq,domain,$cores_named nohz_full=$cores_named irqaffinity=$spare_named"
# There the interrupts of the card belong on the cores.
[ "$placement" != cpu ] || isolate="isolcpus=domain,$cores_named nohz_full=$cores_named"
for knob in isolcpus nohz_full; do
    case $knob in
    isolcpus) file=/sys/devices/system/cpu/isolated ;;
    nohz_full) file=/sys/devices/system/cpu/nohz_full ;;
    esac
    if [ ! -r "$root$file" ]; then
        unseen "$knob" "no $file"
        continue
    fi
    left=$(without "$cores" "$(expand "$(line "$file")")")
    if [ -z "$left" ]; then
        ok "$knob" "$cores_named"
    elif [ -z "$spare" ]; then
        lacks "$knob" "not for CPU $(commas "$left")" 'leave a control core first'
    else
        lacks "$knob" "not for CPU $(commas "$left")" "kernel command line: $isolate"
    fi
done

# Every CPU's, and those of CORES.
seen=$(count "$(interrupts_on "$online")")
stray=$(interrupts_on "$cores")
silent=
for core in $cores; do
    [ -n "$(interrupts_on "$core")" ] || silent="$silent$core "
done
if [ "$seen" -eq 0 ]; then
    unseen interrupts
elif [ "$placement" = cpu ] && [ -z "$silent" ]; then
    ok interrupts 'on each of CORES, for CONNECTION_PLACEMENT=cpu'
elif [ "$placement" = cpu ]; then
    lacks interrupts "none on CPU ${silent% }, which so gets no connections (CONNECTION_PLACEMENT=cpu)" \
        "give each of CORES that of a receive queue: echo CPU >/proc/irq/N/smp_affinity_list; or CONNECTION_PLACEMENT=hash"
elif [ -z "$stray" ]; then
    ok interrupts "none of $seen on CORES"
elif [ -z "$spare" ]; then
    lacks interrupts "$(count "$stray") of $seen on CORES" 'leave a control core first'
else
    lacks interrupts "$(count "$stray") of $seen on CORES" \
        "stop irqbalance; for i in ${stray% }; do echo $spare_named >/proc/irq/\$i/smp_affinity_list; done"
fi

# It moves interrupts to CORES again, unless it is told not to.
balance=$(process_named irqbalance)
banned=
[ -z "$balance" ] ||
    banned=$(tr '\0' '\n' 2>/dev/null <"$root$balance/environ" | sed -n 's/^IRQBALANCE_BANNED_CPULIST=//p')
if [ -z "$online" ]; then
    unseen irqbalance
elif [ -z "$balance" ]; then
    ok irqbalance 'not running'
elif [ "$placement" = cpu ]; then
    lacks irqbalance 'running: it moves interrupts to other CPUs, and new connections with them' \
        'systemctl disable --now irqbalance'
elif [ -z "$(without "$cores" "$(expand "$banned")")" ]; then
    ok irqbalance 'keeps off CORES (IRQBALANCE_BANNED_CPULIST)'
else
    lacks irqbalance 'running: it spreads interrupts over CORES too' \
        "systemctl disable --now irqbalance, or IRQBALANCE_BANNED_CPULIST=$cores_named in /etc/default/irqbalance"
fi

# One receive queue, and so one interrupt, for each CPU that handles them.
handlers=${spare:-$cores}
[ "$placement" != cpu ] || handlers=$cores
few='' rps_bad='' xps_bad='' queues='' unmapped=0
for nic in $nics; do
    received=0 sent=0 mapped=0
    for queue in "$root/sys/class/net/$nic"/queues/*; do
        case ${queue##*/} in
        rx-*)
            received=$((received + 1))
            on_cores=$(common "$(unmask "$(line "${queue#"$root"}/rps_cpus")")" "$cores")
            [ -z "$on_cores" ] || [ -z "$spare" ] || [ "$placement" = cpu ] || rps_bad="$rps_bad$nic/queues/${queue##*/}/rps_cpus "
            ;;
        tx-*)
            sent=$((sent + 1))
            [ -z "$(unmask "$(line "${queue#"$root"}/xps_cpus")")" ] || mapped=$((mapped + 1))
            ;;
        esac
    done
    queues="$queues$nic: $received receive, $sent send; "
    [ "$received" -ge "$(count "$handlers")" ] || few="$few$nic "
    [ "$sent" -le 1 ] || [ "$mapped" -gt 0 ] || xps_bad="$xps_bad$nic "
    [ "$sent" -gt 1 ] || unmapped=$((unmapped + 1))
done
if [ -z "$nics" ]; then
    unseen 'nic queues' 'no interface with hardware behind it is up'
    unseen rps
    unseen xps
else
    if [ -z "$few" ]; then
        ok 'nic queues' "${queues%; }"
    else
        lacks 'nic queues' "${queues%; }, and $(count "$handlers") CPUs to handle them" \
            "ethtool -L ${few%% *} combined $(count "$handlers"); ethtool -l ${few%% *} shows the most it has"
    fi
    if [ "$placement" = cpu ]; then
        ok rps 'packets belong on CORES, for CONNECTION_PLACEMENT=cpu'
    elif [ -z "$rps_bad" ]; then
        ok rps 'hands no packets to CORES'
    else
        lacks rps "hands packets to CORES: ${rps_bad% }" \
            "for q in ${rps_bad% }; do echo $(mask "$spare") >/sys/class/net/\$q; done"
    fi
    if [ -n "$xps_bad" ]; then
        lacks xps "no map of CPUs to the send queues of ${xps_bad% }" \
            'give every CPU a queue: echo MASK >/sys/class/net/NIC/queues/tx-N/xps_cpus; apply.sh does'
    elif [ "$unmapped" -eq "$(count "$nics")" ]; then
        ok xps 'one send queue: nothing to map'
    else
        ok xps 'CPUs are mapped to send queues'
    fi
fi

# Where the memory of CORES and of the card is.
nodes='' far=''
for node in "$root"/sys/devices/system/node/node[0-9]*; do
    number=${node##*/node}
    [ -z "$(common "$(expand "$(line "${node#"$root"}/cpulist")")" "$cores")" ] || nodes="$nodes$number "
done
for nic in $nics; do
    number=$(line "/sys/class/net/$nic/device/numa_node")
    case $number in '' | -*) continue ;; esac
    [ -n "$(common "$number" "$nodes")" ] || far="$far$nic (node $number) "
done
if [ -z "$nodes" ]; then
    unseen numa
elif [ "$(count "$nodes")" -gt 1 ]; then
    lacks numa "CORES are on nodes $(commas "$nodes"): those of one node reach the card over the other" \
        'CORES of the node of the card (cat /sys/class/net/*/device/numa_node), and a server for each node'
elif [ -n "$far" ]; then
    lacks numa "CORES are on node ${nodes% }, but not ${far% }" \
        'CORES of the node of the card: cat /sys/devices/system/node/node*/cpulist'
else
    ok numa "CORES and card on node ${nodes% }"
fi

slow=''
seen=0
for core in $cores; do
    governor=$(line "/sys/devices/system/cpu/cpu$core/cpufreq/scaling_governor")
    [ -z "$governor" ] && continue
    seen=$((seen + 1))
    [ "$governor" = performance ] || slow="$slow$core:$governor "
done
if [ "$seen" -eq 0 ]; then
    unseen governor 'the hypervisor or the firmware decides'
elif [ -z "$slow" ]; then
    ok governor performance
else
    lacks governor "$slow" 'cpupower frequency-set -g performance'
fi

# The cores read it for every request: these are read without a system call.
source=$(line /sys/devices/system/clocksource/clocksource0/current_clocksource)
case $source in
'') unseen 'clock source' ;;
tsc | arch_sys_counter | kvm-clock | hyperv_clocksource_tsc_page) ok 'clock source' "$source" ;;
*)
    lacks 'clock source' "$source, which takes a system call or more" \
        'clocksource=tsc tsc=reliable on the kernel command line, where available_clocksource has tsc'
    ;;
esac

pages=$(line /sys/kernel/mm/transparent_hugepage/enabled | sed -n 's/.*\[\(.*\)\].*/\1/p')
if [ -z "$pages" ]; then
    unseen 'huge pages'
else
    ok 'huge pages' "$pages; the server takes none"
fi

# What a processor's flaws cost, most of it in system calls, is a matter of who else runs code on this host.
on='' open='' known=0
for flaw in "$root"/sys/devices/system/cpu/vulnerabilities/*; do
    said=$(line "${flaw#"$root"}")
    [ -z "$said" ] || known=$((known + 1))
    case $said in
    'Mitigation: '*) on="$on${flaw##*/} " ;;
    Vulnerable*) open="$open${flaw##*/} " ;;
    esac
done
if [ "$known" -eq 0 ]; then
    unseen mitigations
elif line /proc/cmdline | grep -qw 'mitigations=off'; then
    ok mitigations 'off (kernel command line): run nothing else here'
elif [ -n "$open" ]; then
    lacks mitigations "none for ${open% }" 'a newer kernel or microcode; or mitigations=off, if nothing else runs here'
else
    ok mitigations "on for ${on:-none: no flaw known }"
fi

# /proc/swaps is a heading, then a line per swap space.
if [ ! -r "$root/proc/swaps" ]; then
    unseen swap
elif [ "$(sed -n '2,$p' "$root/proc/swaps" | wc -l)" -eq 0 ]; then
    ok swap none
elif [ "$(line /sys/fs/cgroup/system.slice/millrace.service/memory.swap.max)" = 0 ]; then
    ok swap 'none for millrace.service'
else
    lacks swap 'in use' 'MemorySwapMax=0 (unit), --memory-swap equal to --memory (docker run), or swapoff -a'
fi

exit "$lacking"
