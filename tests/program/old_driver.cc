// A libcuda.so.1 that says it is of CUDA 11.4, for the test of what the program says then.
extern "C" int cuDriverGetVersion(int* version) {
  *version = 11040;
  return 0;
}
extern "C" int cuInit(unsigned) { return 0; }
