#!/usr/bin/env bash
# Runs inside a fresh system, see test.sh: what an operator does with the package, and what must be there after each step.
# There is no systemd here: the server is run as the unit would run it. COMMIT is what its binary was built of, if known.
set -euo pipefail
cd /

die() {
    echo "FAILED: $*" >&2
    [ ! -s /tmp/log ] || cat /tmp/log >&2
    exit 1
}

config=/etc/millrace/millrace.toml state=/var/lib/millrace
step() { echo "-- $*"; }
# Nobody answers a question of dpkg.
package() { dpkg "$@" >/tmp/log 2>&1 </dev/null || die "dpkg $*"; }
settings_are_safe() { [ "$(rights $config)" = 'root:millrace 640' ] || die "$config is $(rights $config)"; }
settings_are_ours() { grep -q '# ours' $config || die 'the settings are gone'; }
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
    if [ -n "${COMMIT-}" ]; then
        [[ $(curl -fsS localhost:9090/metrics) == *"millrace_build_info{"*"commit=\"$COMMIT\""* ]] ||
            die "millrace_build_info does not name the commit $COMMIT"
    fi
    kill -TERM "$server"
    wait "$server" || status=$?
    [ "$status" = 0 ] || die "the server stopped with status $status"
}

step install
package -i /root/one.deb
id millrace >/dev/null || die 'there is no user millrace'
[ "$(id -u millrace)" -lt 1000 ] || die 'millrace is no system user'
settings_are_safe
[ "$(dpkg-query -W -f '${Conffiles}' millrace | grep -c .)" = 1 ] || die 'there should be one conffile'
unit=/usr/lib/systemd/system/millrace.service
grep -q '^ExecStart=/usr/bin/millrace$' $unit || die 'the unit runs another binary'
grep -q '^ExecStartPre=/usr/bin/millrace check --starting$' $unit || die 'the unit checks with another binary'
[ -z "$(find /etc/systemd -name 'millrace*')" ] || die 'the unit is enabled'
[ -z "${COMMIT-}" ] || [[ $(millrace --version) == *"($COMMIT)" ]] || die "millrace --version is $(millrace --version)"
dpkg -L millrace | while read -r file; do [ -e "$file" ] || die "$file is missing"; done
[ -z "$(dpkg --verify millrace)" ] || die "dpkg --verify: $(dpkg --verify millrace)"
for page in millrace millrace-check millrace-spool-replay; do
    gzip -cd "/usr/share/man/man1/$page.1.gz" | grep -q '^\.TH' || die "there is no man page $page"
done
gzip -cd /usr/share/doc/millrace/changelog.Debian.gz | grep -q "^millrace ($(installed))" || die 'there is no changelog'
for document in README.md operations.md troubleshooting.md tuning.md samples/millrace.toml; do
    [ -s /usr/share/doc/millrace/$document ] || die "there is no $document"
done
millrace top --help >/dev/null || die 'the binary has no top'
bash -c '. /usr/share/bash-completion/completions/millrace && complete -p millrace' >/dev/null || die 'no completion for bash'
for file in zsh/vendor-completions/_millrace fish/vendor_completions.d/millrace.fish; do
    grep -q dead-letter /usr/share/$file || die "$file completes nothing"
done
sh /usr/share/millrace/tuning/check.sh >/tmp/log || [ $? = 1 ] || die 'tuning/check.sh'

step 'start, with the settings of the package'
serve
[ "$(cat $state/data/*.json)" = 1 ] || die 'the payload is not stored'

step 'upgrade, with settings that were changed'
sed -i 's/^listen = .*/listen = "127.0.0.1:8080" # ours/' $config
echo 'MILLRACE_LOG=warn' >/etc/millrace/millrace.env
before=$(installed)
package -i /root/two.deb
[ "$(installed)" != "$before" ] || die 'the version is the same'
settings_are_ours
settings_are_safe
serve

step 'downgrade and upgrade again'
package -i /root/one.deb
package -i /root/two.deb
settings_are_ours

step 'upgrade, with other settings in the package than before'
if dpkg -i /root/changed.deb >/tmp/log 2>&1 </dev/null; then die 'dpkg asks nothing about changed settings'; fi
settings_are_ours
package --configure --force-confold millrace
settings_are_ours
settings_are_safe
grep -q '^# another version' $config.dpkg-dist || die 'the settings of the package are not beside ours'
[[ $(rights $config.dpkg-dist) == *' 640' ]] || die "the settings of the package are $(rights $config.dpkg-dist)"
package -i --force-confold /root/two.deb
package -i --force-confnew /root/changed.deb
grep -q '^# another version' $config || die 'the settings of the package are not taken'
settings_are_safe
grep -q '# ours' $config.dpkg-old || die 'our settings are gone'
[ "$(rights $config.dpkg-old)" = 'root:millrace 640' ] || die "our settings are $(rights $config.dpkg-old)"
mv $config.dpkg-old $config
package -i --force-confold /root/two.deb

step 'configure again, and with rights of our own'
package -i /root/two.deb
if command -v dpkg-reconfigure >/dev/null; then
    dpkg-reconfigure -f noninteractive millrace >/tmp/log 2>&1 </dev/null || die 'dpkg-reconfigure'
    settings_are_ours
    settings_are_safe
else
    echo 'NOT TESTED: there is no dpkg-reconfigure here'
fi
dpkg-statoverride --update --add root root 600 $config
package -i /root/two.deb
[ "$(rights $config)" = 'root:root 600' ] || die "the operator's rights are gone: $(rights $config)"
dpkg-statoverride --remove $config 2>/dev/null
package -i /root/two.deb
settings_are_safe

step remove
package -r millrace
[ ! -e /usr/bin/millrace ] || die 'the binary is still there'
[ -e $config ] || die 'the settings are gone'
[ -n "$(ls $state/data)" ] || die 'what was stored is gone'

step 'install again'
package -i /root/two.deb
settings_are_ours
serve

step 'upgrade, with the settings removed'
mv /etc/millrace /root/kept
package -i /root/two.deb
[ ! -e $config ] || die 'the settings are there again'
if (as_service millrace check --starting) >/tmp/log 2>&1; then die 'it starts without its settings'; fi
grep -q "$config" /tmp/log || die 'nothing names the settings that are missing'
package -i --force-confmiss /root/two.deb
settings_are_safe
(as_service millrace check --starting) >/tmp/log 2>&1 || die 'the settings are not back'
rm -r /etc/millrace
mv /root/kept /etc/millrace

step 'purge, with payloads'
package -P millrace
grep -q "$state holds payloads and stays" /tmp/log || die 'nothing is said about the payloads'
[ ! -e $config ] || die 'the settings are still there'
[ -z "$(find /etc/millrace -name '*.dpkg-*')" ] || die "other versions' settings are still there"
[ -n "$(ls $state/data)" ] || die 'what was stored is gone'

step 'purge, with a file system of its own'
package -i /root/one.deb
install -d $state/spool
mv $state/data /root/data
if mount -t tmpfs none $state/spool 2>/dev/null; then
    mkdir $state/spool/lost+found $state/spool/empty
    package -P millrace
    [ -d $state/spool/lost+found ] || die 'what belongs to a file system is gone'
    ! grep -q 'holds payloads' /tmp/log || die 'an empty file system is said to hold payloads'
    package -i /root/one.deb
    touch $state/spool/segment
    package -P millrace
    grep -q "$state holds payloads and stays" /tmp/log || die 'nothing is said about what a file system holds'
    [ -e $state/spool/segment ] || die 'what a file system holds is gone'
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

step 'purge, with a state directory that is a link'
install -d /srv/elsewhere/data
ln -s /srv/elsewhere $state
package -i /root/one.deb
package -P millrace
[ -L $state ] || die "the operator's link is gone"
! grep -q 'holds payloads' /tmp/log || die 'an empty directory is said to hold payloads'
package -i /root/one.deb
install -d /srv/elsewhere/data
echo 1 >/srv/elsewhere/data/1.json
package -P millrace
grep -q "$state holds payloads and stays" /tmp/log || die 'nothing is said about the payloads'
[ -e /srv/elsewhere/data/1.json ] || die 'what was stored is gone'
rm $state
rm -r /srv/elsewhere
left=$(find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /root \) -prune -o -name '*millrace*' -print)
# What the operator has made himself.
[ "$left" = $'/etc/millrace\n/etc/millrace/millrace.env' ] || die "left: $left"
getent passwd millrace >/dev/null || die 'files of the user may be left, and the user is gone'

# Commands that make what an operator has made before there was a package.
strangers=(
    'groupadd millrace'
    'useradd --create-home --shell /bin/bash millrace'
    'useradd --no-user-group --gid users millrace'
    'useradd --system --no-user-group --gid nogroup millrace && groupadd --system millrace'
)
for stranger in "${strangers[@]}"; do
    step "install, after $stranger"
    userdel millrace 2>/dev/null || true
    groupdel millrace 2>/dev/null || true
    rm -rf /home/millrace
    bash -ec "$stranger" >/tmp/log 2>&1 || die "$stranger"
    before=$(getent passwd millrace || true)
    package -i /root/one.deb
    settings_are_safe
    [ -z "$before" ] || [ "$(getent passwd millrace)" = "$before" ] || die "the user was changed: $before"
    serve
    package -P millrace
    rm -r $state
done

step 'apt, and the archive by hand'
userdel millrace 2>/dev/null || true
groupdel millrace 2>/dev/null || true
apt-get install --yes --no-install-recommends /root/one.deb >/tmp/log 2>&1 </dev/null || die 'apt-get install'
serve
apt-get purge --yes millrace >/tmp/log 2>&1 </dev/null || die 'apt-get purge'
rm -r $state
cd /root
sha256sum --check --quiet --ignore-missing SHA256SUMS || die 'the checksum of the archive is another'
tar -xzf millrace-*-linux-gnu.tar.gz
cd millrace-*-linux-gnu
for file in README.md LICENSE CHANGELOG.md docs/operations.md examples/senders/vector.yaml monitoring/alerts.yml \
    monitoring/dashboard.json man/millrace.1 completion/millrace tuning/check.sh; do
    [ -s "$file" ] || die "the archive has no $file"
done
# As its tuning/README.md says, but for what needs systemd.
grep '^install ' tuning/README.md | sed -e 's/ *#.*//' -e 's|target/release/||' \
    -e 's/ && systemctl daemon-reload//' >/tmp/by-hand
[ "$(grep -c . /tmp/by-hand)" -ge 4 ] || die 'tuning/README.md installs nothing'
install -d /etc/sysctl.d /etc/systemd/system /usr/lib/sysusers.d
bash -euc '. /tmp/by-hand' >/tmp/log 2>&1 || die 'tuning/README.md does not work in the archive'
[[ $(/usr/local/bin/millrace --version) == millrace\ * ]] || die 'the binary of the archive does not run'
# Its store is a bucket.
sed -i 's|^store = .*|store = "file:/var/lib/millrace/data"|; s|^spool_max = .*|spool_max = "256MiB"|' $config
sed -i 's|^object = .*||; s|^compression = .*||; s|^batch_.*||; s|^key = .*||; s|^ack = .*||' $config
serve
echo 'installed, served, upgraded, removed, purged, unpacked'
