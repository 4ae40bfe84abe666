// MOE_API marks what a shared moe exports. A static moe's consumers define MOE_STATIC, which the
// CMake target and moe.pc do, so that a library around it does not export moe again.
#pragma once

#ifdef MOE_STATIC
#define MOE_API
#else
#define MOE_API [[gnu::visibility("default")]]
#endif
