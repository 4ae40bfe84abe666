// MOE_API marks what a shared moe exports. A static moe's consumers define MOE_STATIC, which the
// CMake target and moe.pc do, so that a library around it does not export moe again.
#pragma once

#ifndef MOE_STATIC
// Visible to users of a shared library.
#define MOE_API [[gnu::visibility("default")]]
#else
#define MOE_API
#endif
