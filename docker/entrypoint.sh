#!/bin/sh
# What a container runs: the service (serve), the check of its readiness (healthcheck), or any other command.
set -eu
# A model that was exported when the image was built.
if [ -z "${RERANKER_MODEL:-}" ] && [ -f /opt/model/manifest.json ]; then
  export RERANKER_MODEL=/opt/model
fi
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
