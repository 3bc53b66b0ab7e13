# Triton kernels -> cubins, as the target `dive_kernels_aot`, installed beside the package.

set(DIVE_KERNELS_ARCHS 80 89 90 100 120 CACHE STRING "Compute capabilities to compile for")

function(dive_triton_kernels)
  find_package(Python 3.10 COMPONENTS Interpreter)
  if(NOT Python_FOUND)
    message(STATUS "dive_kernels: Triton kernels skipped: no Python >= 3.10 found")
    return()
  endif()

  set(run ${CMAKE_COMMAND} -E env PYTHONPATH=${PROJECT_SOURCE_DIR}/kernels ${Python_EXECUTABLE} -m dive_kernels.aot)
  execute_process(COMMAND ${run} --check RESULT_VARIABLE failed ERROR_VARIABLE reason)
  if(failed)
    string(STRIP "${reason}" reason)
    message(STATUS "dive_kernels: Triton kernels skipped: ${reason}")
    return()
  endif()

  set(out ${PROJECT_BINARY_DIR}/cubins)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/dive_kernels/*.py
       ${PROJECT_SOURCE_DIR}/kernels/dive_kernels/*/*.py)
  add_custom_command(
    OUTPUT ${out}/kernels.json
    COMMAND ${run} ${out} --arch ${DIVE_KERNELS_ARCHS}
    DEPENDS ${sources}
    COMMENT "Compiling Triton kernels for compute capabilities ${DIVE_KERNELS_ARCHS}"
    VERBATIM)
  add_custom_target(dive_kernels_aot ALL DEPENDS ${out}/kernels.json)
  install(DIRECTORY ${out}/ DESTINATION dive_kernels/cubins)
  message(STATUS "dive_kernels: Triton kernels will be compiled for ${DIVE_KERNELS_ARCHS} by ${Python_EXECUTABLE}")
endfunction()
