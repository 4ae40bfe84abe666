# Every library we use. All are private: none appears in a public header, and a consumer of a shared
# moe needs none of them. A static moe does not contain them, so its consumers find them again:
# MOE_STATIC_PACKAGES by CMake, MOE_STATIC_MODULES by pkg-config.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(simdjson REQUIRED)
find_package(hwy REQUIRED)
find_package(fmt REQUIRED)                       # header-only use
find_path(MOE_XXHASH_INCLUDE xxhash.h REQUIRED)  # header-only use
mark_as_advanced(MOE_XXHASH_INCLUDE)

set(MOE_STATIC_PACKAGES Threads absl simdjson hwy)
set(MOE_STATIC_MODULES absl_flat_hash_map absl_strings simdjson libhwy)

target_link_libraries(moe PRIVATE
  Threads::Threads absl::flat_hash_map absl::strings simdjson::simdjson hwy::hwy
  $<BUILD_INTERFACE:fmt::fmt-header-only>)
target_include_directories(moe PRIVATE ${MOE_XXHASH_INCLUDE})

# Optional: traces packed by gzip.
find_package(ZLIB)
if(ZLIB_FOUND)
  list(APPEND MOE_STATIC_PACKAGES ZLIB)
  list(APPEND MOE_STATIC_MODULES zlib)
  target_link_libraries(moe PRIVATE ZLIB::ZLIB)
endif()

# Optional: reads of experts in flight together. No CMake package comes with it.
find_library(MOE_URING_LIBRARY uring)
find_path(MOE_URING_INCLUDE liburing.h)
mark_as_advanced(MOE_URING_LIBRARY MOE_URING_INCLUDE)
if(MOE_URING_LIBRARY AND MOE_URING_INCLUDE)
  set(MOE_URING ON)
  list(APPEND MOE_STATIC_MODULES liburing)
  target_link_libraries(moe PRIVATE uring)
  target_include_directories(moe PRIVATE ${MOE_URING_INCLUDE})
else()
  set(MOE_URING OFF)
endif()

if(MOE_CUDA)
  list(APPEND MOE_STATIC_PACKAGES CUDAToolkit)
  target_link_libraries(moe PRIVATE CUDA::cudart_static)
endif()
