/* A CUDA driver without a card, for tests: libcuda.so.1 with the calls that CubeCL's CUDA runtime (by
 * way of cudarc), src/nccl and src/cublaslt make.
 *
 * Device memory is host memory, mapped where it is touched. Kernels are loaded from PTX, checked
 * against the limits of an H100, counted, written to a trace, and never run: what a kernel would
 * have computed is whatever was in memory. So all of a program's host side runs, on garbage.
 * tests/cuda/run.py counts with it; src/nccl/tests.rs moves data with it and nccl_over_mpi.c, and
 * src/cublaslt/tests.rs multiplies with it and cublaslt.c.
 *
 * Environment (bytes with an optional K, M or G):
 *   NULLCUDA_CARDS    cards of this machine (default 1)
 *   NULLCUDA_VERSION  CUDA version that the driver says it knows (default 13000)
 *   NULLCUDA_MEMORY   bytes of a card (default 80G); more is OUT_OF_MEMORY
 *   NULLCUDA_TAKEN    bytes of it that somebody else has (default 0)
 *   NULLCUDA_KEEP     copies above this size are not done (default 1M), so that large weights take no
 *                     memory
 *   NULLCUDA_SMALL    if set, copies to the host give, instead of what is in memory, words of 4 bytes that
 *                     count from 0 to 60 over and over: as integers they are tokens and the like, as
 *                     floats finite, nearly 0, and not all the same
 *   NULLCUDA_LATE     if set, copies to the card are kept back until something waits for them, as late
 *                     as a card may do them: who forgets to wait reads what was there before
 *   NULLCUDA_TRACE    file for the trace, one event a line (below); none by default
 * With -DBEFORE_12_5 the driver cannot order a whole context, as older ones cannot.
 *
 * Trace: every line begins with a letter and the microseconds since cuInit.
 *   F us id hash name sizes…         a function: FNV-1a of its PTX, bytes of each parameter
 *   K us id gx,gy,gz bx,by,bz smem params…   a launch: pointers in hex, other parameters as [hex]
 *   A us ptr bytes / R us ptr bytes  device memory reserved, given back
 *   P us bytes / Q us bytes          the same for pinned host memory
 *   H us ptr bytes / D us ptr bytes  copy to the device, to the host
 *   S us                             the host waits (event or stream)
 *   T us ptr type rank dims… box…    a tensor map
 *   M us m n k inputs output         a product by cublaslt.c
 *   E us text                        a call that a real driver would refuse
 * The last lines are a summary (#). What is not implemented is absent: cudarc then says its name.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500,
       NOT_READY = 600, ILLEGAL_ADDRESS = 700, OUT_OF_RESOURCES = 701 };
typedef unsigned long long ptr_t;
typedef unsigned int uint;
#define MAX_SHARED 232448 /* 227 KiB, opt-in, of compute capability 9.0 */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *trace;
static size_t memory = 80ull << 30, taken, keep = 1 << 20;
static int cards = 1, version = 13000, small, late;
static struct timespec begun;

static struct { unsigned long launches, to_device, to_device_bytes, to_host, to_host_bytes, waits, refused, modules, skipped; } count;

static size_t size_of(const char *name, size_t otherwise) {
    const char *text = getenv(name);
    if (!text || !*text) return otherwise;
    char *end;
    double value = strtod(text, &end);
    switch (*end) {
    case 'G': return (size_t)(value * (1ull << 30));
    case 'M': return (size_t)(value * (1 << 20));
    case 'K': return (size_t)(value * (1 << 10));
    default: return (size_t)value;
    }
}

static long nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (now.tv_sec - begun.tv_sec) * 1000000000L + now.tv_nsec - begun.tv_nsec;
}

static void say(char kind, const char *format, ...) {
    if (!trace) return;
    va_list rest;
    va_start(rest, format);
    fprintf(trace, "%c %ld ", kind, nanoseconds() / 1000);
    vfprintf(trace, format, rest);
    fputc('\n', trace);
    va_end(rest);
}

/* A call that a real driver would refuse is in the trace and on standard error. */
#define REFUSE(code, ...) do { count.refused++; fprintf(stderr, "nullcuda refuses: " __VA_ARGS__); fputc('\n', stderr); \
    say('E', __VA_ARGS__); pthread_mutex_unlock(&lock); return code; } while (0)

/* ---- memory ---- */

struct block { ptr_t at; size_t bytes; struct block *next; };
static struct pool { struct block *first; size_t now, most, calls; } device, pinned;

static void *take(struct pool *pool, size_t bytes) {
    void *at = mmap(NULL, bytes ? bytes : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) return NULL;
    madvise(at, bytes, MADV_NOHUGEPAGE);
    struct block *block = malloc(sizeof *block);
    *block = (struct block){(ptr_t)at, bytes, pool->first};
    pool->first = block;
    pool->calls++;
    pool->now += bytes;
    if (pool->now > pool->most) pool->most = pool->now;
    return at;
}

static size_t give(struct pool *pool, ptr_t at) {
    for (struct block **link = &pool->first; *link; link = &(*link)->next) {
        struct block *block = *link;
        if (block->at != at) continue;
        size_t bytes = block->bytes;
        munmap((void *)at, bytes ? bytes : 1);
        pool->now -= bytes;
        *link = block->next;
        free(block);
        return bytes + 1;
    }
    return 0;
}

static int holds(struct pool *pool, ptr_t at, size_t bytes) {
    for (struct block *block = pool->first; block; block = block->next)
        if (at >= block->at && at + bytes <= block->at + block->bytes) return 1;
    return 0;
}

int cuMemAlloc_v2(ptr_t *out, size_t bytes) {
    pthread_mutex_lock(&lock);
    if (!bytes) REFUSE(INVALID_VALUE, "allocation of 0 bytes");
    void *at = taken + device.now + bytes > memory ? NULL : take(&device, bytes);
    if (at) {
        *out = (ptr_t)at;
        say('A', "%llx %zu", *out, bytes);
    } else {
        say('E', "out of memory: %zu more than %zu of %zu", bytes, device.now, memory);
    }
    pthread_mutex_unlock(&lock);
    return at ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemAllocAsync(ptr_t *out, size_t bytes, void *stream) { return cuMemAlloc_v2(out, bytes); }

int cuMemFree_v2(ptr_t at) {
    if (late) return SUCCESS; /* Copies may still be kept back. */
    pthread_mutex_lock(&lock);
    size_t bytes = give(&device, at);
    if (!bytes) REFUSE(INVALID_VALUE, "free of %llx, which is not allocated", at);
    say('R', "%llx %zu", at, bytes - 1);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuMemFreeAsync(ptr_t at, void *stream) { return cuMemFree_v2(at); }

int cuMemAllocHost_v2(void **out, size_t bytes) {
    pthread_mutex_lock(&lock);
    *out = take(&pinned, bytes);
    say('P', "%zu", bytes);
    pthread_mutex_unlock(&lock);
    return *out ? SUCCESS : OUT_OF_MEMORY;
}

int cuMemFreeHost(void *at) {
    pthread_mutex_lock(&lock);
    size_t bytes = give(&pinned, (ptr_t)at);
    if (!bytes) REFUSE(INVALID_VALUE, "free of %p, which is not pinned", at);
    say('Q', "%zu", bytes - 1);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* ---- what is kept back ---- */

struct copy { void *to, *from; size_t bytes; struct copy *next; };
static struct copy *copies, **last_copy = &copies;

static void copy_later(void *to, const void *from, size_t bytes) {
    struct copy *copy = malloc(sizeof *copy);
    *copy = (struct copy){to, memcpy(malloc(bytes), from, bytes), bytes, NULL};
    *last_copy = copy;
    last_copy = &copy->next;
}

static void copy_now(void) {
    for (struct copy *copy; (copy = copies); free(copy)) {
        memcpy(copy->to, copy->from, copy->bytes);
        free(copy->from);
        if (!(copies = copy->next)) last_copy = &copies;
    }
}

struct later { void (*run)(void *); void *argument; struct later *next; };
static struct later *operations, **last_operation = &operations;
static uint enqueued, finished;

/* For libraries: an operation that a stream is given. */
void null_cuda_enqueue(void (*run)(void *), void *argument) {
    pthread_mutex_lock(&lock);
    struct later *later = malloc(sizeof *later);
    *later = (struct later){run, argument, NULL};
    *last_operation = later;
    last_operation = &later->next;
    enqueued++;
    pthread_mutex_unlock(&lock);
}

static void operate_until(uint mark) {
    for (struct later *later; finished < mark && (later = operations); finished++, free(later)) {
        if (!(operations = later->next)) last_operation = &operations;
        later->run(later->argument);
    }
}

/* ---- copies ---- */

struct memcpy_2d { size_t sx, sy; uint stype; const void *shost; ptr_t sdevice; void *sarray; size_t spitch;
                   size_t dx, dy; uint dtype; void *dhost; ptr_t ddevice; void *darray; size_t dpitch; size_t width, height; };

static void give_small(char *to, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) to[i] = i % 4 ? 0 : i / 4 % 61;
}

static int copy(int to_device, ptr_t at, size_t pitch, char *host, size_t host_pitch, size_t width, size_t height) {
    size_t bytes = width * height, span = height ? pitch * (height - 1) + width : 0;
    pthread_mutex_lock(&lock);
    if (height > 1 && (pitch < width || host_pitch < width)) REFUSE(INVALID_VALUE, "copy with a pitch below its width");
    if (bytes && !holds(&device, at, span)) REFUSE(ILLEGAL_ADDRESS, "copy of %zu at %llx, outside of device memory", span, at);
    say(to_device ? 'H' : 'D', "%llx %zu", at, bytes);
    if (to_device) count.to_device++, count.to_device_bytes += bytes;
    else count.to_host++, count.to_host_bytes += bytes;
    int skip = bytes > keep && !late;
    count.skipped += skip;
    if (!to_device) copy_now();
    for (size_t row = 0; row < height && !skip; row++) {
        char *there = (char *)at + row * pitch, *here = host + row * host_pitch;
        if (to_device && late) copy_later(there, here, width);
        else if (to_device) memcpy(there, here, width);
        else if (small) give_small(here, width);
        else memcpy(here, there, width);
    }
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

int cuMemcpyHtoDAsync_v2(ptr_t at, const void *host, size_t bytes, void *stream) { return copy(1, at, bytes, (char *)host, bytes, bytes, 1); }
int cuMemcpyDtoHAsync_v2(void *host, ptr_t at, size_t bytes, void *stream) { return copy(0, at, bytes, host, bytes, bytes, 1); }

int cuMemcpy2DAsync_v2(const struct memcpy_2d *c, void *stream) {
    if (c->stype == 1 && c->dtype == 2)
        return copy(1, c->ddevice + c->dy * c->dpitch + c->dx, c->dpitch,
                    (char *)c->shost + c->sy * c->spitch + c->sx, c->spitch, c->width, c->height);
    if (c->stype == 2 && c->dtype == 1)
        return copy(0, c->sdevice + c->sy * c->spitch + c->sx, c->spitch,
                    (char *)c->dhost + c->dy * c->dpitch + c->dx, c->dpitch, c->width, c->height);
    fprintf(stderr, "nullcuda has no cuMemcpy2DAsync from memory of type %u to %u\n", c->stype, c->dtype);
    abort();
}

/* ---- device, context, streams, events ---- */

static void summary(void) {
    if (!trace) return;
    pthread_mutex_lock(&lock);
    fprintf(trace, "# device memory: %zu bytes at most, %zu at the end, %zu allocations of %zu bytes available\n", device.most, device.now, device.calls, memory);
    fprintf(trace, "# pinned memory: %zu bytes at most, %zu at the end, %zu allocations\n", pinned.most, pinned.now, pinned.calls);
    fprintf(trace, "# %lu modules, %lu launches, %lu waits, %lu refused\n", count.modules, count.launches, count.waits, count.refused);
    fprintf(trace, "# %lu copies of %lu bytes to the device, %lu of %lu to the host, %lu of all not done\n",
            count.to_device, count.to_device_bytes, count.to_host, count.to_host_bytes, count.skipped);
    fclose(trace);
    trace = NULL;
    pthread_mutex_unlock(&lock);
}

int cuInit(uint flags) {
    pthread_mutex_lock(&lock);
    static int done;
    if (!done++) {
        clock_gettime(CLOCK_MONOTONIC, &begun);
        memory = size_of("NULLCUDA_MEMORY", memory);
        keep = size_of("NULLCUDA_KEEP", keep);
        small = getenv("NULLCUDA_SMALL") != NULL;
        late = getenv("NULLCUDA_LATE") != NULL;
        taken = size_of("NULLCUDA_TAKEN", 0);
        cards = size_of("NULLCUDA_CARDS", 1);
        version = size_of("NULLCUDA_VERSION", 13000);
        const char *path = getenv("NULLCUDA_TRACE");
        if (path && *path && (trace = fopen(path, "w"))) atexit(summary);
    }
    pthread_mutex_unlock(&lock);
    return cards ? SUCCESS : NO_DEVICE;
}

/* Asked for by NVRTC, which does without. */
int cuGetExportTable(const void **out, const void *id) { *out = NULL; return NOT_FOUND; }

int cuDriverGetVersion(int *out) { *out = version; return SUCCESS; }
int cuDeviceGetCount(int *out) { *out = cards; return SUCCESS; }
int cuDeviceGet(int *out, int index) { *out = index; return index < 0 || index >= cards ? INVALID_DEVICE : SUCCESS; }
int cuDeviceGetUuid_v2(char *out, int index) { memset(out, 0, 16); out[15] = index; return SUCCESS; }
int cuDeviceGetName(char *out, int bytes, int index) { snprintf(out, bytes, "null card"); return SUCCESS; }
int cuDeviceTotalMem_v2(size_t *out, int index) { *out = memory; return SUCCESS; }

int cuDeviceGetAttribute(int *out, int attribute, int index) {
    static const int known[][2] = {
        {1, 1024}, {2, 1024}, {3, 1024}, {4, 64},        /* threads of a block, its x, y, z */
        {5, 2147483647}, {6, 65535}, {7, 65535},         /* x, y, z of a grid */
        {8, 49152}, {97, MAX_SHARED}, {81, 233472},      /* shared memory: block, opt-in, multiprocessor */
        {10, 32}, {12, 65536}, {82, 65536}, {16, 132},   /* warp, registers, multiprocessors */
        {75, 9}, {76, 0}, {115, 1},                      /* compute capability 9.0, memory pools */
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i][0] == attribute) { *out = known[i][1]; return SUCCESS; }
    fprintf(stderr, "nullcuda has no device attribute %d\n", attribute);
    abort();
}

static char a_context;
int cuDevicePrimaryCtxRetain(void **out, int index) { *out = &a_context; return SUCCESS; }
int cuDevicePrimaryCtxRelease_v2(int index) { return SUCCESS; }
int cuCtxSetCurrent(void *context) { return SUCCESS; }
int cuMemGetInfo_v2(size_t *left, size_t *all) {
    *all = memory;
    *left = memory - (taken < memory ? taken : memory);
    *left -= device.now < *left ? device.now : *left;
    return SUCCESS;
}

struct stream { struct stream *next; };
static struct stream *streams;

int cuStreamCreate(void **out, uint flags) {
    pthread_mutex_lock(&lock);
    struct stream *stream = malloc(sizeof *stream);
    stream->next = streams;
    *out = streams = stream;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* For libraries: whether a stream was made here, whether bytes are device memory, and a line of the
 * trace, which is a refusal of theirs or not. */
int null_cuda_has_stream(void *stream) {
    pthread_mutex_lock(&lock);
    struct stream *at = streams;
    while (at && at != stream) at = at->next;
    pthread_mutex_unlock(&lock);
    return at != NULL;
}

int null_cuda_holds(ptr_t at, size_t bytes) {
    pthread_mutex_lock(&lock);
    int held = holds(&device, at, bytes);
    pthread_mutex_unlock(&lock);
    return held;
}

void null_cuda_note(char kind, int refused, const char *text) {
    pthread_mutex_lock(&lock);
    if (refused) {
        count.refused++;
        fprintf(stderr, "nullcuda refuses: %s\n", text);
    }
    say(kind, "%s", text);
    pthread_mutex_unlock(&lock);
}

struct event { uint mark, asked; };
int cuStreamQuery(void *stream) { return SUCCESS; }
int cuEventCreate(struct event **out, uint flags) { *out = calloc(1, sizeof **out); return SUCCESS; }
int cuEventDestroy_v2(struct event *event) { free(event); return SUCCESS; }

int cuEventRecord(struct event *event, void *stream) {
    pthread_mutex_lock(&lock);
    event->mark = enqueued;
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* CubeCL waits for its own stream, where copies are. */
int cuEventSynchronize(struct event *event) {
    pthread_mutex_lock(&lock);
    copy_now();
    count.waits++;
    say('S', "");
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuStreamSynchronize(void *stream) { return cuEventSynchronize(NULL); }

int cuEventQuery(struct event *event) {
    pthread_mutex_lock(&lock);
#ifdef BEFORE_12_5
    if (event->asked++ > 1) operate_until(event->mark);
#endif
    int past = finished >= event->mark;
    pthread_mutex_unlock(&lock);
    return past ? SUCCESS : NOT_READY;
}

#ifdef BEFORE_12_5
int cuStreamWaitEvent(void *stream, struct event *event, uint flags) { return SUCCESS; }
#else
static struct event *of_context;

int cuCtxRecordEvent(void *context, struct event *event) { of_context = event; return SUCCESS; }
int cuStreamWaitEvent(void *stream, struct event *event, uint flags) {
    pthread_mutex_lock(&lock);
    if (event == of_context) copy_now();
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int cuCtxWaitEvent(void *context, struct event *event) {
    pthread_mutex_lock(&lock);
    operate_until(event->mark);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
#endif

int cuGetErrorName(int code, const char **out) {
    *out = code == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : code == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
         : code == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE" : code == INVALID_DEVICE ? "CUDA_ERROR_INVALID_DEVICE" : code == INVALID_IMAGE ? "CUDA_ERROR_INVALID_IMAGE"
         : code == NOT_FOUND ? "CUDA_ERROR_NOT_FOUND" : code == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS"
         : code == OUT_OF_RESOURCES ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" : "CUDA_ERROR_UNKNOWN";
    return SUCCESS;
}
int cuGetErrorString(int code, const char **out) { return cuGetErrorName(code, out); }

/* ---- modules and kernels ---- */

struct module { char *ptx; uint64_t hash; };
enum { MOST_PARAMETERS = 4096 };
struct function { int id, parameters, shared; uint32_t sizes[MOST_PARAMETERS]; };

int cuModuleLoadData(void **out, const void *image) {
    const char *text = image;
    if (!strstr(text, ".version")) return INVALID_IMAGE;
    struct module *module = malloc(sizeof *module);
    module->ptx = strdup(text);
    module->hash = 14695981039346656037ull;
    for (const unsigned char *at = image; *at; at++) module->hash = (module->hash ^ *at) * 1099511628211ull;
    *out = module;
    __sync_fetch_and_add(&count.modules, 1);
    return SUCCESS;
}

/* Bytes of one `.param` declaration: `.u64 …`, `.b8 name[24]`. */
static size_t parameter_bytes(const char *from, const char *to) {
    size_t bytes = 0, many = 1;
    for (const char *at = from; at < to; at++) {
        if (*at == '[') many = strtoul(at + 1, NULL, 10);
        if (*at == '.' && at[1] && strchr("busf", at[1]) && at[2] >= '1' && at[2] <= '9') bytes = strtoul(at + 2, NULL, 10) / 8;
    }
    return bytes * many;
}

int cuModuleGetFunction(void **out, struct module *module, const char *name) {
    char entry[512];
    snprintf(entry, sizeof entry, ".entry %s(", name);
    const char *at = strstr(module->ptx, entry);
    if (!at) return NOT_FOUND;
    struct function *function = calloc(1, sizeof *function);
    const char *end = strchr(at, ')');
    for (at += strlen(entry); (at = strstr(at, ".param")) && at < end; function->parameters++) {
        const char *to = strchr(at, ',');
        if (!to || to > end) to = end;
        if (function->parameters == MOST_PARAMETERS) { fprintf(stderr, "nullcuda: too many parameters of %s\n", name); abort(); }
        function->sizes[function->parameters] = parameter_bytes(at + 6, to);
        at = to;
    }
    pthread_mutex_lock(&lock);
    size_t bytes = 0;
    for (int i = 0; i < function->parameters; i++) bytes += function->sizes[i];
    if (bytes > 32764) REFUSE(INVALID_IMAGE, "%s has %zu bytes of parameters", name, bytes);
    static int last;
    function->id = ++last;
    if (trace) {
        fprintf(trace, "F %ld %d %016lx %s", nanoseconds() / 1000, function->id, module->hash, name);
        for (int i = 0; i < function->parameters; i++) fprintf(trace, " %u", function->sizes[i]);
        fputc('\n', trace);
    }
    pthread_mutex_unlock(&lock);
    *out = function;
    return SUCCESS;
}

int cuFuncSetAttribute(struct function *function, int attribute, int value) {
    if (attribute != 8) { fprintf(stderr, "nullcuda has no function attribute %d\n", attribute); abort(); }
    if (value <= MAX_SHARED) { function->shared = value; return SUCCESS; }
    pthread_mutex_lock(&lock);
    REFUSE(INVALID_VALUE, "%d bytes of shared memory", value);
}

int cuLaunchKernel(struct function *f, uint gx, uint gy, uint gz, uint bx, uint by, uint bz, uint shared, void *stream,
                   void **parameters, void **extra) {
    pthread_mutex_lock(&lock);
    if (!gx || !gy || !gz || gx > 2147483647u || gy > 65535 || gz > 65535) REFUSE(INVALID_VALUE, "function %d: grid of %u,%u,%u", f->id, gx, gy, gz);
    if (!bx || !by || !bz || bx > 1024 || by > 1024 || bz > 64 || bx * by * bz > 1024) REFUSE(INVALID_VALUE, "function %d: block of %u,%u,%u", f->id, bx, by, bz);
    if (shared > MAX_SHARED || (shared > 49152 && (int)shared > f->shared)) REFUSE(OUT_OF_RESOURCES, "function %d: %u bytes of shared memory", f->id, shared);
    count.launches++;
    if (trace) fprintf(trace, "K %ld %d %u,%u,%u %u,%u,%u %u", nanoseconds() / 1000, f->id, gx, gy, gz, bx, by, bz, shared);
    for (int i = 0; i < f->parameters; i++) {
        if (f->sizes[i] == 8 && holds(&device, *(ptr_t *)parameters[i], 1)) {
            if (trace) fprintf(trace, " %llx", *(ptr_t *)parameters[i]);
        } else if (trace) {
            fputs(" [", trace);
            for (size_t b = 0; b < f->sizes[i]; b++) fprintf(trace, "%02x", ((unsigned char *)parameters[i])[b]);
            fputc(']', trace);
        }
    }
    if (trace) fputc('\n', trace);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}

/* What the driver's documentation asks of a tiled tensor map. */
int cuTensorMapEncodeTiled(uint64_t *map, uint type, uint rank, void *at, const uint64_t *dims, const uint64_t *strides,
                           const uint32_t *box, const uint32_t *steps, uint interleave, uint swizzle, uint promotion, uint fill) {
    static const int bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    pthread_mutex_lock(&lock);
    if (type >= sizeof bytes / sizeof *bytes || rank < 1 || rank > 5) REFUSE(INVALID_VALUE, "tensor map: type %u, rank %u", type, rank);
    if ((uintptr_t)map % 64 || (uintptr_t)at % 16) REFUSE(INVALID_VALUE, "tensor map: address %p or its own %p not aligned", at, (void *)map);
    if (!holds(&device, (ptr_t)at, 1)) REFUSE(INVALID_VALUE, "tensor map: %p is not device memory", at);
    for (uint i = 0; i < rank; i++) {
        if (!dims[i] || dims[i] > 1ull << 32) REFUSE(INVALID_VALUE, "tensor map: dimension %u is %lu", i, dims[i]);
        if (!box[i] || box[i] > 256) REFUSE(INVALID_VALUE, "tensor map: box %u is %u", i, box[i]);
        if (!steps[i] || steps[i] > 8) REFUSE(INVALID_VALUE, "tensor map: step %u is %u", i, steps[i]);
        if (i + 1 < rank && (strides[i] % 16 || strides[i] >= 1ull << 40)) REFUSE(INVALID_VALUE, "tensor map: stride %u is %lu", i, strides[i]);
    }
    uint inner = box[0] * bytes[type];
    if (!interleave && (inner % 16 || (swizzle && inner > 16u << swizzle)))
        REFUSE(INVALID_VALUE, "tensor map: box of %u bytes, swizzle %u", inner, swizzle);
    if (trace) {
        fprintf(trace, "T %ld %llx %u %u", nanoseconds() / 1000, (ptr_t)at, type, rank);
        for (uint i = 0; i < rank; i++) fprintf(trace, " %lu", dims[i]);
        for (uint i = 0; i < rank; i++) fprintf(trace, " %u", box[i]);
        fputc('\n', trace);
    }
    memset(map, 0, 128);
    map[0] = (uint64_t)at;
    for (uint i = 0; i < rank; i++) map[1 + i] = dims[i];
    map[15] = bytes[type];
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
