# Install and export rules: a tree that can be moved, for find_package(moe) and pkg-config.
include(CMakePackageConfigHelpers)

set(moe_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/moe)
install(TARGETS moe EXPORT moe-targets FILE_SET HEADERS FILE_SET cuda_headers)
install(EXPORT moe-targets NAMESPACE moe:: DESTINATION ${moe_cmake_dir})
install(FILES LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DOCDIR})

configure_package_config_file(cmake/moeConfig.cmake.in moeConfig.cmake
  INSTALL_DESTINATION ${moe_cmake_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(moeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/moeConfig.cmake ${PROJECT_BINARY_DIR}/moeConfigVersion.cmake
  DESTINATION ${moe_cmake_dir})

# pkg-config. The prefix is found from the place of the .pc file.
set(moe_pc_dir ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
file(RELATIVE_PATH moe_pc_to_prefix /${moe_pc_dir} /)
string(REGEX REPLACE "/$" "" moe_pc_to_prefix ${moe_pc_to_prefix})
set(moe_pc_cflags "")
set(moe_pc_requires "")
set(moe_pc_libs "")
if(NOT BUILD_SHARED_LIBS)
  string(JOIN " " moe_pc_requires ${MOE_STATIC_MODULES})
  set(moe_pc_cflags "-DMOE_STATIC")
  set(moe_pc_libs "-lstdc++ -lpthread")
  if(MOE_CUDA)
    string(APPEND moe_pc_libs " -L${CUDAToolkit_LIBRARY_DIR} -lcudart_static -lrt -ldl")
  endif()
endif()
configure_file(cmake/moe.pc.in moe.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/moe.pc DESTINATION ${moe_pc_dir})
