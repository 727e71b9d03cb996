#!/bin/sh
# Remove from a virtual environment what a CPU image never uses: tests, headers and plugins for other devices.
#   docker/strip.sh FOLDER [slim]
#   slim: also what only an export needs, such as OpenVINO's readers of other formats
set -eu
packages=$(echo "$1"/lib/python3.*/site-packages)
find "$packages" -type d \( -name tests -o -name test \) -path '*/site-packages/*' \
  ! -path '*/torch/*' ! -path '*/sklearn/utils/*' -prune -exec rm -rf {} +
rm -rf "$packages"/torch/test "$packages"/torch/include "$packages"/torch/bin/protoc*
rm -rf "$packages"/openvino/include "$packages"/openvino/libs/libopenvino_intel_gpu_plugin.so \
  "$packages"/openvino/libs/libopenvino_intel_npu_plugin.so "$packages"/openvino/libs/cache.json
find "$packages" -name '*.a' -delete
if [ "${2:-}" = slim ]; then
  for format in gguf jax onnx paddle pytorch tensorflow tensorflow_lite; do
    rm -f "$packages/openvino/libs/libopenvino_${format}_frontend.so".*
  done
  rm -rf "$packages"/setuptools "$packages"/setuptools-* "$packages"/_distutils_hack "$packages"/distutils-precedence.pth
fi
