#!/bin/sh
# Entry point of the container: serve, healthcheck (is the service ready?), or any other command.
set -eu
# Use the model that was exported when the image was built, if there is one.
if [ -z "${RERANKER_MODEL:-}" ] && [ -f /opt/model/manifest.json ]; then
  export RERANKER_MODEL=/opt/model
fi
# Kubernetes sets RERANKER_PORT to an address if a Service is named reranker. The service ignores that, too.
case ${RERANKER_PORT:-} in *://*) unset RERANKER_PORT ;; esac
case ${1:-serve} in
  serve)
    exec python -m app ;;
  healthcheck)
    exec python -c 'import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=4)
except OSError as error:
    sys.exit(f"Not ready: {error}")' "http://127.0.0.1:${RERANKER_PORT:-8000}/health/ready" ;;
  *)
    exec "$@" ;;
esac
