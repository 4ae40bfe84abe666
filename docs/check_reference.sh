#!/bin/bash
# Every public symbol is documented: fails and lists those that are not. Fields and enumerators may
# speak for themselves inside a documented type; so may copying, moving and destroying.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p build

special='Member (operator=|~?([A-Za-z]+))\((const )?(\2|[A-Za-z]+) ?&&? ?[a-z]*\)'
missing=$( (cat docs/Doxyfile; echo "GENERATE_HTML = NO") | doxygen - 2>&1 >/dev/null |
  grep -vE -e '\((variable|enumvalue)\)' -e "$special" || true)
if [ -n "$missing" ]; then
  echo "${missing//$PWD\//}"
  echo "$(wc -l <<<"$missing") public symbols are not documented"
  exit 1
fi
echo "every public symbol is documented"
