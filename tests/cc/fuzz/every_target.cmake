# Fuzzes the cpu backend on every SIMD target that this CPU has, and checks that the target asked for is the one that ran, and that it
# declined nothing.
# cmake -DFUZZ=<program> -DSECONDS=<each> -P every_target.cmake
execute_process(COMMAND ${FUZZ} --list-targets OUTPUT_VARIABLE targets COMMAND_ERROR_IS_FATAL ANY)
string(STRIP "${targets}" targets)
string(REPLACE "\n" ";" targets "${targets}")
if(NOT targets)
  message(FATAL_ERROR "this build has no SIMD target for this CPU")
endif()
foreach(target IN LISTS targets)
  execute_process(COMMAND ${CMAKE_COMMAND} -E env FUSION_ATTENTION_TARGET=${target}
                          ${FUZZ} --backend cpu --seconds ${SECONDS}
                  OUTPUT_VARIABLE report RESULT_VARIABLE result)
  message("${target}: ${report}")
  if(NOT result EQUAL 0 OR NOT report MATCHES "cases .0 declined.*target ${target}: all agree")
    message(FATAL_ERROR "fuzzing target ${target} failed")
  endif()
endforeach()
