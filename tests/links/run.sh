#!/usr/bin/env bash
# What share of a slow link carries objects that are kept: millrace's own binary, a fake S3 behind a link with a rate, and
# a backlog to put. Needs root and python3 for the long link; minutes, not for CI.
#
#   tests/links/run.sh [LINK...]       links: 2MB 8MB wan (64 Mbit/s, 300 ms round trip); all by default
#
#   MILLRACE_BIN   binary to measure; built with `cargo build --release` if not set
#   BACKLOG        bytes to post per row (200000000)
#   LIMIT          seconds after which a row is given up (the backlog at half the link's rate, plus 60)
#   KINDS          rows: payload-900k payload-10k payload-10k-w512 batch; by default those that fit the link
#   CORES          millrace's CORES (0)
#   SET            more settings for millrace, "NAME=value NAME=value"
#   CONGESTION     TCP congestion control on the long link (cubic)
#   KEEP           directory for logs and samples; a temporary one, removed at the end, if not set
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
backlog=${BACKLOG:-200000000}
near=millrace-near-$$ far=millrace-far-$$
pids=() made_netns=
# The interpreter itself, which a signal ends: python3 may be a script that starts it.
python=$(python3 -c 'import sys; print(sys.executable)')
if [[ -n ${KEEP:-} ]]; then mkdir -p "$KEEP" && work=$(cd "$KEEP" && pwd); else work=$(mktemp -d); fi

cleanup() {
  stop_all
  if [[ -n $made_netns ]]; then
    [[ -z ${wan_pid:-} ]] || { kill -KILL "$wan_pid" 2>/dev/null || true; wait "$wan_pid" 2>/dev/null || true; }
    ip netns del "$near" 2>/dev/null || true
    ip netns del "$far" 2>/dev/null || true
  fi
  if [[ -z ${KEEP:-} ]]; then rm -rf "$work"; fi
}
stop_all() {
  local pid
  for pid in "${pids[@]:-}"; do [[ -z $pid ]] || kill -KILL "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]:-}"; do [[ -z $pid ]] || wait "$pid" 2>/dev/null || true; done
  pids=()
}
trap cleanup EXIT
trap 'exit 130' INT TERM

free_port() { "$python" -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Two namespaces and a link of 64 Mbit/s and 300 ms between them: with netem where the kernel has it, else wan.py.
make_wan() {
  local rate=64000000 queue=2400000 # the queue holds what the link carries in a round trip
  ip netns add "$near"
  made_netns=yes
  ip netns add "$far"
  local a=mrn$$ b=mrf$$
  ip link add "$a" type veth peer name "$b"
  if tc qdisc add dev "$a" root netem delay 1ms 2>/dev/null; then
    tc qdisc del dev "$a" root
    local end
    for end in "$a $near" "$b $far"; do
      ip link set "${end% *}" netns "${end#* }"
      ip netns exec "${end#* }" tc qdisc add dev "${end% *}" root handle 1: tbf \
        rate ${rate}bit burst 32kb limit $queue
      ip netns exec "${end#* }" tc qdisc add dev "${end% *}" parent 1: handle 2: netem delay 150ms limit 100000
    done
  else
    ip link del "$a"
    rm -f "$work/wan.out"
    "$python" "$here/wan.py" "$a" "$b" $rate 300 $queue >"$work/wan.out" &
    wan_pid=$!
    until grep -qs ready "$work/wan.out"; do
      kill -0 "$wan_pid"
      sleep 0.05
    done
    ip link set "$a" netns "$near"
    ip link set "$b" netns "$far"
  fi
  local device address ns
  for ns in "$near $a 10.177.0.1" "$far $b 10.177.0.2"; do
    read -r ns device address <<<"$ns"
    ip -n "$ns" link set lo up
    ip -n "$ns" addr add "$address/24" dev "$device"
    ip -n "$ns" link set "$device" up mtu 1500
    # By route, as a namespace may not take just any of them for its default.
    ip -n "$ns" route replace 10.177.0.0/24 dev "$device" src "$address" congctl "${CONGESTION:-cubic}"
  done
}

# row LINK RATE KIND: one row of the table.
row() {
  local link=$1 rate=$2 kind=$3
  local dir=$work/$link-$kind host=127.0.0.1 store_rate=$rate near_exec=() far_exec=()
  rm -rf "$dir"
  mkdir -p "$dir"
  if [[ $link == wan ]]; then
    host=10.177.0.2 store_rate=0
    near_exec=(ip netns exec "$near") far_exec=(ip netns exec "$far")
  fi
  local payload=10000 each=50 settings=()
  case $kind in
    payload-900k) payload=900000 each=1 ;;
    payload-10k) ;;
    payload-10k-w512) settings=(MAX_WORKERS=512) ;;
    batch) settings=(OBJECT=batch) ;;
    *) echo "unknown kind $kind" >&2 && exit 2 ;;
  esac
  local store_port ingest_port admin_port
  store_port=$(free_port) ingest_port=$(free_port) admin_port=$(free_port)
  "${far_exec[@]}" "$python" "$here/store.py" "$host" "$store_port" "$dir/stats.json" "$store_rate" &
  pids+=($!)
  local store=$!
  until [[ -e $dir/stats.json ]]; do
    kill -0 "$store"
    sleep 0.05
  done
  # shellcheck disable=SC2206 # SET is words by intent
  settings+=(${SET:-})
  (
    cd "$dir"
    exec "${near_exec[@]}" env -i PATH="$PATH" HOME=/nonexistent AWS_EC2_METADATA_DISABLED=true \
      AWS_ACCESS_KEY_ID=AKIDTEST AWS_SECRET_ACCESS_KEY=secret AWS_REGION=us-east-1 \
      AWS_ENDPOINT_URL="http://$host:$store_port" STORE=s3://links/in/ CORES="${CORES:-0}" \
      LISTEN="127.0.0.1:$ingest_port" ADMIN_LISTEN="127.0.0.1:$admin_port" \
      MAX_QUEUE=1000000 MAX_QUEUE_BYTES=1GiB "${settings[@]}" "$bin"
  ) >"$dir/millrace.log" 2>&1 &
  pids+=($!)
  local millrace=$! tries=0
  until "${near_exec[@]}" "$python" -c "import urllib.request as u; u.urlopen('http://127.0.0.1:$admin_port/readyz')" 2>/dev/null; do
    tries=$((tries + 1))
    if ! kill -0 "$millrace" 2>/dev/null || [[ $tries -gt 300 ]]; then
      echo "millrace did not start:" >&2
      tail -n 20 "$dir/millrace.log" >&2
      exit 1
    fi
    sleep 0.1
  done
  "${near_exec[@]}" "$python" "$here/load.py" "127.0.0.1:$ingest_port" "127.0.0.1:$admin_port" "$dir/stats.json" \
    --payload $payload --each $each --backlog "$backlog" --rate "$rate" --name "$link $kind" \
    --limit "${LIMIT:-$((2 * backlog / rate + 60))}" --samples "$dir/samples.tsv" | tee -a "$work/table.tsv" |
    awk -F'\t' '{printf "%-22s %8s %8s %6s %6s %8s %6s %8s %6s %6s %9s %7s %5s  %s\n", $1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14}'
  stop_all
}

bin=${MILLRACE_BIN:-}
if [[ -z $bin ]]; then
  cargo build --release --manifest-path "$root/Cargo.toml"
  bin=$root/target/release/millrace
fi
bin=$(realpath "$bin")
links=("$@")
[[ $# -gt 0 ]] || links=(2MB 8MB wan)
: >"$work/table.tsv"
printf "%-22s %8s %8s %6s %6s %8s %6s %8s %6s %6s %9s %7s %5s\n" \
  "link, objects" "MB kept" seconds share steady retries again "ag. >60s" twice limit range flight dead
for link in "${links[@]}"; do
  kinds="payload-900k payload-10k batch"
  case $link in
    2MB) rate=2000000 ;;
    8MB) rate=8000000 ;;
    wan)
      rate=8000000 kinds="payload-900k payload-10k payload-10k-w512 batch"
      [[ -n $made_netns ]] || make_wan
      ;;
    *) echo "unknown link $link" >&2 && exit 2 ;;
  esac
  for kind in ${KINDS:-$kinds}; do row "$link" "$rate" "$kind"; done
done
