#!/usr/bin/env bash
# Build images and print their sizes.
#
#   docker/build.sh [slim] [runtime] [cuda]      default: slim runtime
#
# MODEL=organisation/name exports that model into the slim image, instead of the embedded one.
set -euo pipefail
cd "$(dirname "$0")/.."

build() { docker build --quiet --network host "$@" . >/dev/null; }

megabytes() { echo $(($(docker image inspect --format '{{.Size}}' "$1") / 1000000)); }

images=()
if (($# == 0)); then set -- slim runtime; fi
for target in "$@"; do
  echo "Building $target ..." >&2
  case $target in
    slim) build --target slim --tag reranker:slim --build-arg "MODEL=${MODEL:-}"; images+=(reranker:slim) ;;
    runtime) build --target runtime --tag reranker; images+=(reranker:latest) ;;
    cuda) build --file Dockerfile.cuda --tag reranker:cuda; images+=(reranker:cuda) ;;
    *) sed -n '2,6p' "$0" >&2; exit 2 ;;
  esac
done
base=$(megabytes python:3.11-slim-bookworm)
printf '%-16s %8s %12s\n' IMAGE MB 'OVER BASE'
for image in "${images[@]}"; do
  size=$(megabytes "$image")
  printf '%-16s %8d %12d\n' "$image" "$size" $((size - base))
done
