# Kernels -> cubins and their index, as the target `dive_kernels_aot`, installed beside the package.
#
# Compiles CUDA C++ kernels if a CUDA compiler is found, and Triton kernels if DIVE_KERNELS_AOT is on and Triton is
# installed. `python -m dive_kernels.aot` compiles both; this file decides what it may use.

function(dive_kernels)
  find_package(Python 3.10 COMPONENTS Interpreter)
  if(NOT Python_FOUND)
    message(STATUS "dive_kernels: nothing compiled ahead of time: no Python >= 3.10 found")
    return()
  endif()
  set(run ${CMAKE_COMMAND} -E env PYTHONPATH=${PROJECT_SOURCE_DIR}/kernels ${Python_EXECUTABLE} -m dive_kernels.aot)

  _dive_triton(triton)
  _dive_cuda(cuda)
  set(out ${PROJECT_BINARY_DIR}/cubins)
  file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/dive_kernels/*.py
       ${PROJECT_SOURCE_DIR}/kernels/dive_kernels/*/*.py ${PROJECT_SOURCE_DIR}/kernels/dive_kernels/*/*.cu
       ${PROJECT_SOURCE_DIR}/kernels/dive_kernels/*/*.h)
  set(stamp ${PROJECT_BINARY_DIR}/cubins.stamp) # not the index: a failure would delete it
  add_custom_command(
    OUTPUT ${stamp}
    COMMAND ${run} ${out} --arch ${DIVE_KERNELS_ARCHS} ${triton} ${cuda}
    COMMAND ${CMAKE_COMMAND} -E touch ${stamp}
    DEPENDS ${sources}
    COMMENT "Kernels ahead of time for compute capabilities ${DIVE_KERNELS_ARCHS}"
    VERBATIM)
  add_custom_target(dive_kernels_aot ALL DEPENDS ${stamp})
  install(DIRECTORY ${out}/ DESTINATION dive_kernels/cubins
          FILES_MATCHING PATTERN "kernels.json" PATTERN "*.cubin" PATTERN "*.ptx")
endfunction()

# Sets `result` to the options of `dive_kernels.aot` for Triton kernels.
macro(_dive_triton result)
  set(${result})
  if(NOT DIVE_KERNELS_AOT)
    set(${result} --no-triton "DIVE_KERNELS_AOT was off")
    message(STATUS "dive_kernels: Triton kernels skipped: DIVE_KERNELS_AOT is off, Triton compiles them at first use")
  else()
    execute_process(COMMAND ${run} --check RESULT_VARIABLE failed ERROR_VARIABLE reason)
    if(failed)
      string(STRIP "${reason}" reason)
      message(STATUS "dive_kernels: Triton kernels skipped: ${reason} (pip hides it from a build without --no-build-isolation)")
    else()
      message(STATUS "dive_kernels: Triton kernels will be compiled for ${DIVE_KERNELS_ARCHS} by ${Python_EXECUTABLE}")
    endif()
  endif()
endmacro()

# Sets `result` to the options of `dive_kernels.aot` for CUDA C++ kernels.
macro(_dive_cuda result)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(${result} --nvcc ${CMAKE_CUDA_COMPILER})
    message(STATUS "dive_kernels: CUDA C++ kernels will be compiled for ${DIVE_KERNELS_ARCHS} by ${CMAKE_CUDA_COMPILER}")
  else()
    set(${result} --no-cuda "no CUDA compiler was found")
    message(STATUS "dive_kernels: CUDA C++ kernels skipped: no CUDA compiler found; NVRTC compiles them at first use")
  endif()
endmacro()
