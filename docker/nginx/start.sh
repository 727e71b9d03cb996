#!/bin/sh
# Start nginx in front of the replicas, and follow them: where their addresses change nginx is told.
#
#   UPSTREAM                  host name that gives all replicas' addresses (replica)
#   UPSTREAM_PORT             their port (8000)
#   UPSTREAM_SERVERS          in place of both: addresses with ports, spaces between
#   RERANKER_MAX_BODY_BYTES   the service's own limit of a body (8388608)
#   RERANKER_PROXY_TIMEOUT    seconds that an answer may take (300)
#   RERANKER_PROXY_PORT       where it listens (8080)
#   RUN_DIR                   for its files (/tmp/reranker)
#
# A replica whose address and port is a line of $RUN_DIR/leaving gets no new requests: it is about to be stopped.
#
# With a certificate (tls.crt, tls.key) in $TLS_DIR (/etc/nginx/tls) it listens on $TLS_PORT (8443) too.
set -eu
run=${RUN_DIR:-/tmp/reranker}
tls=${TLS_DIR:-/etc/nginx/tls}
mkdir -p "$run"
cp "$(dirname "$0")/nginx.conf" "$run"

addresses() {
  if [ -n "${UPSTREAM_SERVERS:-}" ]; then
    echo "$UPSTREAM_SERVERS" | tr ' ' '\n'
  else
    getent ahostsv4 "${UPSTREAM:-replica}" | while read -r address _; do echo "$address:${UPSTREAM_PORT:-8000}"; done
  fi
}

staying() { sort -u | { grep -vxFf "$run/leaving" || true; }; }

# Where the lookup finds nothing what was known stays: a name server that is silent for a moment says nothing of the
# replicas. Never taken out for a while by nginx itself (max_fails): a full replica's own answer is wanted.
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
  # $$ is nginx by then.
  while sleep 2 && kill -0 $$ 2>/dev/null; do
    if write_upstream; then nginx -p "$run" -c "$run/nginx.conf" -s reload || true; fi
  done
}

cat >"$run/limits.conf" <<END
client_max_body_size ${RERANKER_MAX_BODY_BYTES:-8388608};
proxy_read_timeout ${RERANKER_PROXY_TIMEOUT:-300}s;
END
echo "listen ${RERANKER_PROXY_PORT:-8080} default_server;" >"$run/listen.conf"
if [ -f "$tls/tls.crt" ]; then
  cat >>"$run/listen.conf" <<END
listen ${TLS_PORT:-8443} ssl;
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
