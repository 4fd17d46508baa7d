#!/usr/bin/env bash
# Sends JSON values, one a line on standard input, to a millrace server, and retries as docs/clients.md says.
#
#     client.sh [--form FORM] [--ack LEVEL] [--token TOKEN] [--resend-undecided] [--attempts N] URL < payloads.ndjson
#
# Without --token the token is MILLRACE_TOKEN of the environment, which other users of the host do not see.
# Exit status: 0 all accepted, 1 refused, 2 usage, 3 not admitted in time, 4 undecided. Needs bash and curl.
set -euo pipefail

payloads_max=500 # per request
bytes_max=$((512 * 1024)) # per request; the server's MAX_LENGTH is 1 MiB by default
answer_timeout=60 # longer than the server's ACK_TIMEOUT of 30 s
attempts=8
resend_undecided=
url=
token=${MILLRACE_TOKEN-}
form=collection
headers=()

usage() {
    echo "usage: client.sh [--form FORM] [--ack LEVEL] [--token TOKEN] [--resend-undecided] [--attempts N] URL" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
    --form) form=${2:?} && shift ;;
    --ack) headers+=(-H "millrace-ack: ${2:?}") && shift ;;
    --token) token=${2:?} && shift ;;
    --resend-undecided) resend_undecided=1 ;;
    --attempts) attempts=${2:?} && shift ;;
    -*) usage ;;
    *)
        [ -z "$url" ] || usage
        url=$1
        ;;
    esac
    shift
done
[ -n "$url" ] || usage
# How payloads are put together: content type, what stands before, between and after them.
case $form in
collection) content_type=application/json before='{"data":[' between=, after=']}' ;;
array) content_type=application/json before='[' between=, after=']' ;;
lines) content_type=application/x-ndjson before='' between=$'\n' after=$'\n' ;;
*) usage ;;
esac
headers+=(-H "content-type: $content_type")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ -n "$token" ]; then # by a file: other users see the arguments of curl
    printf 'authorization: Bearer %s\n' "$token" >"$work/token"
    headers+=(-H "@$work/token")
fi

# Waits before attempt $1: what the server asked for ($2, seconds) and up to 0.25 s, or if it did not ($2 = 0),
# up to 0.1 s × 2^attempt, at most 10 s, at random.
pause() {
    local most=250
    if [ "$2" = 0 ]; then
        most=10000
        [ "$1" -ge 7 ] || most=$((100 << $1))
    fi
    local ms=$(($2 * 1000 + (RANDOM * 32768 + RANDOM) % (most + 1)))
    echo "$why; attempt $(($1 + 1)) in $ms ms" >&2
    sleep "$((ms / 1000)).$(printf %03d $((ms % 1000)))"
}

# Sends $work/body, and returns once it is accepted; otherwise exits.
send() {
    local attempt wait=0 undecided='' status failure
    why=
    for ((attempt = 0; attempt < attempts; attempt++)); do
        [ "$attempt" = 0 ] || pause "$attempt" "$wait"
        wait=0 failure=0
        : >"$work/answer"
        # A connection for each request: curl ends with each, and an idle one could not be lost.
        status=$(curl -sS -o "$work/answer" -D "$work/head" -w '%{http_code}' --connect-timeout 5 \
            --max-time "$answer_timeout" "${headers[@]}" --data-binary "@$work/body" "$url" 2>"$work/error") || failure=$?
        why="$status: $(cat "$work/answer" "$work/error")"
        case $failure:$status in
        *:200) return ;;
        6:* | 7:*) why="not sent: $(cat "$work/error")" ;; # not resolved, not connected: nothing was sent
        *:400 | *:401 | *:404 | *:405 | *:413 | *:415 | *:431 | *:501) fail 1 "$why" ;;
        *:408 | *:429 | *:503) # nothing was admitted: sending it again makes no duplicates
            wait=$(tr -d '\r' <"$work/head" | sed -n 's/^[Rr]etry-[Aa]fter: *\([0-9][0-9]*\)$/\1/p' | tail -n 1)
            wait=${wait:-0}
            ;;
        *)
            if [ "$status" = 502 ] && grep -q '"accepted":' "$work/answer"; then
                fail 1 "$why" # everything was admitted, and some of it went to the server's dead letters
            fi
            # 504, a lost connection, or a gateway's own error: it may be admitted or not.
            undecided=1
            [ -n "$resend_undecided" ] || fail 4 "$why"
            ;;
        esac
    done
    fail "$([ -n "$undecided" ] && echo 4 || echo 3)" "$why; $attempts attempts"
}

accepted=0
fail() {
    echo "$accepted payloads accepted, then: $2" >&2
    exit "$1"
}

group=
count=0
flush() {
    [ "$count" -gt 0 ] || return 0
    printf '%s' "$before$group$after" >"$work/body"
    send
    accepted=$((accepted + count)) group='' count=0
}
while IFS= read -r line || [ -n "$line" ]; do
    [ -n "$line" ] || continue
    if [ "$count" -ge "$payloads_max" ] || [ $((${#group} + ${#line})) -gt "$bytes_max" ]; then flush; fi
    group+="${group:+$between}$line"
    count=$((count + 1))
done
flush
echo "$accepted payloads accepted" >&2
