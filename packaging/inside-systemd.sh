#!/usr/bin/env bash
# Runs inside a fresh system that its own systemd has booted, see test.sh: the package's unit with all of its restrictions.
# Leaves `passed` in /root/result.
set -euo pipefail
exec >/root/log 2>&1

finish() {
    local status=$?
    [ "$status" = 0 ] || journalctl --no-pager --unit millrace || true
    [ "$status" != 0 ] || echo passed >/root/result
    systemctl poweroff --force --force
}
trap finish EXIT

die() {
    echo "FAILED: $*"
    exit 1
}
step() { echo "-- $*"; }
# Not by a pipe: `grep -q` leaves at the first match, and journalctl would fail for that.
logged() { journalctl --no-pager --unit millrace >/tmp/journal && grep -q -- "$1" /tmp/journal; }
property() { systemctl show millrace --property "$1" --value; }
config=/etc/millrace/millrace.toml state=/var/lib/millrace
# Nobody answers a question of dpkg.
package() { dpkg "$@" >/tmp/dpkg 2>&1 </dev/null || { cat /tmp/dpkg; die "dpkg $*"; }; }
enabled() { systemctl is-enabled millrace 2>/dev/null || true; }
# The sum of a metric over all cores.
metric() { curl -fsS localhost:9090/metrics | awk -v name="$1{" 'index($1, name) == 1 { sum += $2 } END { print sum + 0 }'; }

package -i /root/one.deb
[ "$(enabled) $(property ActiveState)" = 'disabled inactive' ] || die 'the unit is enabled by the installation'

# What the settings and the documents say to run: the former is several lines, the latter a function of the shell.
awk '/^# +systemd-run/ { on = 1 } on { sub(/^# +/, ""); print; if (!/\\$/) exit }' $config >/root/check
checked() { bash -eu /root/check >/tmp/checked 2>&1 </dev/null; }
# shellcheck disable=SC1090  # of the package
. <(sed -n '/^as_server() {$/,/^}$/p' /usr/share/doc/millrace/operations.md)

step 'check, as the settings say, before the first start'
checked || { cat /tmp/checked; die 'millrace check refuses what the package brings'; }
grep -q "^ok *STORE .* because $state is writable" /tmp/checked || die 'it has checked something else'
[ "$(stat -c '%U %a' $state)" = 'millrace 700' ] || die "$state is not as the unit would make it"
as_server millrace dead-letter ls >/dev/null || die 'other commands do not run'

step 'start: returns once requests are answered'
systemctl start millrace
[ "$(property ActiveState)" = active ] || die 'it is not active'
[ "$(property StatusText)" = serving ] || die 'it has not said that it serves'
pid=$(property MainPID)
[ "$(stat -c %U "/proc/$pid")" = millrace ] || die 'it runs as somebody else'
[ "$(curl -fsS localhost:8080/payloads -d '{"data":[1]}')" = '{"accepted":1,"ack":"queued"}' ] || die 'no answer'
logged 'ok *kernel' || die 'the journal has no findings of check'
# Of the unit's limits; systemd sets them as far as it may.
if (ulimit -l unlimited) 2>/dev/null; then
    grep -q '^Max locked memory *unlimited *unlimited' "/proc/$pid/limits" || die 'LimitMEMLOCK is not in effect'
else
    echo 'NOT TESTED: LimitMEMLOCK, because this host lets nobody raise a limit'
fi
/usr/share/millrace/tuning/check.sh >/tmp/check || [ $? = 1 ] || die 'tuning/check.sh'
grep -q "^ok *settings .*of process $pid" /tmp/check || die 'tuning/check.sh does not find the server'

step 'reload: the settings are read'
echo 'log = "info,millrace=debug"' >>/etc/millrace/millrace.toml
systemctl reload millrace
reloaded() { logged 'reload: LOG is info,millrace=debug'; }
for _ in {1..50}; do
    ! reloaded || break
    sleep 0.1
done
reloaded || die 'LOG is not in effect'
[ "$(property MainPID) $(property ActiveState)" = "$pid active" ] || die 'it is another process'

step 'restart, and stop'
systemctl restart millrace
[ "$(property MainPID)" != "$pid" ] || die 'it is the same process'
systemctl stop millrace
[ "$(property Result) $(property ExecMainStatus)" = 'success 0' ] || die 'the stop failed'

step 'a bad setting'
systemctl start millrace
checked || { cat /tmp/checked; die 'millrace check does not allow for the running server'; }
systemctl stop millrace
echo 'logg = 1' >>/etc/millrace/millrace.toml
! checked || die 'millrace check takes a setting that there is not'
grep -q 'unknown setting logg' /tmp/checked || die 'millrace check does not name it'
! systemctl start millrace || die 'it starts with a setting that there is not'
logged 'unknown setting logg' || die 'the journal does not name it'
systemctl stop millrace
sed -i '/^logg = 1$/d' /etc/millrace/millrace.toml
systemctl reset-failed millrace || true
systemctl start millrace

step 'upgrade: restarts it'
pid=$(property MainPID)
package -i /root/two.deb
[ "$(property ActiveState)" = active ] || die 'it does not run after the upgrade'
[ "$(property MainPID)" != "$pid" ] || die 'the old one still runs'
[ "$(enabled)" = disabled ] || die 'the upgrade enables it'

step 'upgrade and downgrade under load: nothing acknowledged is lost'
sed -i '/^dead_letter_dir/i ack = "spooled"\nspool_dir = "/var/lib/millrace/spool"\nspool_max = "256MiB"' $config
systemctl restart millrace
(
    number=0
    while [ ! -e /tmp/enough ]; do
        number=$((number + 1))
        ! curl -fs -o /dev/null --max-time 20 localhost:8080/payloads -d "{\"data\":[{\"number\":$number}]}" ||
            echo $number >>/tmp/acknowledged
    done
) &
load=$!
sleep 1
package -i /root/one.deb
sleep 1
package -i /root/two.deb
sleep 1
touch /tmp/enough
wait $load
systemctl stop millrace
find $state/data -name '*.json' -exec cat {} + | grep -o '"number":[0-9]*' | sed 's/.*://' | sort -u >/tmp/stored
lost=$(sort -u /tmp/acknowledged | comm -23 - /tmp/stored | wc -l)
[ "$lost" = 0 ] || die "$lost of $(wc -l </tmp/acknowledged) payloads are lost"
[ "$(wc -l </tmp/acknowledged)" -ge 20 ] || die 'there was hardly any load'
echo "stored: all of $(wc -l </tmp/acknowledged)"

step 'upgrade while the spool holds what the store does not take, and remove and install'
cp $config /root/kept.toml
sed -i 's|^store = .*|store = "s3://bucket/"\ndrain_timeout = "2s"|' $config
printf 'AWS_ENDPOINT_URL=http://127.0.0.1:1\nAWS_REGION=x\nAWS_ACCESS_KEY_ID=x\nAWS_SECRET_ACCESS_KEY=x\n' >/etc/millrace/millrace.env
checked || { cat /tmp/checked; die 'millrace check has not the credentials'; }
systemctl start millrace
for number in 1 2 3; do
    [ "$(curl -fsS localhost:8080/payloads -d "{\"data\":[{\"kept\":$number}]}")" = '{"accepted":1,"ack":"spooled"}' ] ||
        die 'the spool takes nothing'
done
package -i /root/one.deb
[ "$(property ActiveState)" = active ] || die 'it does not run after the upgrade'
[ "$(metric millrace_spool_payloads)" = 3 ] || die "the spool holds $(metric millrace_spool_payloads) payloads"
package -r millrace
[ "$(property ActiveState)" = inactive ] || die 'it runs without its package'
package -i /root/two.deb
[ "$(enabled) $(property ActiveState)" = 'disabled inactive' ] || die 'it is enabled or started by the installation'
cp /root/kept.toml $config
systemctl start millrace
kept() { [ "$(find $state/data -name '*.json' -exec cat {} + | grep -o '"kept":[0-9]*' | sort -u | grep -c .)" = 3 ]; }
for _ in {1..100}; do
    ! kept || break
    sleep 0.1
done
kept || die 'what the spool held is not stored'

step 'upgrade of one that is stopped, enabled, masked or cannot start: it stays so'
systemctl stop millrace
package -i /root/one.deb
[ "$(enabled) $(property ActiveState)" = 'disabled inactive' ] || die 'the upgrade enables or starts one that was stopped'
systemctl enable --quiet --now millrace
package -i /root/two.deb
[ "$(enabled) $(property ActiveState)" = 'enabled active' ] || die 'the upgrade disables or stops one that was enabled'
if command -v dpkg-reconfigure >/dev/null; then
    dpkg-reconfigure -f noninteractive millrace >/dev/null 2>&1 </dev/null || die 'dpkg-reconfigure'
    [ "$(enabled) $(property ActiveState)" = 'enabled active' ] || die 'dpkg-reconfigure disables or stops it'
fi
package -r millrace
package -i /root/two.deb
[ "$(enabled)" = enabled ] || die "enabled, removed and installed again, it is $(enabled)"
systemctl stop millrace
systemctl mask --quiet millrace
package -i /root/one.deb
[ "$(enabled) $(property ActiveState)" = 'masked inactive' ] || die 'the upgrade unmasks or starts one that was masked'
systemctl unmask --quiet millrace
[ "$(enabled)" = enabled ] || die "masked and unmasked, it is $(enabled)"
systemctl start millrace
echo 'logg = 1' >>$config
package -i /root/two.deb
[ "$(dpkg-query -W -f '${Status}' millrace)" = 'install ok installed' ] || die 'bad settings keep the upgrade from its end'
[ "$(property ActiveState)" != active ] || die 'it runs with a setting that there is not'
sed -i '/^logg = 1$/d' $config
systemctl stop millrace
systemctl reset-failed millrace || true

step 'a port that somebody holds'
systemd-run --quiet --unit holder -p DynamicUser=yes -p StateDirectory=holder -p WorkingDirectory=/var/lib/holder \
    -E MILLRACE_LISTEN=127.0.0.1:8080 -E MILLRACE_ADMIN_LISTEN=127.0.0.1:9999 -E MILLRACE_STORE=null: /usr/bin/millrace
for _ in {1..100}; do
    ! curl -fs -o /dev/null localhost:9999/readyz || break
    sleep 0.1
done
! systemctl start millrace || die 'it starts on a port that somebody holds'
logged '127.0.0.1:8080 is taken by another' || die 'the journal does not name the port'
package -i /root/one.deb
[ "$(dpkg-query -W -f '${Status}' millrace)" = 'install ok installed' ] || die 'a port keeps the upgrade from its end'
systemctl stop holder
systemctl stop millrace
systemctl reset-failed millrace || true
systemctl start millrace
[ "$(metric millrace_build_info)" = 1 ] || die 'it does not run once the port is free'
package -i /root/two.deb

if [ "$(systemctl --version | awk 'NR == 1 { print $2 }')" -ge 253 ]; then
    step 'reload with Type=notify-reload: returns once the settings were read'
    mkdir -p /etc/systemd/system/millrace.service.d
    printf '[Service]\nType=notify-reload\nExecReload=\n' >/etc/systemd/system/millrace.service.d/reload.conf
    systemctl daemon-reload
    systemctl restart millrace
    for level in debug info debug info; do
        sed -i "s/^log = .*/log = \"millrace=$level\"/" /etc/millrace/millrace.toml
        timeout 10 systemctl reload millrace || die 'the reload does not end'
    done
    [ "$(journalctl --unit millrace | grep -c 'reload: LOG is millrace=')" = 4 ] || die 'it returned too early'
fi

step 'a watchdog'
mkdir -p /etc/systemd/system/millrace.service.d
printf '[Service]\nWatchdogSec=3\n' >/etc/systemd/system/millrace.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart millrace
pid=$(property MainPID)
sleep 7
[ "$(property MainPID)" = "$pid" ] || die 'a server that is well was killed'
kill -STOP "$pid"
for _ in {1..100}; do
    [ "$(property MainPID)" = "$pid" ] || break
    sleep 0.2
done
[ "$(property MainPID)" != "$pid" ] || die 'a server that is stuck was not killed'
logged 'Watchdog timeout' || die 'it ended for another reason'

step 'purge: stops it, and forgets that it was enabled'
package -P millrace
! systemctl --quiet is-active millrace || die 'it still runs'
left=$(find /etc /usr /var/lib /run/systemd -xdev -name '*millrace*' ! -path '/usr/share/doc/*' | sort | tr '\n' ' ')
# What the operator has made himself, what was stored.
[ "$left" = '/etc/millrace /etc/millrace/millrace.env /etc/systemd/system/millrace.service.d /var/lib/millrace ' ] ||
    die "left: $left"
package -i /root/one.deb
[ "$(enabled) $(property ActiveState)" = 'disabled inactive' ] || die 'after a purge it is enabled or started'
package -P millrace
echo 'started, reloaded, restarted, stopped, upgraded, kept, watched, purged'
