# Warnings and sanitizers, for our own sources only.
function(moe_own_code target)
  target_compile_options(${target} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers>
    $<$<AND:$<BOOL:${MOE_WERROR}>,$<COMPILE_LANGUAGE:CXX>>:-Werror>)
  if(MOE_SANITIZE)
    string(REPLACE ";" "," names "${MOE_SANITIZE}")
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${names} -fno-omit-frame-pointer
      -fno-sanitize-recover=all>)
    target_link_options(${target} PUBLIC -fsanitize=${names})
  endif()
endfunction()
moe_own_code(moe)
