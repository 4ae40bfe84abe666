#!/bin/bash
# Builds and runs programs that use moe: tests/consumers/run.sh BUILD_DIR...
# Each build folder is installed, its tree moved, and used by find_package and by pkg-config. Then moe
# is built shared inside another project, which must install nothing of moe unless told to; told to,
# that shared moe goes through the same.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source_dir=$(cd "$here/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

quietly() { "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" | cut -c1-400 >&2; echo "failed: $*" >&2; exit 1; }; }
build_with_cmake() {  # SOURCE BUILD OPTION...
  quietly cmake -S "$1" -B "$2" -G Ninja "${@:3}"
  quietly cmake --build "$2"
}

installed() {  # BUILD_DIR
  local build=$1 tree="$work/moved/usr" use="$work/use"
  rm -rf "$work/moved" "$use" && mkdir -p "$work/moved" "$use"
  quietly cmake --install "$build" --prefix "$work/first"
  mv "$work/first" "$tree"
  if grep -rIl -e "$work/first" -e "$source_dir" "$tree"/lib*; then
    echo "an absolute path was installed by $build" >&2 && exit 1
  fi

  build_with_cmake "$here/find_package" "$use/cmake" -DCMAKE_PREFIX_PATH="$tree"
  "$use/cmake/consumer"
  "$use/cmake/consumer_without_exceptions"

  local pc static=--static rpath=()
  pc=$(dirname "$(find "$tree" -name moe.pc)")
  if compgen -G "$tree/lib*/libmoe.so*" >/dev/null || find "$tree" -name 'libmoe.so' | grep -q .; then
    static= rpath=(-Wl,-rpath,"$(dirname "$pc")")
  fi
  # shellcheck disable=SC2046,SC2086  # flags are words
  PKG_CONFIG_PATH=$pc quietly ${CXX:-g++} -std=c++20 -O1 "$here/main.cc" -o "$use/consumer" \
    $(PKG_CONFIG_PATH=$pc pkg-config $static --cflags --libs moe) "${rpath[@]}"
  "$use/consumer"
  sed -n '/^```cpp$/,/^```$/p' "$source_dir/README.md" | sed '/^```/d' >"$use/readme.cc"
  # shellcheck disable=SC2046
  PKG_CONFIG_PATH=$pc quietly ${CXX:-g++} -std=c++20 "$use/readme.cc" -o "$use/readme" \
    $(PKG_CONFIG_PATH=$pc pkg-config $static --cflags --libs moe) "${rpath[@]}"
  if ldd "$use/consumer" | grep -iE 'python|torch'; then
    echo "a consumer links Python or PyTorch" >&2 && exit 1
  fi
}

as_subdirectory() {
  build_with_cmake "$here/add_subdirectory" "$work/sub" -DMOE_SOURCE_DIR="$source_dir" \
    -DMOE_CUDA=OFF -DBUILD_SHARED_LIBS=ON
  "$work/sub/consumer"
  quietly cmake --install "$work/sub" --prefix "$work/parent"
  if [ "$(cd "$work/parent" && find . -type f)" != ./bin/consumer ]; then
    echo "as a subdirectory moe installs files of its own" >&2 && exit 1
  fi
  quietly cmake -DMOE_INSTALL=ON "$work/sub"
}

for build in "$@"; do
  echo "installed from $build:"
  installed "$build"
done
echo "shared, as a subdirectory:"
as_subdirectory
echo "shared, installed:"
installed "$work/sub"
