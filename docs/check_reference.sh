#!/bin/bash
# Every public symbol is documented: fails and lists those that are not. Operators, copying, moving
# and destroying may speak for themselves, and so may an overload that differs only in & and &&.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build

mute=(-e 'Member operator' -e '&& ?noexcept|const &noexcept'
      -e 'Member ~?([A-Za-z]+)\((const )?\1 &&?[^,]*\)' -e 'No output formats')
missing=$( (cat docs/Doxyfile; echo "GENERATE_HTML = NO") | doxygen - 2>&1 >/dev/null |
  grep -vE "${mute[@]}" || true)
if [ -n "$missing" ]; then
  echo "${missing//$PWD\//}"
  echo "$(wc -l <<<"$missing") public symbols are not documented"
  exit 1
fi
echo "every public symbol is documented"
