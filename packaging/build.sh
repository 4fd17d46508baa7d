#!/usr/bin/env bash
# Makes what a release consists of, in target/package/out, with a checksum of each file in SHA256SUMS:
#
#     packaging/build.sh [--binary FILE] [--revision N]
#
#     millrace_VERSION-N_ARCH.deb                the Debian package
#     millrace-VERSION-ARCH-linux-gnu.tar.gz     the binary, for other distributions with glibc 2.36 or newer
#     millrace-VERSION.tgz                       the Helm chart
#
#     --binary FILE   packs this binary instead of building one with the profile `dist`, which takes minutes
#     --revision N    revision of the Debian package (default: 1)
#     SOURCE_DATE_EPOCH   time of all files (default: that of the last commit)
#
# A binary runs where the glibc is as new as the one that it was linked with, so this is to run on Debian 12 (bookworm);
# elsewhere it refuses, unless GLIBC_MAX names a newer one. Needs cargo-deb (cargo install --locked cargo-deb), dpkg-dev and
# binutils.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
    echo "packaging/build.sh: $*" >&2
    exit 2
}

binary=
revision=1
while [ $# -gt 0 ]; do
    case $1 in
    --binary) binary=${2-} && shift ;;
    --revision) revision=${2-} && shift ;;
    *) die "unknown argument $1; wanted: [--binary FILE] [--revision N]" ;;
    esac
    shift
done
for tool in cargo-deb dpkg-shlibdeps objdump; do
    command -v "$tool" >/dev/null || die "$tool is missing"
done
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
architecture=$(uname -m)

if [ -z "$binary" ]; then
    # For `millrace_build_info` and debug bundles.
    MILLRACE_COMMIT=${MILLRACE_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
    export MILLRACE_COMMIT
    cargo build --locked --profile dist --features top
    binary=target/dist/millrace
fi
[ -x "$binary" ] || die "$binary is no binary"

stage=target/package
rm -rf "$stage"
mkdir -p "$stage"/{debian,man,completion,out}
install -m 755 "$binary" "$stage/millrace"

# Distributions older than Debian 12 have an older glibc, and refuse to start what needs a newer one.
newest=$(objdump -T "$stage/millrace" | grep -o 'GLIBC_[0-9.]*' | sed 's/GLIBC_//' | sort -Vu | tail -n 1)
limit=${GLIBC_MAX:-2.36}
[ "$(printf '%s\n' "$newest" "$limit" | sort -V | tail -n 1)" = "$limit" ] ||
    die "the binary needs glibc $newest, and $limit is the most that may be: build on Debian 12"

# What only the binary knows.
"$stage/millrace" man "$stage/man" >/dev/null
for shell in bash zsh fish; do
    "$stage/millrace" completion "$shell" >"$stage/completion/$shell"
done
mv "$stage/completion/bash" "$stage/completion/millrace"
mv "$stage/completion/zsh" "$stage/completion/_millrace"
mv "$stage/completion/fish" "$stage/completion/millrace.fish"

# The unit of tuning/, for the package's paths, and its user.
sed -e '1,/^$/d' -e 's|/usr/local/bin/|/usr/bin/|' tuning/millrace.service >"$stage/debian/millrace.service"
cp tuning/millrace.sysusers "$stage/debian/millrace.sysusers"
cp packaging/deb/postinst packaging/deb/postrm "$stage/debian/"
cat >"$stage/changelog" <<END
millrace ($version-$revision) unstable; urgency=medium

  * See CHANGELOG.md in the sources.

 -- $(sed -n 's/^maintainer = "\(.*\)"/\1/p' Cargo.toml)  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
END

out=$stage/out
cargo deb --no-build --no-strip --quiet --deb-revision "$revision" --output "$out/"

name=millrace-$version-$architecture-linux-gnu
mkdir -p "$stage/$name"/{tuning,man,completion}
cp "$stage/millrace" LICENSE README.md CHANGELOG.md SECURITY.md CONTRIBUTING.md "$stage/$name/"
cp tuning/* "$stage/$name/tuning/"
# Where the links of the README lead, apart from the sources.
cp -r docs examples "$stage/$name/"
mkdir "$stage/$name/monitoring"
cp monitoring/*.yml monitoring/*.json "$stage/$name/monitoring/"
cp "$stage"/man/* "$stage/$name/man/"
cp "$stage"/completion/* "$stage/$name/completion/"
archive() {
    tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -C "$2" -c "$3" | gzip -9n >"$1"
}
archive "$out/$name.tar.gz" "$stage" "$name"

# Helm unpacks a chart from a directory of its name.
mkdir -p "$stage/chart"
cp -r deploy/helm/millrace "$stage/chart/"
archive "$out/millrace-$version.tgz" "$stage/chart" millrace

(cd "$out" && sha256sum -- *.deb *.gz *.tgz >SHA256SUMS)
cat "$out/SHA256SUMS"
