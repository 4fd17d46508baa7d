#!/usr/bin/env bash
# Installs, starts, upgrades, removes and purges the Debian package on freshly installed systems, once by hand and once with
# the systemd that boots there, and runs the build stage of the Dockerfile and what its last stage is made of:
#
#     packaging/test.sh [--keep] [--binary FILE] [bookworm] [trixie] [image]     # all three unless some are named
#
# Needs root, debootstrap, cargo-deb, dpkg-dev and what tests/fresh/run.sh names; not part of CI.
#
#     --keep         leaves the systems in PACKAGES_DIR; the next run installs none that is there
#     --binary FILE  packs this binary; by default packaging/build.sh builds one, and `image` its own
#     PACKAGES_DIR   where the systems are installed; a file system with O_DIRECT (default: millrace-packages in TMPDIR)
#     MIRROR         Debian mirror (default: the one apt is configured for)
#     PROFILE        what the build stage builds instead of `dist`, to try this script
#
# Every system runs in mount, PID and network namespaces of its own, see tests/fresh/run.sh. None has an engine for
# images: the build stage's command runs in a fresh Debian 12 with the toolchain mounted (which rust:1.95.0-bookworm has),
# and the last stage is a Debian 12 without more packages, in which only what the Dockerfile copies is run, as its user,
# with its environment.
set -euo pipefail

die() {
    echo "packaging/test.sh: $*" >&2
    exit 2
}

repository=$(cd "$(dirname "$0")/.." && pwd)
base=${PACKAGES_DIR:-${TMPDIR:-/tmp}/millrace-packages}
cargo_home=${CARGO_HOME:-$HOME/.cargo}
keep=
binary=
wanted=()
while [ $# -gt 0 ]; do
    case $1 in
    --keep) keep=1 ;;
    --binary) binary=$(realpath "${2-}") && shift ;;
    bookworm | trixie | image) wanted+=("$1") ;;
    *) die "unknown argument $1; wanted: [--keep] [--binary FILE] [bookworm] [trixie] [image]" ;;
    esac
    shift
done
[ ${#wanted[@]} -gt 0 ] || wanted=(bookworm trixie image)
[ "$(id -u)" = 0 ] || die "debootstrap and mounts need root"
for tool in debootstrap unshare setpriv ip git tar cargo; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
# shellcheck disable=SC2016  # apt's variables
mirror=${MIRROR:-$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(REPO_URI)' 2>/dev/null |
    awk -F'|' '$1 == "Debian" && $2 == "Debian" { print $3; exit }')}
[ -n "$mirror" ] || die "apt is configured for no Debian mirror, or 'apt-get update' never ran: set MIRROR"
cd "$repository"

running=
limit=
# shellcheck disable=SC2317  # called by trap
finish() {
    if [ -n "$running" ]; then
        kill -KILL "$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
        sleep 1 # its children are being killed by the kernel
    fi
    [ -n "$keep" ] || rm -rf "${base:?}"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# With `limit` for at most so many seconds.
namespaced() {
    ${limit:+timeout --kill-after=5 "$limit"} setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child "$@" &
    running=$!
    local status=0
    wait "$running" || status=$?
    running=
    return "$status"
}

# Installs distribution $1 with packages $2 into $3, from a copy that is kept.
set_up() {
    local kept=$base/debian-$1-${2//,/-}
    if ! [ -e "$kept/installed" ]; then
        rm -rf "$kept"
        mkdir -p "$kept"
        namespaced -- debootstrap --variant=minbase ${2:+--include="$2"} "$1" "$kept" "$mirror" >"$kept.log" 2>&1 ||
            { tail -n 20 "$kept.log"; return 1; }
        printf '127.0.0.1 localhost\n::1 localhost\n' >"$kept/etc/hosts"
        touch "$kept/installed"
    fi
    rm -rf "$3"
    cp -a "$kept" "$3"
}

# Runs a command in the system $1, with environment variables before it. $2 is a directory to mount at /opt/rust, and
# $3 one at /root/.cargo/registry, both read-only, if they are given.
enter() {
    local root=$1 toolchain=$2 registry=$3
    shift 3
    # shellcheck disable=SC2016  # expanded by the inner shell
    namespaced --net -- bash -euc '
        root=$1 toolchain=$2 registry=$3
        shift 3
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount --rbind /sys "$root/sys"
        mount --rbind /dev "$root/dev"
        if [ -n "$toolchain" ]; then
            mkdir -p "$root/opt/rust" "$root/root/.cargo/registry"
            mount --bind "$toolchain" "$root/opt/rust"
            mount -o remount,bind,ro "$root/opt/rust"
            mount --bind "$registry" "$root/root/.cargo/registry"
            mount -o remount,bind,ro "$root/root/.cargo/registry"
        fi
        ip link set lo up
        cd /
        exec chroot "$root" /usr/bin/env -i HOME=/root LANG=C.UTF-8 \
            PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
    ' enter "$root" "$toolchain" "$registry" "$@"
}

# Versions of the package: the second differs from the first in its revision alone, the third in the settings that it brings.
packages() {
    [ -z "${packed-}" ] || return 0
    # What the binary says that it was built of.
    commit=${MILLRACE_COMMIT-}
    [ -n "$binary" ] || commit=${commit:-$(git rev-parse HEAD)}
    [ -n "$commit" ] || echo "NOT TESTED: the commit of $binary, because MILLRACE_COMMIT does not name it"
    local out=target/package/out with=()
    mkdir -p "$base/debs"
    rm -f "$base"/debs/*
    [ -z "$binary" ] || with=(--binary "$binary")
    packaging/build.sh --revision 1 "${with[@]}"
    cp $out/*.deb "$base/debs/one.deb"
    cp $out/*.tar.gz $out/SHA256SUMS "$base/debs/"
    (cd $out && sha256sum --check --quiet SHA256SUMS)
    cp target/package/millrace "$base/millrace"
    packaging/build.sh --revision 2 --binary "$base/millrace"
    cp $out/*.deb "$base/debs/two.deb"
    # A third one, with other settings.
    rm -rf "$base/changed"
    dpkg-deb --raw-extract "$base/debs/two.deb" "$base/changed"
    sed -i 's/^Version: .*-/&3~/' "$base/changed/DEBIAN/control"
    echo '# another version' >>"$base/changed/etc/millrace/millrace.toml"
    dpkg-deb --root-owner-group -Znone --build "$base/changed" "$base/debs/changed.deb" >/dev/null
    packed=1
    if command -v lintian >/dev/null; then
        # The names of functions stay in the binary, for backtraces (profile dist); debug information does not.
        lintian --fail-on error --suppress-tags \
            embedded-library,statically-linked-binary,unstripped-binary-or-object "$base/debs/one.deb" || return 1
    else
        echo "NOT TESTED: there is no lintian here"
    fi
}

debian() {
    local root=$base/$1
    echo "== $1: the package"
    packages || return 1
    set_up "$1" systemd-standalone-sysusers,init-system-helpers,curl "$root" || return 1
    cp "$base"/debs/* packaging/inside.sh "$root/root/"
    enter "$root" "" "" COMMIT="$commit" bash /root/inside.sh || return 1
    echo "== $1: the unit"
    set_up "$1" systemd-sysv,init-system-helpers,curl,dbus "$root" || return 1
    boot "$root"
}

# Longest time that a booted system has, in seconds.
BOOT_MAX=420

# Boots the system $1 with its own systemd, has it run inside-systemd.sh, and shows what that says.
boot() {
    local root=$1 group
    group=$(findmnt -n -o TARGET -t cgroup2 | head -n 1)/millrace-packages
    mkdir "$group" || return 1
    rm -f "$root"/root/{log,result}
    cp "$base"/debs/*.deb packaging/inside-systemd.sh "$root/root/"
    printf '[Unit]\nAfter=multi-user.target\n[Service]\nType=oneshot\nExecStart=/root/inside-systemd.sh\n' \
        >"$root/etc/systemd/system/inside.service"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
    ln -sf ../inside.service "$root/etc/systemd/system/multi-user.target.wants/"
    # What systemd expects of a container: control groups, devices and a root of its own.
    # shellcheck disable=SC2016  # expanded by the inner shell
    limit=$BOOT_MAX namespaced --uts --ipc --net -- sh -euc '
        echo 0 >"$1/cgroup.procs"
        shift
        exec unshare --cgroup "$@"
    ' group "$group" bash -euc '
        root=$1
        mount --make-rprivate /
        mount --bind "$root" "$root"
        mount -t proc proc "$root/proc"
        mount -t sysfs sysfs "$root/sys"
        mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
        for directory in run tmp dev; do mount -t tmpfs tmpfs "$root/$directory"; done
        for device in null zero full random urandom tty; do
            touch "$root/dev/$device"
            mount --bind "/dev/$device" "$root/dev/$device"
        done
        mkdir "$root/dev/pts" "$root/dev/shm"
        mount -t devpts devpts "$root/dev/pts" -o newinstance,ptmxmode=0666,mode=620
        ln -s pts/ptmx "$root/dev/ptmx"
        ip link set lo up
        cd "$root"
        mkdir -p before
        pivot_root . before
        umount -l /before
        exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --system --log-target=journal
    ' boot "$root" >"$root.boot" 2>&1 || true
    find "$group" -depth -type d -exec rmdir {} +
    cat "$root/root/log"
    [ "$(cat "$root/root/result" 2>/dev/null)" = passed ]
}

# The words of a Dockerfile's instruction $1 in its stage $2, continued lines joined; a line per instruction.
instructions() {
    sed -e ':a' -e '/\\$/N; s/\\\n *//; ta' Dockerfile |
        awk -v wanted="$1" -v stage="$2" '
            $1 == "FROM" { at = $4 == "" ? "last" : $4 }
            $1 == wanted && at == stage { sub(/^[A-Z]+ +/, ""); print }'
}

image() {
    local root=$base/image-build final=$base/image toolchain
    echo "== image: the build stage"
    toolchain=$(rustc --print sysroot) || die "no toolchain as rust-toolchain.toml names it"
    cargo fetch --locked --quiet || die "the crates cannot be fetched"
    set_up bookworm gcc,libc6-dev,git "$root" || return 1
    # `COPY . .` of what .dockerignore leaves: of a clean clone, the tracked files.
    mkdir -p "$root/src"
    git ls-files -z | tar --null -T - -c | tar -C "$root/src" -x
    local build arguments commit
    commit=$(git rev-parse HEAD)
    # As `docker build --build-arg REVISION=...`; those that are not given have their defaults.
    read -r -a arguments <<<"$(instructions ARG build | tr '\n' ' ')"
    build=$(instructions RUN build)
    [ -n "$build" ] || die "the Dockerfile's stage \`build\` runs nothing"
    [ -z "${PROFILE-}" ] || build=${build/--profile dist/--profile $PROFILE}
    echo "-- $build"
    enter "$root" "$toolchain" "$cargo_home/registry" "${arguments[@]}" REVISION="$commit" CARGO_NET_OFFLINE=true \
        CARGO_BUILD_JOBS="${CARGO_BUILD_JOBS:-$(nproc)}" sh -euc "cd /src; $build" >"$base/image.log" 2>&1 ||
        { tail -n 30 "$base/image.log"; return 1; }
    tail -n 1 "$base/image.log"

    echo "== image: the last stage"
    set_up bookworm '' "$final" || return 1
    # COPY [--from=STAGE] [--chown=USER] SOURCE TARGET
    instructions COPY last | while read -r line; do
        local owner='' words
        read -r -a words <<<"$line"
        while [[ ${words[0]} == --* ]]; do
            [[ ${words[0]} != --chown=* ]] || owner=${words[0]#--chown=}
            words=("${words[@]:1}")
        done
        local source=${words[0]}
        [ -z "${PROFILE-}" ] || source=${source/\/dist\//\/$PROFILE\/}
        mkdir -p "$(dirname "$final${words[1]}")"
        cp -a "$root$source" "$final${words[1]}"
        [ -z "$owner" ] || chown -R "$owner" "$final${words[1]}"
        echo "copied $source to ${words[1]}"
    done
    local variables entry health
    read -r -a variables <<<"$(instructions ENV last | tr '\n' ' ')"
    entry=$(instructions ENTRYPOINT last)
    health=$(instructions HEALTHCHECK last | sed 's/.*CMD //')
    # Lists of plain words in JSON, as words of a shell.
    entry=$(tr -d '[],' <<<"$entry")
    health=$(tr -d '[],' <<<"$health")
    cp packaging/inside-image.sh "$final/inside-image.sh"
    enter "$final" "" "" "${variables[@]}" COMMIT="$commit" ENTRYPOINT="$entry" HEALTHCHECK="$health" \
        setpriv --reuid=65532 --regid=65532 --clear-groups --no-new-privs bash /inside-image.sh
}

mkdir -p "$base"
status=0
table=()
for one in "${wanted[@]}"; do
    result=passed
    case $one in
    image) image || { result=FAILED status=1; } ;;
    *) debian "$one" || { result=FAILED status=1; } ;;
    esac
    table+=("$(printf '%-10s %s' "$one" "$result")")
done
echo
printf '%s\n' "${table[@]}"
exit "$status"
