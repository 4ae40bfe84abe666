# All private: none of these appears in a public header.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(fmt REQUIRED)
find_package(simdjson REQUIRED)
find_path(MOE_XXHASH_INCLUDE xxhash.h REQUIRED)  # header-only use

target_link_libraries(moe PRIVATE
  Threads::Threads absl::flat_hash_map absl::strings fmt::fmt-header-only simdjson::simdjson)
target_include_directories(moe PRIVATE ${MOE_XXHASH_INCLUDE})
