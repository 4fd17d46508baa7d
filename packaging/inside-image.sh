#!/usr/bin/env bash
# Runs inside a system that has what the Dockerfile's last stage has, as its user and with its environment, see test.sh:
# the entry point serves, the health check agrees with it, and a stop is clean. COMMIT is what the image was built of.
set -euo pipefail
cd /var/lib/millrace

die() {
    echo "FAILED: $*" >&2
    cat log >&2
    exit 1
}

read -r -a serve <<<"${ENTRYPOINT//\"/}"
read -r -a probe <<<"${HEALTHCHECK//\"/}"
if "${probe[@]}" >/dev/null 2>&1; then die "${probe[*]} says that a server is well before one runs"; fi
"${serve[@]}" >log 2>&1 &
server=$!
for _ in {1..100}; do
    ! "${probe[@]}" >/dev/null 2>&1 || break
    kill -0 "$server" || die "${serve[*]} ended"
    sleep 0.1
done
"${probe[@]}" || die "${probe[*]}"
exec 3<>/dev/tcp/127.0.0.1/8080
printf 'POST /payloads HTTP/1.1\r\nhost: x\r\ncontent-length: 12\r\nconnection: close\r\n\r\n{"data":[7]}' >&3
answer=$(tr -d '\r' <&3)
[[ $answer == *'200 OK'*'{"accepted":1,"ack":"queued"}'* ]] || die "the answer is: $answer"
exec 3<>/dev/tcp/127.0.0.1/9090
printf 'GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n' >&3
answer=$(tr -d '\r' <&3)
[[ $answer == *"millrace_build_info{"*"commit=\"$COMMIT\""* ]] || die "millrace_build_info does not name the commit $COMMIT"
[[ $("${serve[@]}" --version) == *"($COMMIT)" ]] || die "--version is $("${serve[@]}" --version)"
kill -TERM "$server"
status=0
wait "$server" || status=$?
[ "$status" = 0 ] || die "the server stopped with status $status"
[ "$(cat data/*.json)" = 7 ] || die "the payload is not in data/"
echo "served as $(id -u) with $(env | grep '^MILLRACE_' | tr '\n' ' ')and stopped"
