#!/bin/bash
# CPU per request of any ingest server, under the load of the lane `ingest`:
#
#     measure.sh PORT PATH FORM COMMAND [ARGUMENT...]
#
# starts COMMAND on one core, waits for PORT, drives it by wrk from another core (load.lua says what FORM is), and prints
# requests a second, answers that were no 2xx, and the server's CPU time a request. SERVER_CPU (0), CLIENT_CPU (1),
# CONNECTIONS (64), SECONDS_MEASURED (10), ROUNDS (9).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
port=$1 path=$2 form=$3
shift 3
taskset -c "${SERVER_CPU:-0}" "$@" &
server=$!
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null || true' EXIT

for _ in $(seq 200); do
    (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null && break
    kill -0 "$server" || { echo "the server has ended" >&2; exit 1; }
    sleep 0.1
done

# User and system time of all threads, in clock ticks.
ticks() { sed 's/.*) //' "/proc/$server/stat" | cut -d' ' -f12,13 | tr ' ' +; }
load() {
    taskset -c "${CLIENT_CPU:-1}" wrk -t1 -c"${CONNECTIONS:-64}" -d"$1s" -s "$here/load.lua" \
        "http://127.0.0.1:$port$path" -- "$form"
}

load 2 >/dev/null
for _ in $(seq "${ROUNDS:-9}"); do
    before=$(ticks)
    out=$(load "${SECONDS_MEASURED:-10}")
    used=$(( $(ticks) - (before) ))
    requests=$(awk '/requests in/ { print $1 }' <<<"$out")
    rate=$(awk '/Requests\/sec/ { print $2 }' <<<"$out")
    wrong=$(awk '/Non-2xx/ { print $NF }' <<<"$out")
    awk -v used="$used" -v hz="$(getconf CLK_TCK)" -v n="$requests" -v rate="$rate" -v wrong="${wrong:-0}" \
        'BEGIN { printf "%.0f requests/s, %.1f µs CPU a request, %d not 2xx\n", rate, used * 1e6 / hz / n, wrong }'
done
