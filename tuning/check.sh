#!/bin/sh
# Says what of tuning/ this host lacks: one line per knob, and below what is lacking the command that mends it.
# It only reads. Exit status: 0 nothing is lacking, 1 something is.
#
#   tuning/check.sh                            for the default settings
#   MILLRACE_CORES=1-7 MILLRACE_MAX_WORKERS=64 tuning/check.sh
#                                              for others: those two and MILLRACE_MAX_CONNECTIONS count here; as with
#                                              the server, CORES etc. are read where the prefixed name is not there
#
# Of a running millrace the limits are looked at, else those of this shell. CHECK_ROOT names a directory to look in
# instead of /, for tests.
set -u
export LC_ALL=C

root=${CHECK_ROOT-}
lacking=0

cores_wanted=${MILLRACE_CORES-${CORES-}}
connections=${MILLRACE_MAX_CONNECTIONS-${MAX_CONNECTIONS-}}
workers=${MILLRACE_MAX_WORKERS-${MAX_WORKERS-}}

ok() { printf 'ok     %-37s%s\n' "$1" "$2"; }
unseen() { printf -- '-      %-37s%s\n' "$1" "not visible here${2:+: $2}"; }
lacks() {
    printf 'lacks  %-37s%s\n' "$1" "$2"
    printf '       %-37smend: %s\n' '' "$3"
    lacking=1
}

# The file's first line; nothing when it cannot be read. Not by `read`: dash takes a byte at a time, and files of
# /proc/sys give their number only in one piece.
line() { sed -n 1p "$root$1" 2>/dev/null; }

# 0-2,8 as 0 1 2 8.
expand() {
    printf '%s\n' "$1" | tr ',' '\n' | while IFS=- read -r first last; do
        case $first in '' | *[!0-9]*) continue ;; esac
        seq "$first" "${last:-$first}"
    done | tr '\n' ' '
}

# Those of the first list that are in the second, both expanded.
common() {
    for one in $1; do
        case " $2 " in *" $one "*) printf '%s ' "$one" ;; esac
    done
}

# Those of the first list that are not in the second.
without() {
    for one in $1; do
        case " $2 " in *" $one "*) ;; *) printf '%s ' "$one" ;; esac
    done
}

count() { echo $(($(printf '%s' "$1" | wc -w))); }

# The list with commas, as the kernel wants it.
commas() { printf '%s' "$1" | sed 's/ *$//; s/ /,/g'; }

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

hard_limit() { sed -n "s/^$1  *[^ ]*  *\([^ ]*\) .*/\1/p" "$root/proc/$limits_of/limits" 2>/dev/null; }

limits_of=self whose='this shell'
for comm in "$root"/proc/[0-9]*/comm; do
    if [ "$(line "${comm#"$root"}")" = millrace ]; then
        limits_of=${comm#"$root/proc/"} limits_of=${limits_of%/comm}
        whose="process $limits_of"
        break
    fi
done

online=$(expand "$(line /sys/devices/system/cpu/online)")
case ${cores_wanted:-all} in
all) cores=$online ;;
*) cores=$(expand "$cores_wanted") ;;
esac
spare=$(without "$online" "$cores")
cores_named=$(commas "$cores")
spare_named=$(commas "$spare")
cores_count=$(count "$cores")

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

# As src/limits.rs adds them up: per core connections, two files a worker and 64; 128 for the process.
files=$((cores_count * (${connections:-16384} + 2 * ${workers:-32} + 64) + 128))
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
    lacks 'control core' "CORES takes all $cores_count CPUs" 'MILLRACE_CORES=1-N in /etc/millrace.env leaves CPU 0'
fi

isolate="isolcpus=managed_irq,domain,$cores_named nohz_full=$cores_named irqaffinity=$spare_named"
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

# An interrupt without a handler, which has no directory below its own, never comes.
stray=''
seen=0
for dir in "$root"/proc/irq/[0-9]*; do
    for handler in "$dir"/*/; do
        [ -d "$handler" ] || continue
        cpus=$(line "${dir#"$root"}/effective_affinity_list")
        [ -n "$cpus" ] || cpus=$(line "${dir#"$root"}/smp_affinity_list")
        [ -z "$cpus" ] && break
        seen=$((seen + 1))
        [ -n "$(common "$(expand "$cpus")" "$cores")" ] && stray="$stray${dir##*/} "
        break
    done
done
if [ "$seen" -eq 0 ]; then
    unseen interrupts
elif [ -z "$stray" ]; then
    ok interrupts "none of $seen on CORES"
elif [ -z "$spare" ]; then
    lacks interrupts "$(count "$stray") of $seen on CORES" 'leave a control core first'
else
    lacks interrupts "$(count "$stray") of $seen on CORES" \
        "stop irqbalance; for i in ${stray% }; do echo $spare_named >/proc/irq/\$i/smp_affinity_list; done"
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
