#!/bin/sh
# Start nginx in front of the replicas, and reload it when their addresses change.
#
#   UPSTREAM                  host name that resolves to all replicas (replica)
#   UPSTREAM_PORT             their port (8000)
#   UPSTREAM_SERVERS          replaces both: space-separated addresses with ports
#   RERANKER_MAX_BODY_BYTES   body limit, the same as the service's (8388608)
#   RERANKER_PROXY_TIMEOUT    seconds that a response may take (300)
#   RERANKER_PROXY_PORT       port to listen on (8080)
#   RUN_DIR                   folder of nginx's files (/tmp/reranker)
#
# Replicas listed in $RUN_DIR/leaving (address:port, one per line) get no new requests before they are stopped.
#
# If $TLS_DIR (/etc/nginx/tls) contains tls.crt and tls.key, nginx also listens on $TLS_PORT (8443).
set -eu
run=${RUN_DIR:-/tmp/reranker}
tls=${TLS_DIR:-/etc/nginx/tls}
mkdir -p "$run"
cp "$(dirname "$0")/nginx.conf" "$run"

addresses() {
  if [ -n "${UPSTREAM_SERVERS:-}" ]; then
    echo "$UPSTREAM_SERVERS" | tr ' ' '\n'
  else
    name=${UPSTREAM:-replica} port=${UPSTREAM_PORT:-8000}
    found=$(getent ahostsv4 "$name") || found=$(getent ahostsv6 "$name") || true
    echo "$found" | sed -n "s/^\([0-9.]\+\) .*/\1:$port/p; s/^\([0-9a-f]*:[0-9a-f:.]*\) .*/[\1]:$port/p"
  fi
}

staying() { sort -u | { grep -vxFf "$run/leaving" || true; }; }

# If the lookup finds nothing, the known addresses stay: the name server may be down for a moment. max_fails=0 keeps
# nginx from removing a full replica, because its 429 should reach the client.
write_upstream() {
  found=$(addresses | staying)
  if [ -z "$found" ] && [ -f "$run/upstream.conf" ]; then
    found=$(sed 's/^server //; s/ .*//' "$run/upstream.conf" | staying)
    [ -n "$found" ] || return 1
  fi
  for address in ${found:-127.0.0.1:1}; do echo "server $address max_fails=0;"; done >"$run/upstream.new"
  cmp -s "$run/upstream.new" "$run/upstream.conf" && return 1
  mv "$run/upstream.new" "$run/upstream.conf"
}

follow() {
  # By now, $$ is nginx.
  while sleep 2 && kill -0 $$ 2>/dev/null; do
    if write_upstream; then nginx -p "$run" -c "$run/nginx.conf" -s reload || true; fi
  done
}

cat >"$run/limits.conf" <<END
client_max_body_size ${RERANKER_MAX_BODY_BYTES:-8388608};
proxy_read_timeout ${RERANKER_PROXY_TIMEOUT:-300}s;
END
# Kubernetes sets this to an address if a Service is named reranker-proxy.
case ${RERANKER_PROXY_PORT:-} in *://*) unset RERANKER_PROXY_PORT ;; esac
# Both families on one socket, if the system has IPv6.
any=
both=
if grep -q . /proc/net/if_inet6 2>/dev/null; then any="[::]:" both="ipv6only=off"; fi
echo "listen $any${RERANKER_PROXY_PORT:-8080} default_server $both;" >"$run/listen.conf"
if [ -f "$tls/tls.crt" ]; then
  cat >>"$run/listen.conf" <<END
listen $any${TLS_PORT:-8443} ssl $both;
ssl_certificate $tls/tls.crt;
ssl_certificate_key $tls/tls.key;
ssl_protocols TLSv1.2 TLSv1.3;
END
fi
rm -f "$run/upstream.conf"
: >"$run/leaving"
write_upstream
follow &
exec nginx -p "$run" -c "$run/nginx.conf" -g 'daemon off;'
