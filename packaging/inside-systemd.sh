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

dpkg -i /root/one.deb >/dev/null
[ "$(systemctl is-enabled millrace || true)" = disabled ] || die 'the unit is enabled by the installation'

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
echo 'logg = 1' >>/etc/millrace/millrace.toml
! systemctl start millrace || die 'it starts with a setting that there is not'
logged 'unknown setting logg' || die 'the journal does not name it'
systemctl stop millrace
sed -i '/^logg = 1$/d' /etc/millrace/millrace.toml
systemctl reset-failed millrace || true
systemctl start millrace

step 'upgrade: restarts it'
pid=$(property MainPID)
dpkg -i /root/two.deb >/dev/null </dev/null
[ "$(property ActiveState)" = active ] || die 'it does not run after the upgrade'
[ "$(property MainPID)" != "$pid" ] || die 'the old one still runs'

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

step 'purge: stops it'
dpkg -P millrace >/dev/null
! systemctl --quiet is-active millrace || die 'it still runs'
echo 'started, reloaded, restarted, stopped, upgraded, watched, purged'
