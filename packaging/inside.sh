#!/usr/bin/env bash
# Runs inside a fresh system, see test.sh: what an operator does with the package, and what must be there after each step.
# There is no systemd here: the server is run as the unit would run it.
set -euo pipefail
cd /

die() {
    echo "FAILED: $*" >&2
    [ ! -s /tmp/log ] || cat /tmp/log >&2
    exit 1
}

config=/etc/millrace/millrace.toml state=/var/lib/millrace
step() { echo "-- $*"; }
package() { dpkg "$@" >/tmp/log 2>&1 || die "dpkg $*"; }
installed() { dpkg-query -W -f '${Version}' millrace; }
# OWNER:GROUP MODE of a file.
rights() { stat -c '%U:%G %a' "$1"; }
# In a subshell or in the background: it becomes the command.
as_service() {
    cd "$state"
    exec env MILLRACE_CONFIG=$config setpriv --reuid=millrace --regid=millrace --clear-groups --no-new-privs "$@"
}

# Serves one payload with the settings of the package, as the unit does.
serve() {
    # What StateDirectory= does.
    install -d -o millrace -g millrace -m 700 "$state"
    (as_service millrace check) >/tmp/log 2>&1 || die 'millrace check refuses the settings of the package'
    as_service millrace >/tmp/log 2>&1 &
    local server=$! status=0
    for _ in {1..100}; do
        ! curl -fs -o /dev/null localhost:9090/readyz || break
        kill -0 "$server" 2>/dev/null || die 'the server ended'
        sleep 0.1
    done
    [ "$(curl -fsS localhost:8080/payloads -d '{"data":[1]}')" = '{"accepted":1,"ack":"queued"}' ] || die 'no answer'
    kill -TERM "$server"
    wait "$server" || status=$?
    [ "$status" = 0 ] || die "the server stopped with status $status"
}

step install
package -i /root/one.deb
id millrace >/dev/null || die 'there is no user millrace'
[ "$(id -u millrace)" -lt 1000 ] || die 'millrace is no system user'
[ "$(rights $config)" = 'root:millrace 640' ] || die "$config is $(rights $config)"
[ "$(dpkg-query -W -f '${Conffiles}' millrace | grep -c .)" = 1 ] || die 'there should be one conffile'
unit=/usr/lib/systemd/system/millrace.service
grep -q '^ExecStart=/usr/bin/millrace$' $unit || die 'the unit runs another binary'
grep -q '^ExecStartPre=/usr/bin/millrace check --starting$' $unit || die 'the unit checks with another binary'
[ -z "$(find /etc/systemd -name 'millrace*')" ] || die 'the unit is enabled'
millrace --version >/dev/null
dpkg -L millrace | while read -r file; do [ -e "$file" ] || [[ $file == */man/* || $file == */doc/* ]] || die "$file is missing"; done
dpkg -L millrace | grep -q '/man1/millrace.1' || die 'there is no man page'
millrace top --help >/dev/null || die 'the binary has no top'
bash -n /usr/share/bash-completion/completions/millrace
sh /usr/share/millrace/tuning/check.sh >/tmp/log || [ $? = 1 ] || die 'tuning/check.sh'

step 'start, with the settings of the package'
serve
[ "$(cat $state/data/*.json)" = 1 ] || die 'the payload is not stored'

step 'upgrade, with settings that were changed'
sed -i 's/^listen = .*/listen = "127.0.0.1:8080" # ours/' $config
echo 'MILLRACE_LOG=warn' >/etc/millrace/millrace.env
before=$(installed)
package -i /root/two.deb </dev/null
[ "$(installed)" != "$before" ] || die 'the version is the same'
grep -q '# ours' $config || die 'the settings are gone'
[ "$(rights $config)" = 'root:millrace 640' ] || die "$config is $(rights $config)"
serve

step 'downgrade and upgrade again'
package -i /root/one.deb </dev/null
package -i /root/two.deb </dev/null

step remove
package -r millrace
[ ! -e /usr/bin/millrace ] || die 'the binary is still there'
[ -e $config ] || die 'the settings are gone'
[ -n "$(ls $state/data)" ] || die 'what was stored is gone'

step 'install again'
package -i /root/two.deb </dev/null
grep -q '# ours' $config || die 'the settings are gone'
serve

step 'upgrade, with the settings removed'
mv $config /root/kept.toml
package -i /root/two.deb </dev/null
[ ! -e $config ] || die 'the settings are there again'
mv /root/kept.toml $config

step 'purge, with payloads'
package -P millrace
grep -q "$state holds payloads and stays" /tmp/log || die 'nothing is said about the payloads'
[ ! -e $config ] || die 'the settings are still there'
[ -n "$(ls $state/data)" ] || die 'what was stored is gone'

step 'purge, with a file system of its own'
package -i /root/one.deb
install -d $state/spool
mv $state/data /root/data
if mount -t tmpfs none $state/spool 2>/dev/null; then
    mkdir $state/spool/lost+found $state/spool/empty
    package -P millrace
    [ -d $state/spool/lost+found ] || die 'what belongs to a file system is gone'
    umount $state/spool
else
    echo 'NOT TESTED: nothing can be mounted here'
    package -P millrace
    install -d $state
fi
mv /root/data $state/data

step 'purge, without payloads'
package -i /root/one.deb
rm -rf ${state:?}/data
package -P millrace
[ ! -e $state ] || die "$state is still there"
left=$(find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /root \) -prune -o -name '*millrace*' -print)
# What the operator has made himself.
[ "$left" = $'/etc/millrace\n/etc/millrace/millrace.env' ] || die "left: $left"
echo 'installed, served, upgraded, removed, purged'
