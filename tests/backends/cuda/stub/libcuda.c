/* A stand-in for libcuda.so.1 that needs no GPU: device memory is host heap, kernels are never executed.
 *
 * It is strict where a real driver is (current contexts, handles of another context, shared memory that was not asked
 * for, sizes, double frees, what a stream capture forbids), so that a wrong call sequence fails here as it would there.
 *
 * Environment, read at the first call:
 *   STUB_DEVICES     number of GPUs (1); 0: cuInit answers CUDA_ERROR_NO_DEVICE
 *   STUB_CAPABILITY  compute capability of all of them ("9.0")
 *   STUB_DRIVER      what cuDriverGetVersion answers (13000)
 *   STUB_LOG         file that gets one JSON object a call; none: nothing is recorded
 *   STUB_FAIL        "call:CUresult:n", the n-th call from now on fails; stub_fail() sets the same at run time
 *
 * PTX is read as text: entries, the sizes of their parameters, .shared declarations, .version and .target. The word
 * CORRUPT makes it fail to compile. As in the real driver that happens when the first kernel is looked up.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <fcntl.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
#define API __attribute__((visibility("default"))) CUresult

enum {
  INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
  INVALID_IMAGE = 200, INVALID_CONTEXT = 201, NO_BINARY_FOR_GPU = 209, INVALID_PTX = 218,
  UNSUPPORTED_PTX_VERSION = 222, INVALID_HANDLE = 400, NOT_FOUND = 500, CAPTURE_UNSUPPORTED = 900,
};
enum { MAX_DEVICES = 8, MAX_PARAMETERS = 64, STACK = 32, STATIC_LIMIT = 48 * 1024, OPTIN_LIMIT = 227 * 1024 };
enum { ATTRIBUTE_SHARED_SIZE = 1, ATTRIBUTE_MAX_DYNAMIC_SHARED = 8 };  /* CUfunction_attribute */
enum { RELAXED = 2 };                                                  /* CUstreamCaptureMode */
enum { JIT_ERROR_LOG_BUFFER = 5, JIT_ERROR_LOG_BUFFER_SIZE = 6 };      /* CUjit_option */

typedef struct { int device, id, retained; } Context;
typedef struct { Context *context; int capturing; } Stream;
typedef struct Allocation { struct Allocation *next; char *start; size_t nbytes; Context *context; } Allocation;
typedef struct { char *text, *log; size_t log_size; } Library;
typedef struct Kernel { Library *library; char name[128]; int count, sizes[MAX_PARAMETERS], shared; } Kernel;
typedef struct { Kernel *kernel; Context *context; int allowed; } Function;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int initialised, devices = 1, version = 13000, major = 9, minor, log_file = -1, created;
static Context primary[MAX_DEVICES];
static Allocation *allocations;
static char fail_call[64];
static int fail_result, fail_after;
static __thread Context *stack[STACK];
static __thread int depth, captures, capture_mode; /* CU_STREAM_CAPTURE_MODE_GLOBAL */

__attribute__((visibility("default"))) void stub_fail(const char *spec) {
  pthread_mutex_lock(&lock);
  if (!spec || sscanf(spec, "%63[^:]:%d:%d", fail_call, &fail_result, &fail_after) != 3) fail_call[0] = 0;
  pthread_mutex_unlock(&lock);
}

static void read_environment(void) {
  const char *value;
  if ((value = getenv("STUB_DEVICES"))) devices = atoi(value);
  if (devices > MAX_DEVICES) devices = MAX_DEVICES;
  if ((value = getenv("STUB_CAPABILITY"))) sscanf(value, "%d.%d", &major, &minor);
  if ((value = getenv("STUB_DRIVER"))) version = atoi(value);
  if ((value = getenv("STUB_LOG"))) log_file = open(value, O_WRONLY | O_CREAT | O_APPEND, 0644);
  if ((value = getenv("STUB_FAIL"))) stub_fail(value);
  for (int i = 0; i < MAX_DEVICES; i++) primary[i] = (Context){i, i, 0};
}

static Context *current(void) { return depth ? stack[depth - 1] : NULL; }

/* Records a call and says what it must answer with: 0, or the failure that was asked for. */
static CUresult enter(const char *call, const char *format, ...) {
  char line[4096];
  CUresult result = 0;
  pthread_once(&once, read_environment);
  pthread_mutex_lock(&lock);
  if (fail_call[0] && !strcmp(fail_call, call) && --fail_after == 0) result = fail_result, fail_call[0] = 0;
  pthread_mutex_unlock(&lock);
  if (log_file >= 0) {
    int used = snprintf(line, sizeof line, "{\"call\": \"%s\", \"thread\": %ld, \"context\": %d, \"failed\": %d", call,
                        (long)syscall(SYS_gettid), current() ? current()->id : -1, result);
    va_list arguments;
    va_start(arguments, format);
    used += vsnprintf(line + used, sizeof line - used - 3, format, arguments);
    va_end(arguments);
    line[used++] = '}', line[used++] = '\n';
    if (write(log_file, line, used) != used) abort();
  }
  if (!result && !initialised && strcmp(call, "cuInit") && strcmp(call, "cuDriverGetVersion")) result = NOT_INITIALIZED;
  return result;
}
#define ENTER(...) do { CUresult failed_ = enter(__func__, __VA_ARGS__); if (failed_) return failed_; } while (0)
#define REQUIRE(condition, result) do { if (!(condition)) return result; } while (0)

/* ---- driver, devices, contexts ---- */
API cuInit(unsigned flags) {
  ENTER(", \"flags\": %u", flags);
  REQUIRE(devices > 0, NO_DEVICE);
  initialised = 1;
  return 0;
}
API cuDriverGetVersion(int *out) { ENTER(""); *out = version; return 0; }
API cuDeviceGetCount(int *out) { ENTER(""); *out = devices; return 0; }
API cuDeviceGet(CUdevice *out, int ordinal) {
  ENTER(", \"ordinal\": %d", ordinal);
  REQUIRE(ordinal >= 0 && ordinal < devices, INVALID_DEVICE);
  *out = ordinal;
  return 0;
}
API cuDeviceGetName(char *out, int size, CUdevice device) {
  ENTER(", \"device\": %d", device);
  snprintf(out, size, "Stub GPU %d", device);
  return 0;
}
API cuDeviceGetAttribute(int *out, int attribute, CUdevice device) {
  ENTER(", \"attribute\": %d, \"device\": %d", attribute, device);
  switch (attribute) {
    case 75: *out = major; break;
    case 76: *out = minor; break;
    case 16: *out = 132; break;
    case 97: *out = OPTIN_LIMIT; break;
    default: return INVALID_VALUE;
  }
  return 0;
}
API cuDevicePrimaryCtxRetain(Context **out, CUdevice device) {
  ENTER(", \"device\": %d", device);
  REQUIRE(device >= 0 && device < devices, INVALID_DEVICE);
  primary[device].retained++;
  *out = &primary[device];
  return 0;
}
API cuCtxCreate(Context **out, void *parameters, unsigned flags, CUdevice device) {
  ENTER(", \"device\": %d", device);
  (void)parameters, (void)flags;
  Context *context = calloc(1, sizeof *context);
  *context = (Context){device, MAX_DEVICES + __sync_fetch_and_add(&created, 1), 1};
  stack[depth++] = *out = context;
  return 0;
}
API cuCtxGetCurrent(Context **out) { ENTER(""); *out = current(); return 0; }
API cuCtxSetCurrent(Context *context) {
  ENTER(", \"new\": %d", context ? context->id : -1);
  if (!context) depth -= depth > 0;
  else stack[depth ? depth - 1 : depth++] = context;
  return 0;
}
API cuCtxPushCurrent(Context *context) {
  ENTER(", \"new\": %d", context ? context->id : -1);
  REQUIRE(context && context->retained && depth < STACK, INVALID_CONTEXT);
  stack[depth++] = context;
  return 0;
}
API cuCtxPopCurrent(Context **out) {
  ENTER("");
  REQUIRE(depth, INVALID_CONTEXT);
  depth--;
  if (out) *out = stack[depth];
  return 0;
}
API cuCtxGetDevice(CUdevice *out) {
  ENTER("");
  REQUIRE(current(), INVALID_CONTEXT);
  *out = current()->device;
  return 0;
}
API cuCtxSynchronize(void) { ENTER(""); REQUIRE(!captures, CAPTURE_UNSUPPORTED); return current() ? 0 : INVALID_CONTEXT; }

/* ---- memory ---- */
API cuMemAlloc(CUdeviceptr *out, size_t nbytes) {
  ENTER(", \"nbytes\": %zu", nbytes);
  REQUIRE(current(), INVALID_CONTEXT);
  REQUIRE(!captures || capture_mode == RELAXED, CAPTURE_UNSUPPORTED);
  REQUIRE(nbytes, INVALID_VALUE);
  REQUIRE(nbytes < (size_t)1 << 40, OUT_OF_MEMORY);
  Allocation *made = calloc(1, sizeof *made);
  *made = (Allocation){NULL, aligned_alloc(256, (nbytes + 255) / 256 * 256), nbytes, current()};
  pthread_mutex_lock(&lock);
  made->next = allocations, allocations = made;
  pthread_mutex_unlock(&lock);
  *out = (CUdeviceptr)(uintptr_t)made->start;
  return 0;
}
API cuMemFree(CUdeviceptr pointer) {
  ENTER(", \"pointer\": %llu", pointer);
  REQUIRE(current(), INVALID_CONTEXT);
  REQUIRE(!captures || capture_mode == RELAXED, CAPTURE_UNSUPPORTED);
  CUresult result = INVALID_VALUE;
  pthread_mutex_lock(&lock);
  for (Allocation **at = &allocations; *at; at = &(*at)->next)
    if ((*at)->start == (char *)(uintptr_t)pointer) {
      Allocation *gone = *at;
      *at = gone->next;
      free(gone->start), free(gone);
      result = 0;
      break;
    }
  pthread_mutex_unlock(&lock);
  return result;
}
static CUresult copy(CUdeviceptr device, void *host, size_t nbytes, int to_device) {
  REQUIRE(current(), INVALID_CONTEXT);
  REQUIRE(!captures, CAPTURE_UNSUPPORTED);
  char *start = (char *)(uintptr_t)device;
  CUresult result = INVALID_VALUE;
  pthread_mutex_lock(&lock);
  for (Allocation *at = allocations; at; at = at->next)
    if (start >= at->start && start + nbytes <= at->start + at->nbytes) {
      memcpy(to_device ? (void *)start : host, to_device ? host : (void *)start, nbytes);
      result = 0;
    }
  pthread_mutex_unlock(&lock);
  return result;
}
API cuMemcpyHtoD(CUdeviceptr device, const void *host, size_t nbytes) {
  ENTER(", \"nbytes\": %zu", nbytes);
  return copy(device, (void *)host, nbytes, 1);
}
API cuMemcpyDtoH(void *host, CUdeviceptr device, size_t nbytes) {
  ENTER(", \"nbytes\": %zu", nbytes);
  return copy(device, host, nbytes, 0);
}

/* ---- streams: 0, 1 (legacy) and 2 (per thread) belong to the current context ---- */
API cuStreamCreate(Stream **out, unsigned flags) {
  ENTER(", \"flags\": %u", flags);
  REQUIRE(current(), INVALID_CONTEXT);
  *out = calloc(1, sizeof **out);
  (*out)->context = current();
  return 0;
}
/* A stream in a device's primary context, for tests: neither recorded nor failing. */
__attribute__((visibility("default"))) void *stub_stream(int device) {
  pthread_once(&once, read_environment);
  Stream *stream = calloc(1, sizeof *stream);
  stream->context = &primary[device], primary[device].retained++;
  return stream;
}
static Context *stream_context(Stream *stream) { return (uintptr_t)stream < 3 ? current() : stream->context; }
API cuStreamGetCtx(Stream *stream, Context **out) {
  ENTER(", \"stream\": %llu", (unsigned long long)(uintptr_t)stream);
  REQUIRE(stream_context(stream), INVALID_CONTEXT);
  *out = stream_context(stream);
  return 0;
}
API cuStreamSynchronize(Stream *stream) {
  ENTER(", \"stream\": %llu", (unsigned long long)(uintptr_t)stream);
  REQUIRE(!captures, CAPTURE_UNSUPPORTED);
  return current() ? 0 : INVALID_CONTEXT;
}
API cuThreadExchangeStreamCaptureMode(int *mode) {
  ENTER(", \"mode\": %d", *mode);
  int before = capture_mode;
  capture_mode = *mode, *mode = before;
  return 0;
}
API cuStreamBeginCapture(Stream *stream, int mode) {
  ENTER(", \"mode\": %d", mode);
  REQUIRE((uintptr_t)stream > 2 && !stream->capturing, CAPTURE_UNSUPPORTED);
  stream->capturing = 1, captures++;
  return 0;
}
API cuStreamEndCapture(Stream *stream, void **graph) {
  ENTER("");
  REQUIRE((uintptr_t)stream > 2 && stream->capturing, CAPTURE_UNSUPPORTED);
  stream->capturing = 0, captures--;
  *graph = stream;
  return 0;
}

/* ---- libraries, kernels, functions ---- */
static void write_log(Library *library, const char *text) {
  if (library->log && library->log_size) snprintf(library->log, library->log_size, "%s", text);
}
API cuLibraryLoadData(Library **out, const void *code, int *jit, void **jit_values, unsigned jit_count, int *options,
                      void **values, unsigned count) {
  ENTER(", \"nbytes\": %zu", strlen(code));
  (void)options, (void)values, (void)count;
  REQUIRE(!captures || capture_mode == RELAXED, CAPTURE_UNSUPPORTED);
  REQUIRE(strstr(code, ".version"), INVALID_IMAGE);
  Library *library = calloc(1, sizeof *library);
  library->text = strdup(code);
  for (unsigned i = 0; i < jit_count; i++) {
    if (jit[i] == JIT_ERROR_LOG_BUFFER) library->log = jit_values[i];
    if (jit[i] == JIT_ERROR_LOG_BUFFER_SIZE) library->log_size = (unsigned)(uintptr_t)jit_values[i];
  }
  *out = library;
  return 0;
}
/* Bytes of one ".param .u64 name" or ".param .align 8 .b8 name[24]". */
static int parameter_bytes(const char *start, const char *end) {
  const char *type = NULL, *many = memchr(start, '[', end - start);
  for (const char *at = start; at < end; at++)
    if (*at == '.' && strchr("usfb", at[1]) && at[2] >= '0' && at[2] <= '9') type = at;
  return type ? atoi(type + 2) / 8 * (many ? atoi(many + 1) : 1) : 0;
}
API cuLibraryGetKernel(Kernel **out, Library *library, const char *name) {
  ENTER(", \"entry\": \"%s\"", name);
  REQUIRE(current(), INVALID_CONTEXT);
  char *text = library->text, *at, suffix = 0, declared[160];
  int target = 0, isa = 0;
  sscanf(strstr(text, ".version"), ".version %d", &isa);
  if ((at = strstr(text, ".target"))) sscanf(at, ".target sm_%d%c", &target, &suffix);
  REQUIRE(isa <= version / 1000 - 4, UNSUPPORTED_PTX_VERSION);  /* CUDA 13.x reads PTX ISA 9.x */
  int here = major * 10 + minor;
  REQUIRE(suffix == 'a' ? target == here : target <= here, NO_BINARY_FOR_GPU);
  if (strstr(text, "CORRUPT")) {
    write_log(library, "ptxas application ptx input, line 7; fatal   : Parsing error near 'CORRUPT': syntax error");
    return INVALID_PTX;
  }
  snprintf(declared, sizeof declared, ".entry %s(", name);
  REQUIRE((at = strstr(text, declared)), NOT_FOUND);
  Kernel *kernel = calloc(1, sizeof *kernel);
  kernel->library = library;
  snprintf(kernel->name, sizeof kernel->name, "%s", name);
  char *end = strchr(at, ')');
  while ((at = strstr(at, ".param")) && at < end) {
    char *stop = at + strcspn(at, ",)");
    kernel->sizes[kernel->count++] = parameter_bytes(at + 6, stop);
    at = stop;
  }
  char *body_end = strchr(end, '}');
  for (at = end; (at = strstr(at, ".shared")) && at < body_end; at++)
    kernel->shared += parameter_bytes(at + 7, at + strcspn(at, ";"));
  *out = kernel;
  return 0;
}
API cuKernelGetFunction(Function **out, Kernel *kernel) {
  ENTER(", \"entry\": \"%s\"", kernel->name);
  REQUIRE(current(), INVALID_CONTEXT);
  *out = calloc(1, sizeof **out);
  **out = (Function){kernel, current(), STATIC_LIMIT - kernel->shared};
  return 0;
}
API cuFuncGetAttribute(int *out, int attribute, Function *function) {
  ENTER(", \"entry\": \"%s\", \"attribute\": %d", function->kernel->name, attribute);
  REQUIRE(attribute == ATTRIBUTE_SHARED_SIZE, INVALID_VALUE);
  *out = function->kernel->shared;
  return 0;
}
API cuFuncSetAttribute(Function *function, int attribute, int value) {
  ENTER(", \"entry\": \"%s\", \"attribute\": %d, \"value\": %d", function->kernel->name, attribute, value);
  REQUIRE(attribute == ATTRIBUTE_MAX_DYNAMIC_SHARED, INVALID_VALUE);
  REQUIRE(value >= 0 && value + function->kernel->shared <= OPTIN_LIMIT, INVALID_VALUE);
  function->allowed = value;
  return 0;
}
/* The map is its arguments: the address, then extents, strides and box, as many as there are. */
API cuTensorMapEncodeTiled(uint64_t *map, int type, uint32_t rank, void *address, const uint64_t *extents,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
  ENTER(", \"type\": %d, \"rank\": %u, \"address\": %llu, \"swizzle\": %d", type, rank,
        (unsigned long long)(uintptr_t)address, swizzle);
  REQUIRE(rank >= 3 && rank <= 5 && (uintptr_t)address % 16 == 0, INVALID_VALUE);
  REQUIRE(interleave == 0 && promotion >= 0 && promotion <= 3 && fill == 0 && (uintptr_t)map % 64 == 0, INVALID_VALUE);
  memset(map, 0, 128);
  *map++ = (uintptr_t)address;
  for (uint32_t i = 0; i < rank; i++) {
    REQUIRE(extents[i] > 0 && extents[i] <= 1ull << 32 && box[i] > 0 && box[i] <= 256 && steps[i] == 1, INVALID_VALUE);
    REQUIRE(i + 1 == rank || (strides[i] % 16 == 0 && strides[i] < 1ull << 40), INVALID_VALUE);
    map[i] = extents[i];
    if (i + 1 < rank) map[rank + i] = strides[i];
    map[2 * rank - 1 + i] = box[i];
  }
  return 0;
}
API cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, Stream *stream, void **parameters, void **extra) {
  char bytes[3072] = "";
  (void)extra;
  if (log_file >= 0)
    for (int i = 0, used = 0; i < function->kernel->count; i++) {
      used += snprintf(bytes + used, sizeof bytes - used, "%s\"", i ? ", " : "");
      for (int b = 0; b < function->kernel->sizes[i]; b++)
        used += snprintf(bytes + used, sizeof bytes - used, "%02x", ((unsigned char *)parameters[i])[b]);
      used += snprintf(bytes + used, sizeof bytes - used, "\"");
    }
  int capturing = (uintptr_t)stream > 2 && stream->capturing;
  ENTER(", \"entry\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u, \"stream\": %llu, "
        "\"captured\": %d, \"parameters\": [%s]", function->kernel->name, grid_x, grid_y, grid_z, block_x, block_y,
        block_z, shared, (unsigned long long)(uintptr_t)stream, capturing, bytes);
  REQUIRE(current(), INVALID_CONTEXT);
  REQUIRE(function->context == current() && stream_context(stream) == current(), INVALID_HANDLE);
  REQUIRE(grid_x && grid_y && grid_z && block_x && block_y && block_z, INVALID_VALUE);
  REQUIRE(block_x * block_y * block_z <= 1024 && grid_y < 65536 && grid_z < 65536, INVALID_VALUE);
  REQUIRE((int)shared <= function->allowed, INVALID_VALUE);
  return 0;
}

typedef struct {
  int id;
  char pad[4];
  union { char bytes[64]; int allowed; } value;
} Attribute;
typedef struct {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared;
  Stream *stream;
  Attribute *attributes;
  unsigned count;
} Configuration;
API cuLaunchKernelEx(const Configuration *given, Function *function, void **parameters, void **extra) {
  ENTER(", \"attributes\": %u, \"attribute\": %d, \"value\": %d", given->count, given->count ? given->attributes->id : 0,
        given->count ? given->attributes->value.allowed : 0);
  return cuLaunchKernel(function, given->grid_x, given->grid_y, given->grid_z, given->block_x, given->block_y,
                        given->block_z, given->shared, given->stream, parameters, extra);
}

/* ---- look-up: cuda.bindings asks for every function by its plain name; an absent one fails when it is called ---- */
API cuGetProcAddress_v2(const char *symbol, void **out, int wanted, uint64_t flags, int *found);
#define ENTRY(name) {#name, (void *)name}
static const struct { const char *name; void *function; } table[] = {
  ENTRY(cuInit), ENTRY(cuDriverGetVersion), ENTRY(cuDeviceGetCount), ENTRY(cuDeviceGet), ENTRY(cuDeviceGetName),
  ENTRY(cuDeviceGetAttribute), ENTRY(cuDevicePrimaryCtxRetain), ENTRY(cuCtxCreate), ENTRY(cuCtxGetCurrent),
  ENTRY(cuCtxSetCurrent), ENTRY(cuCtxPushCurrent), ENTRY(cuCtxPopCurrent), ENTRY(cuCtxGetDevice),
  ENTRY(cuCtxSynchronize), ENTRY(cuMemAlloc), ENTRY(cuMemFree), ENTRY(cuMemcpyHtoD), ENTRY(cuMemcpyDtoH),
  ENTRY(cuStreamCreate), ENTRY(cuStreamGetCtx), ENTRY(cuStreamSynchronize), ENTRY(cuStreamBeginCapture),
  ENTRY(cuStreamEndCapture), ENTRY(cuThreadExchangeStreamCaptureMode), ENTRY(cuLibraryLoadData), ENTRY(cuLibraryGetKernel), ENTRY(cuKernelGetFunction),
  ENTRY(cuFuncGetAttribute), ENTRY(cuFuncSetAttribute), ENTRY(cuLaunchKernel), ENTRY(cuTensorMapEncodeTiled), ENTRY(cuLaunchKernelEx),
  {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
};
API cuGetProcAddress_v2(const char *symbol, void **out, int wanted, uint64_t flags, int *found) {
  (void)wanted, (void)flags;
  *out = NULL;
  for (size_t i = 0; i < sizeof table / sizeof *table; i++)
    if (!strcmp(table[i].name, symbol)) *out = table[i].function;
  if (found) *found = *out ? 0 : 1;
  return *out ? 0 : NOT_FOUND;
}
