#!/usr/bin/env bash
# Runs inside a fresh system, see run.sh: README's commands, taken from README, so that it stays true.
set -euo pipefail
cd /src

# Leaves a line for run.sh's table in /summary, also when something fails.
versions="glibc $(dpkg-query -W -f '${Version}' libc6), gcc $(gcc -dumpfullversion)"
versions+=", kernel headers $(dpkg-query -W -f '${Version}' linux-libc-dev)"
echo "$versions" | tee /summary

die() {
    echo "FAILED: $*" >&2
    [ ! -s /tmp/log ] || tail -n "${log_lines:-40}" /tmp/log >&2
    exit 1
}

# The lines of the $1st shell block under "Run it".
block() {
    awk -v wanted="$1" '
        /^## / { inside = $0 == "## Run it" }
        inside && /^```sh$/ { n++; printing = 1; next }
        /^```$/ { printing = 0 }
        printing && n == wanted' README.md
}
without_comment() {
    sed 's/ *#.*//; /^$/d'
}

mapfile -t commands < <(block 1 | without_comment)
[ "${commands[*]}" = "cargo run --release cargo test" ] ||
    die "README's first block under \"Run it\" has other commands than this script expects: ${commands[*]}"
client=$(block 2 | grep '^curl .*/payloads') || die "README has no curl example for /payloads"
mapfile -t answer < <(block 2 | sed -n 's/^# //p')
[ ${#answer[@]} -ge 2 ] || die "README does not show the answer to its curl example"

echo "-- ${commands[0]}"
${commands[0]} >/tmp/log 2>&1 &
server=$!
# Until the server answers, or the build fails.
until curl -fs -o /dev/null localhost:9090/readyz; do
    kill -0 "$server" 2>/dev/null || die "${commands[0]}"
    sleep 1
done
# cargo has become the server by exec: its children were the compilers. Fields 14 to 17 of stat, counted after the name.
read -r -a stat < <(sed 's/.*) //' "/proc/$server/stat")
ticks=$((stat[11] + stat[12] + stat[13] + stat[14]))
cpu=$(awk -v ticks="$ticks" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.1f", ticks / hz / 60 }')
size=$(($(stat -c %s target/release/millrace) / 1000000))
echo "release build: $cpu CPU minutes, $size MB"
echo "$versions; release build $cpu CPU min" >/summary
! grep -n '^warning' /tmp/log || die "the build warns"

echo "-- $client"
got=$(bash -c "$client" 2>/dev/null | tr -d '\r') || die "README's curl example fails"
for line in "${answer[@]}"; do
    grep -qxF -- "$line" <<<"$got" || die "README promises '$line', but the answer is: $got"
done
# Stored in the background, one file per payload.
stored() {
    cat data/*.json 2>/dev/null
}
for _ in {1..100}; do
    [ "$(stored | wc -c)" -lt 16 ] || break
    sleep 0.1
done
[ "$(for file in data/*.json; do cat "$file"; echo; done | sort | tr '\n' ' ')" = '{"id":1} {"id":2} ' ] ||
    die "data/ holds something else than the two payloads: $(stored)"
# Not into a pipe: `grep -q` leaves at the first match, and curl would fail for that.
metrics=$(curl -fs localhost:9090/metrics) || die "/metrics cannot be read"
grep -q '^millrace_' <<<"$metrics" || die "/metrics shows nothing"

kill -TERM "$server"
status=0
wait "$server" || status=$?
[ "$status" = 0 ] || die "the server stopped with status $status"
echo "answered, stored, stopped"

echo "-- ${commands[1]} $TEST_ARGS"
started=$SECONDS
log_lines=150
# shellcheck disable=SC2086  # words
${commands[1]} $TEST_ARGS >/tmp/log 2>&1 || die "${commands[1]}"
grep '^test result' /tmp/log
! grep -n '^warning' /tmp/log || die "the build of the tests warns"
echo "took $((SECONDS - started)) s"
