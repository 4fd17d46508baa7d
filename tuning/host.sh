# shellcheck shell=sh disable=SC2154
# What check.sh and apply.sh know of a host; both read this file, nobody runs it. It only looks.
#
# `root` is set before: a directory to look in instead of /, empty on a real host. After `look_at_host`:
#   server                      the directory below /proc of the running millrace, or nothing
#   cores_wanted, connections, workers   its settings; nothing where the default is in effect
#   addresses, spool_files      how many addresses it listens on; how many files the spool of a core may have open
#   settings_from               where they were found
#   online, cores, spare        lists of CPUs: all, those of CORES, and the others
#   nics                        network interfaces with hardware behind them that are up

# The file's first line; nothing when it cannot be read. Not by `read`: dash takes a byte at a time, and files of
# /proc/sys give their number only in one piece.
line() { sed -n 1p "$root$1" 2>/dev/null; }

# 0-2,8 as 0 1 2 8.
expand() {
    printf '%s\n' "$1" | tr ',' '\n' | while IFS=- read -r first last; do
        case $first in '' | *[!0-9]*) continue ;; esac
        seq "$first" "${last:-$first}"
    done | sort -nu | tr '\n' ' '
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

# The list as a mask, and a mask as a list: words of 32 bits in hexadecimal, the highest first, as in rps_cpus.
mask() {
    printf '%s\n' "$1" | awk 'BEGIN { most = 0 } {
        for (i = 1; i <= NF; i++) {
            word = int($i / 32)
            if (!(($i) in seen)) bits[word] += 2 ^ ($i % 32)
            seen[$i] = 1
            if (word > most) most = word
        }
        for (word = most; word >= 0; word--) printf "%s%08x", (word < most ? "," : ""), bits[word]
    }' | sed 's/^0*\(.\)/\1/'
}
unmask() {
    printf '%s\n' "$1" | tr -d ',' | awk '{
        for (at = length($0); at > 0; at--) {
            digit = index("0123456789abcdef", tolower(substr($0, at, 1))) - 1
            for (bit = 0; bit < 4; bit++) {
                if (digit % 2) printf "%d ", (length($0) - at) * 4 + bit
                digit = int(digit / 2)
            }
        }
    }'
}

# The value of a flat key of a TOML file: a string, a number, or a list of numbers as 1,2,3.
toml_value() {
    sed -n "s/^[[:space:]]*$2[[:space:]]*=[[:space:]]*//p" "$1" 2>/dev/null | sed -n 1p |
        sed "s/^\"\([^\"]*\)\".*/\1/; t; s/^'\([^']*\)'.*/\1/; t; s/#.*//; s/[][[:space:]_]//g; s/,\$//"
}

# The text if it is a whole number, else nothing: then the default counts.
whole() { case $1 in '' | *[!0-9]*) ;; *) printf '%s\n' "$1" ;; esac; }

# The value of a variable in this shell's environment, or in that of the server.
env_value() {
    if [ -n "$server" ]; then
        tr '\0' '\n' 2>/dev/null <"$root$server/environ" | sed -n "s/^$1=//p" | sed -n 1p
    else
        printenv "$1"
    fi
}

# The value of a flag of the server.
flag_value() {
    [ -n "$server" ] || return 0
    tr '\0' '\n' 2>/dev/null <"$root$server/cmdline" | awk -v flag="--$1" '
        wanted { value = $0; wanted = 0; next }
        $0 == flag { wanted = 1 }
        index($0, flag "=") == 1 { value = substr($0, length(flag) + 2) }
        END { print value }'
}

# The value of a setting as the server finds it: flag, prefixed variable, variable, TOML file.
setting() {
    flag=$(printf '%s' "$1" | tr '[:upper:]_' '[:lower:]-')
    found=$(flag_value "$flag")
    [ -n "$found" ] || found=$(env_value "MILLRACE_$1")
    [ -n "$found" ] || found=$(env_value "$1")
    if [ -z "$found" ] && [ -n "$config_file" ]; then
        found=$(toml_value "$config_file" "$(printf '%s' "$1" | tr '[:upper:]' '[:lower:]')")
    fi
    printf '%s\n' "$found"
}

# Bytes of a size such as 64MiB or 1.5 GB; nothing if it is none: then the default counts.
bytes() {
    printf '%s\n' "$1" | awk '{
        gsub(/[[:space:]]/, "")
        number = unit = tolower($0)
        sub(/[^0-9.].*/, "", number)
        sub(/^[0-9.]*/, "", unit)
        if (number !~ /^[0-9]+(\.[0-9]*)?$/) exit
        sub(/b$/, "", unit)
        base = sub(/i$/, "", unit) ? 1024 : 1000
        power = unit == "" ? 0 : length(unit) == 1 ? index("kmgtpe", unit) : -1
        if (unit != "" && power < 1) exit
        printf "%.0f\n", number * base ^ power
    }'
}

# Whether the process in the directory $1 below /proc is a server and not `millrace top` or the like: it alone waits for
# signals in a thread of its own, which is there before all others. The kernel cuts names after 15 characters.
is_server() {
    for thread in "$root$1"/task/*/comm; do
        [ "$(sed -n 1p "$thread" 2>/dev/null)" != millrace-signal ] || return 0
    done
    return 1
}

# The CPUs of the threads that are the server's cores, which it has whatever its settings say today. The kernel cuts
# their names after 15 characters: those of 10 to 19 are alike.
core_threads() {
    for thread in "$root$server"/task/*/comm; do
        name=$(sed -n 1p "$thread" 2>/dev/null)
        case $name in millrace-core-*) ;; *) continue ;; esac
        cpu=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "${thread%/comm}/status" 2>/dev/null)
        case $cpu in '' | *[!0-9]*) continue ;; esac
        [ "$(printf 'millrace-core-%s' "$cpu" | cut -c -15)" != "$name" ] || printf '%s\n' "$cpu"
    done | sort -u | tr '\n' ','
}

# Interrupts that CPUs of the list $1 handle. One without a handler, which has no directory below its own, never comes.
interrupts_on() {
    for dir in "$root"/proc/irq/[0-9]*; do
        for handler in "$dir"/*/; do
            [ -d "$handler" ] || continue
            cpus=$(line "${dir#"$root"}/effective_affinity_list")
            [ -n "$cpus" ] || cpus=$(line "${dir#"$root"}/smp_affinity_list")
            [ -n "$cpus" ] || break
            [ -z "$(common "$(expand "$cpus")" "$1")" ] || printf '%s ' "${dir##*/}"
            break
        done
    done
}

# The directory below /proc of a process with the name $1, or nothing.
process_named() {
    for comm in "$root"/proc/[0-9]*/comm; do
        if [ "$(line "${comm#"$root"}")" = "$1" ]; then
            comm=${comm#"$root"}
            printf '%s\n' "${comm%/comm}"
            return
        fi
    done
}

# Sets what the head of this file lists, for the millrace with the process id $1 or the first that is found. Its readers
# use them.
# shellcheck disable=SC2034
look_at_host() {
    # Of several servers the settings of the first one that has cores are judged, and the cores of all are kept free.
    servers='' starting=''
    for comm in "$root"/proc/[0-9]*/comm; do
        [ "$(line "${comm#"$root"}")" = millrace ] || continue
        server=${comm#"$root"} server=${server%/comm}
        is_server "$server" || continue
        if [ -n "$(core_threads)" ]; then servers="$servers$server "; else starting="$starting$server "; fi
    done
    servers=$servers$starting
    server=${servers%% *}
    if [ -n "${1-}" ]; then
        server=/proc/$1
        servers=$server
    fi
    config_file=$(flag_value config)
    [ -n "$config_file" ] || config_file=$(env_value MILLRACE_CONFIG)
    settings_from='this shell and the defaults'
    if [ -n "$server" ]; then
        settings_from="process ${server#/proc/}"
        # As the process sees it, which may have another root directory than this shell.
        case $config_file in
        '') ;;
        /*) config_file=$root$server/root$config_file ;;
        *) config_file=$root$server/cwd/$config_file ;;
        esac
    fi
    cores_wanted=$(setting CORES)
    connections=$(whole "$(setting MAX_CONNECTIONS)")
    workers=$(whole "$(setting MAX_WORKERS)")
    addresses=$(($(setting LISTEN | tr -cd , | wc -c) + 1))
    spool_files=0
    if [ -n "$(setting SPOOL_DIR)" ]; then
        spool_max=$(bytes "$(setting SPOOL_MAX)")
        segment=$(bytes "$(setting SPOOL_SEGMENT)")
        [ "${segment:-0}" -ge 4096 ] || segment=$((64 << 20))
        # Segments are whole blocks. Each is open twice, and so are the journals and orphaned ones.
        spool_files=$((2 * (${spool_max:-$((1 << 30))} / (segment / 4096 * 4096) + 12)))
    fi
    online=$(expand "$(line /sys/devices/system/cpu/online)")
    cores=
    judged=$server
    for server in $servers; do
        cores=$cores$(core_threads)
    done
    server=$judged
    cores=$(expand "$cores")
    if [ -z "$cores" ]; then
        case ${cores_wanted:-all} in
        all) cores=$online ;;
        *) cores=$(expand "$cores_wanted") ;;
        esac
    fi
    spare=$(without "$online" "$cores")
    nics=
    for nic in "$root"/sys/class/net/*; do
        nic=${nic#"$root"}
        [ -e "$root$nic/device" ] && [ "$(line "$nic/operstate")" = up ] && nics="$nics${nic##*/} "
    done
}
