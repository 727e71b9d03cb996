#!/bin/sh
# Entry point of the container: serve, healthcheck (is the service ready?), or any other command.
set -eu
# Use the model that was exported when the image was built, if there is one.
if [ -z "${RERANKER_MODEL:-}" ] && [ -f /opt/model/manifest.json ]; then
  export RERANKER_MODEL=/opt/model
fi
case ${1:-serve} in
  serve)
    exec python -m app ;;
  healthcheck)
    exec python -m app.healthcheck "http://127.0.0.1:${RERANKER_PORT:-8000}" ;;
  *)
    exec "$@" ;;
esac
