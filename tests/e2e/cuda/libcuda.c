// Stands where NVIDIA's driver library would, for the tests of what a start-up says: FAKE_CUDA names what is wrong.
// Answers so far as a program gets before it has a stream.

#include <stdlib.h>
#include <string.h>

enum { NO_MEMORY = 2, STUB = 34, UNAVAILABLE = 46, NO_DEVICE = 100, NOT_READY = 802, MISMATCH = 803, ILLEGAL = 700 };
enum { PROCESSORS = 16, L2 = 38, MAJOR = 75, MINOR = 76, SHARED = 97 };

static int is(const char *fault) {
  const char *given = getenv("FAKE_CUDA");
  return given && !strcmp(given, fault);
}

int cuDriverGetVersion(int *version) { return *version = is("old") ? 12040 : 13000, 0; }

int cuInit(unsigned flags) {
  return is("none") ? NO_DEVICE : is("stub") ? STUB : is("mismatch") ? MISMATCH : is("fabric") ? NOT_READY : 0;
}

int cuDeviceGetCount(int *count) { return *count = is("hidden") ? 0 : 2, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "GTX 1080", length), 0; }

int cuDeviceGetAttribute(int *value, int which, int device) {
  int pascal = which == MAJOR ? 6 : which == MINOR ? 1 : 0;
  return *value = pascal ? pascal : which == PROCESSORS ? 20 : which == L2 ? 1 << 21 : which == SHARED ? 99 << 10 : 0, 0;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
  *context = (void *)1;
  return is("full") ? NO_MEMORY : is("taken") ? UNAVAILABLE : is("faulty") ? ILLEGAL : 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxGetCurrent(void **context) { return *context = (void *)1, 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuStreamCreate(void **stream, unsigned flags) { return *stream = (void *)1, 0; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuGetErrorString(int error, const char **text) { return *text = "what the driver says", 0; }
