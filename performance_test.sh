#!/usr/bin/env bash
# Measure a running reranker service.
#
#   ./performance_test.sh load    --requests=50 --concurrency=5
#   ./performance_test.sh latency --warmup=5 --requests=100
#   ./performance_test.sh stress  --max-concurrency=16
#   ./performance_test.sh metrics
#
# All take --url (default: the service of this checkout); the first three also take --documents, --words, --html and --json.
# For details: ./performance_test.sh COMMAND --help
set -euo pipefail
cd "$(dirname "$0")"
source scripts/process.sh
if [[ $# -eq 0 ]]; then
  usage >&2
  exit 2
fi
running || true # sets url
export PERFORMANCE_TEST_URL=${PERFORMANCE_TEST_URL:-$url}
scripts/setup runtime
exec .venv/bin/python -m benchmarks.load "$@"
