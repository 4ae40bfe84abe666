# The CUDA language, before the first target: a target's architectures are fixed when it is made.
# One architecture unless the caller chose; a release passes CMAKE_CUDA_ARCHITECTURES.
find_package(CUDAToolkit REQUIRED)
if(NOT DEFINED CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES 90a-real)
endif()
enable_language(CUDA)
