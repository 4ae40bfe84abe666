# Every switch of the build, in one place.
include(CheckLanguage)

find_package(CUDAToolkit QUIET)
option(MOE_CUDA "GPU backend (needs the CUDA Toolkit)" ${CUDAToolkit_FOUND})
option(MOE_NCCL "Expert parallelism over NCCL" OFF)
option(MOE_UCX "Expert parallelism over UCX" OFF)
option(MOE_TESTS "Tests" OFF)
option(MOE_BENCH "Benchmarks" OFF)
option(MOE_EXAMPLES "Examples and the program moe" ${PROJECT_IS_TOP_LEVEL})
option(MOE_INSTALL "Install rules" ${PROJECT_IS_TOP_LEVEL})
option(MOE_WERROR "Treat warnings as errors" OFF)
set(MOE_SANITIZE "" CACHE STRING "address, undefined, thread, or a list of them")

if(PROJECT_IS_TOP_LEVEL AND NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Build type" FORCE)
endif()
