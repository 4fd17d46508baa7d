#!/usr/bin/env bash
# Sends a file of JSON lines, compressed, one request per 64 KiB of it.
#
#     MILLRACE_TOKEN=TOKEN curl.sh FILE [URL]
#
# Run by the tests with curl 7.88 of Debian 12, against a server whose queue fills up meanwhile. Needs bash, GNU split,
# gzip and curl.
#
# curl retries after 408, 429 and 503, and waits as long as `retry-after` says. It retries after 502 and 504 too: a
# server with ACK=stored or spooled may then store lines twice, one with ACK=queued never answers so. A connection that is
# lost without an answer is not retried: the exit status is not 0, and the rest of the file is not sent.
set -euo pipefail

file=${1:?FILE is wanted} url=${2:-http://localhost:8080/payloads}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
{
    echo 'content-type: application/x-ndjson'
    echo 'content-encoding: gzip'
    # By a file: other users see the arguments of curl.
    [ -z "${MILLRACE_TOKEN-}" ] || echo "authorization: Bearer $MILLRACE_TOKEN"
} >"$work/headers"

export work url
# A line that is longer than 64 KiB would be cut; raise it up to the server's MAX_LENGTH.
split --line-bytes=64K --filter='
    gzip | curl --silent --show-error --fail-with-body --header "@$work/headers" --data-binary @- \
        --retry 20 --retry-connrefused --connect-timeout 5 --max-time 60 --output "$work/answer" "$url" ||
        { cat "$work/answer" >&2; exit 1; }
' "$file"
