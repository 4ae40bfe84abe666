# The headers use plain // comments. Doxygen reads /// before a declaration and ///< after one.
# A comment that goes on below a trailing one belongs to it.
{
  code = $0
  sub(/\/\/.*/, "", code)
  comment = substr($0, length(code) + 1)
  gsub(/@/, "\\\\@", comment)
  if (comment == "" || comment ~ /^\/\/ ----/) {
    trailing = 0
  } else if (code ~ /[^ ]/) {
    trailing = 1
    sub(/^\/\//, "///<", comment)
  } else if (trailing && length(code) > 12) {
    sub(/^\/\//, "///<", comment)
  } else {
    trailing = 0
    sub(/^\/\//, "///", comment)
  }
  # The first lines of a file say what the file is for.
  if (NR == 1 && comment != "") print "/// @file"
  print code comment
}
