#!/usr/bin/env bash
# Builds and tests millrace on freshly installed Debian systems, with nothing but the packages that README names:
# README's two commands, `cargo run --release` and `cargo test`, and its curl example in between.
#
#     tests/fresh/run.sh [--keep] [bookworm] [trixie] [sid]      # all three unless some are named
#
# Prints per distribution the versions of glibc, gcc and the kernel headers, the CPU minutes of the release build and the
# result; exit status 1 when one fails. Needs root, debootstrap, iproute2, the toolchain of rust-toolchain.toml, about 12 GB
# below FRESH_DIR and, per distribution, half an hour of two cores. Not part of CI.
#
#     --keep       leaves the systems in FRESH_DIR; the next run installs none that is there, but builds from nothing
#     FRESH_DIR    where the systems are installed; a file system with O_DIRECT (default: millrace-fresh in TMPDIR)
#     MIRROR       Debian mirror (default: the one apt is configured for)
#     TEST_ARGS    appended to `cargo test`, to try this script with fewer tests
#     CARGO_BUILD_JOBS is passed on.
#
# Each system runs in mount, PID and network namespaces of its own: its mounts and processes end with it, however this
# script ends, its :8080 is free, and it reaches no network. Toolchain and crates are this machine's, mounted read-only.
set -euo pipefail

die() {
    echo "tests/fresh/run.sh: $*" >&2
    exit 2
}

repository=$(cd "$(dirname "$0")/../.." && pwd)
base=${FRESH_DIR:-${TMPDIR:-/tmp}/millrace-fresh}
cargo_home=${CARGO_HOME:-$HOME/.cargo}
keep=
distributions=()
for argument; do
    case $argument in
    --keep) keep=1 ;;
    bookworm | trixie | sid) distributions+=("$argument") ;;
    *) die "unknown argument $argument; wanted: [--keep] [bookworm] [trixie] [sid]" ;;
    esac
done
[ ${#distributions[@]} -gt 0 ] || distributions=(bookworm trixie sid)

[ "$(id -u)" = 0 ] || die "debootstrap and mounts need root"
for tool in debootstrap unshare setpriv ip git tar cargo; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
# shellcheck disable=SC2016  # apt's variables
mirror=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 2>/dev/null |
    awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }')}
[ -n "$mirror" ] || die "apt is configured for no Debian mirror, or 'apt-get update' never ran: set MIRROR"

toolchain=$(cd "$repository" && rustc --print sysroot) || die "no toolchain as rust-toolchain.toml names it"
# shellcheck disable=SC2016  # a regular expression
packages=$(sed -n 's/.*`apt-get install \([^`]*\)`.*/\1/p' "$repository/README.md" | head -n 1)
[ -n "$packages" ] || die "README names no packages (\`apt-get install …\`)"

# What runs in namespaces now; killed, with all processes in them, when this script ends.
running=
# shellcheck disable=SC2317  # called by trap
finish() {
    if [ -n "$running" ]; then
        kill -KILL "$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
        sleep 1 # its children are being killed by the kernel
    fi
    local distribution
    for distribution in "${distributions[@]}"; do remove "$distribution"; done
    rmdir "$base" 2>/dev/null || true
}
remove() {
    [ -n "$keep" ] || rm -rf "${base:?}/$1" "${base:?}/$1.log"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Runs a command in mount and PID namespaces, and in what else is given before `--`. In the background, so that a signal is
# handled at once; when this script is killed, so is the command.
namespaced() {
    setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child "$@" &
    running=$!
    local status=0
    wait "$running" || status=$?
    running=
    return "$status"
}

# Installs distribution $1 into $2. All packages come from debootstrap, which takes a mirror whose index has expired, too. curl is for
# README's other terminal, and /etc/hosts what Debian's installer writes.
set_up() {
    [ ! -e "$2/installed" ] || return 0
    rm -rf "$2"
    mkdir -p "$2"
    namespaced -- debootstrap --variant=minbase --include="${packages// /,},curl" "$1" "$2" "$mirror" >"$2.log" 2>&1 ||
        { tail -n 20 "$2.log"; return 1; }
    printf '127.0.0.1 localhost\n::1 localhost\n' >"$2/etc/hosts"
    touch "$2/installed"
}

# The tracked files as they are now, uncommitted changes included.
copy_sources() {
    rm -rf "$1/src"
    mkdir -p "$1/src" "$1/opt/rust" "$1/root/.cargo/registry"
    git -C "$repository" ls-files -z | tar -C "$repository" --null -T - -c | tar -C "$1/src" -x
}

# Mounts what the system $1 needs and runs inside.sh in it.
enter() {
    # shellcheck disable=SC2016  # expanded by the inner shell
    namespaced --net -- bash -euc '
        root=$1 toolchain=$2 registry=$3
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        mount --bind "$toolchain" "$root/opt/rust"
        mount -o remount,bind,ro "$root/opt/rust"
        mount --bind "$registry" "$root/root/.cargo/registry"
        mount -o remount,bind,ro "$root/root/.cargo/registry"
        ip link set lo up
        cd /
        exec chroot "$root" /usr/bin/env -i HOME=/root PATH=/opt/rust/bin:/usr/bin:/bin:/usr/sbin:/sbin \
            LANG=C.UTF-8 CARGO_NET_OFFLINE=true ${4:+CARGO_BUILD_JOBS="$4"} TEST_ARGS="$5" \
            bash /src/tests/fresh/inside.sh
    ' enter "$1" "$toolchain" "$cargo_home/registry" "${CARGO_BUILD_JOBS-}" "${TEST_ARGS-}"
}

one() {
    local root=$base/$1
    echo "== $1: installing (${packages// /, })"
    set_up "$1" "$root" || return 1
    copy_sources "$root" || return 1
    rm -f "$root/summary"
    enter "$root"
}

(cd "$repository" && cargo fetch --locked --quiet) || die "the crates cannot be fetched"
mkdir -p "$base"
status=0
table=()
for distribution in "${distributions[@]}"; do
    result=passed
    one "$distribution" || { result=FAILED status=1; }
    summary=$(cat "$base/$distribution/summary" 2>/dev/null || true)
    table+=("$(printf '%-10s %s  %s' "$distribution" "$summary" "$result")")
    remove "$distribution"
done
echo
printf '%s\n' "${table[@]}"
exit "$status"
