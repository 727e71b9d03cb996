#!/bin/sh
# Entry point of the container: serve, healthcheck (is the service ready?), or any other command.
set -eu
# Use the model that was exported when the image was built, if there is one.
if [ -z "${RERANKER_MODEL:-}${RERANKER_MODELS:-}" ] && [ -f /opt/model/manifest.json ]; then
  export RERANKER_MODEL=/opt/model
fi
# Kubernetes sets RERANKER_PORT to an address if a Service is named reranker. The service ignores that, too.
case ${RERANKER_PORT:-} in *://*) unset RERANKER_PORT ;; esac
case ${1:-serve} in
  serve)
    exec python -m app ;;
  healthcheck)
    host=${RERANKER_HOST:-::} host=${host#[} host=${host%]}
    case $host in
      0.0.0.0 | ::) address=localhost ;;
      *:*) address="[$host]" ;;
      *) address=$host ;;
    esac
    exec python -m app.healthcheck "http://$address:${RERANKER_PORT:-8000}" ;;
  *)
    exec "$@" ;;
esac
