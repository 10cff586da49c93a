/* libcublasLt.so.13 without a card, for null_cuda.c, whose memory is the host's: the calls that
 * src/cublaslt makes. It refuses what a card's library would refuse (and null_cuda.c's trace has it):
 * shapes that do not fit, leading dimensions below the columns' length, formats that do not go
 * together, addresses outside of device memory or less aligned than was promised, results that
 * overlap factors, a routine for another kind of product, too small a workspace, a stream that is none.
 * A product is in its stream, and carried out when something waits for it, as late as a card may.
 *
 * Environment:
 *   FAKE_CUBLASLT_CHECKS  if set, products are checked and not computed: large ones take no time
 *   FAKE_CUBLASLT_FAILS   create, choose or call: that call gives an error; later: the hundredth product
 * Trace of null_cuda.c: M us m n k inputs output, a product of m x k and k x n, formats as in
 * cudaDataType. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum { F32 = 0, BF16 = 14, COMPUTE_32F = 68 };
enum { MAGIC = 0x5157, WORKSPACE_ALIGNMENT = 256 };

struct operation { int turn[2]; };
struct layout { int type; uint64_t rows, columns; int64_t leading; };
struct preference { uint64_t workspace; uint32_t alignments[4]; };
/* The routine for a kind of product; 64 bytes. */
struct routine { uint32_t magic, alignments[3]; uint64_t kind, workspace, unused[4]; };
struct heuristic { struct routine routine; size_t workspace; int state; float waves; int reserved[4]; };
_Static_assert(sizeof(struct routine) == 64 && sizeof(struct heuristic) == 96, "as in cublasLt.h");

static int (*holds)(unsigned long long, size_t), (*has_stream)(void *);
static void (*note)(char, int, const char *), (*enqueue)(void (*)(void *), void *);

static int fails(const char *how) { const char *wish = getenv("FAKE_CUBLASLT_FAILS"); return wish && !strcmp(wish, how); }

#define REFUSE(code, ...) do { char text[256]; snprintf(text, sizeof text, "cublasLt: " __VA_ARGS__); note('E', 1, text); return code; } while (0)

size_t cublasLtGetVersion(void) { return 130100; }

const char *cublasLtGetStatusName(int status) {
    return status == NOT_INITIALIZED ? "CUBLAS_STATUS_NOT_INITIALIZED" : status == INVALID_VALUE ? "CUBLAS_STATUS_INVALID_VALUE"
         : status == EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED" : status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_UNKNOWN";
}

static char a_handle;
int cublasLtCreate(void **out) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!driver || fails("create")) return NOT_INITIALIZED;
    holds = dlsym(driver, "null_cuda_holds");
    has_stream = dlsym(driver, "null_cuda_has_stream");
    note = dlsym(driver, "null_cuda_note");
    enqueue = dlsym(driver, "null_cuda_enqueue");
    *out = &a_handle;
    return holds && has_stream && note && enqueue ? SUCCESS : NOT_INITIALIZED;
}

int cublasLtMatmulDescCreate(struct operation **out, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != F32) REFUSE(INVALID_VALUE, "compute type %d, scale type %d", compute, scale);
    *out = calloc(1, sizeof **out);
    return SUCCESS;
}

int cublasLtMatmulDescSetAttribute(struct operation *operation, int attribute, const int *value, size_t bytes) {
    if ((attribute != 3 && attribute != 4) || bytes != 4 || (*value != 0 && *value != 1)) REFUSE(INVALID_VALUE, "attribute %d of %zu bytes of a product", attribute, bytes);
    operation->turn[attribute - 3] = *value;
    return SUCCESS;
}

int cublasLtMatrixLayoutCreate(struct layout **out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    if ((type != F32 && type != BF16) || !rows || !columns || leading < (int64_t)rows)
        REFUSE(INVALID_VALUE, "layout of type %d, %lu x %lu, leading dimension %ld", type, rows, columns, leading);
    *out = malloc(sizeof **out);
    **out = (struct layout){type, rows, columns, leading};
    return SUCCESS;
}

int cublasLtMatmulPreferenceCreate(struct preference **out) {
    *out = malloc(sizeof **out);
    **out = (struct preference){0, {256, 256, 256, 256}};
    return SUCCESS;
}

int cublasLtMatmulPreferenceSetAttribute(struct preference *preference, int attribute, const void *value, size_t bytes) {
    if (attribute == 1 && bytes == 8) preference->workspace = *(uint64_t *)value;
    else if (attribute >= 5 && attribute <= 8 && bytes == 4) preference->alignments[attribute - 5] = *(uint32_t *)value;
    else REFUSE(INVALID_VALUE, "attribute %d of %zu bytes of a preference", attribute, bytes);
    return SUCCESS;
}

int cublasLtMatmulDescDestroy(void *it) { free(it); return SUCCESS; }
int cublasLtMatrixLayoutDestroy(void *it) { free(it); return SUCCESS; }
int cublasLtMatmulPreferenceDestroy(void *it) { free(it); return SUCCESS; }

static size_t size_of(int type) { return type == F32 ? 4 : 2; }

/* Bytes from the first element to behind the last. */
static size_t span(const struct layout *it) { return ((it->columns - 1) * it->leading + it->rows) * size_of(it->type); }

static uint64_t rows_of(const struct layout *it, int turn) { return turn ? it->columns : it->rows; }
static uint64_t columns_of(const struct layout *it, int turn) { return turn ? it->rows : it->columns; }

static int check(const struct operation *op, const struct layout *a, const struct layout *b, const struct layout *c, const struct layout *d) {
    uint64_t m = rows_of(a, op->turn[0]), k = columns_of(a, op->turn[0]), n = columns_of(b, op->turn[1]);
    if (rows_of(b, op->turn[1]) != k || d->rows != m || d->columns != n || c->rows != m || c->columns != n)
        REFUSE(INVALID_VALUE, "%lu x %lu times %lu x %lu is not %lu x %lu", m, k, rows_of(b, op->turn[1]), n, d->rows, d->columns);
    if (a->type != b->type || c->type != d->type || (d->type != F32 && d->type != a->type))
        REFUSE(NOT_SUPPORTED, "types %d and %d in %d and %d", a->type, b->type, c->type, d->type);
    return SUCCESS;
}

static uint64_t kind_of(const struct operation *op, const struct layout *a, const struct layout *b, const struct layout *d) {
    uint64_t words[] = {op->turn[0], op->turn[1], a->type, a->rows, a->columns, a->leading, b->rows, b->columns, b->leading, d->type, d->leading};
    uint64_t hash = 14695981039346656037ull;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) hash = (hash ^ words[i]) * 1099511628211ull;
    return hash;
}

int cublasLtMatmulAlgoGetHeuristic(void *handle, const struct operation *op, const struct layout *a, const struct layout *b, const struct layout *c,
                                   const struct layout *d, const struct preference *wish, int asked, struct heuristic *out, int *found) {
    *found = 0;
    if (handle != &a_handle || asked < 1) REFUSE(INVALID_VALUE, "heuristic without a handle, or for no result");
    if (fails("choose")) return NOT_SUPPORTED;
    int status = check(op, a, b, c, d);
    if (status) return status;
    const struct layout *all[] = {a, b, d};
    for (int i = 0; i < 3; i++) {
        uint32_t alignment = wish->alignments[i + (i == 2)];
        if (!alignment || alignment & (alignment - 1) || alignment < size_of(all[i]->type)) REFUSE(INVALID_VALUE, "alignment %u", alignment);
    }
    if (wish->alignments[2] != wish->alignments[3]) REFUSE(INVALID_VALUE, "two alignments of one result");
    *found = 1;
    uint64_t workspace = wish->workspace < 1 << 20 ? 0 : 1 << 20;
    *out = (struct heuristic){.routine = {MAGIC, {wish->alignments[0], wish->alignments[1], wish->alignments[3]}, kind_of(op, a, b, d), workspace},
                              .workspace = workspace, .state = SUCCESS, .waves = 1};
    return SUCCESS;
}

struct product { struct operation op; struct layout a, b, d; const void *of_a, *of_b; void *of_d; float alpha, beta; };

static float element(const struct layout *it, const void *at, int turn, uint64_t row, uint64_t column) {
    size_t place = turn ? row * it->leading + column : column * it->leading + row;
    if (it->type == F32) return ((const float *)at)[place];
    union { uint32_t bits; float value; } wide = {(uint32_t)((const uint16_t *)at)[place] << 16};
    return wide.value;
}

static void store(const struct layout *it, void *at, uint64_t row, uint64_t column, float value) {
    size_t place = column * it->leading + row;
    if (it->type == F32) {
        ((float *)at)[place] = value;
        return;
    }
    union { float value; uint32_t bits; } wide = {value};
    /* To the nearest, ties to even. */
    ((uint16_t *)at)[place] = isnan(value) ? 0x7fc0 : (wide.bits + 0x7fff + (wide.bits >> 16 & 1)) >> 16;
}

static void run(void *argument) {
    struct product *it = argument;
    uint64_t k = columns_of(&it->a, it->op.turn[0]);
    for (uint64_t column = 0; column < it->d.columns; column++)
        for (uint64_t row = 0; row < it->d.rows; row++) {
            float sum = 0;
            for (uint64_t i = 0; i < k; i++)
                sum += element(&it->a, it->of_a, it->op.turn[0], row, i) * element(&it->b, it->of_b, it->op.turn[1], i, column);
            sum *= it->alpha;
            if (it->beta) sum += it->beta * element(&it->d, it->of_d, 0, row, column);
            store(&it->d, it->of_d, row, column, sum);
        }
    free(it);
}

int cublasLtMatmul(void *handle, const struct operation *op, const float *alpha, const void *of_a, const struct layout *a, const void *of_b, const struct layout *b,
                   const float *beta, const void *of_c, const struct layout *c, void *of_d, const struct layout *d, const struct routine *routine,
                   void *workspace, size_t bytes, void *stream) {
    if (handle != &a_handle) REFUSE(INVALID_VALUE, "product without a handle");
    static int calls;
    if (fails("call") || (++calls == 100 && fails("later"))) return EXECUTION_FAILED;
    int status = check(op, a, b, c, d);
    if (status) return status;
    if (routine->magic != MAGIC || routine->kind != kind_of(op, a, b, d)) REFUSE(INVALID_VALUE, "a routine of another kind of product");
    if (bytes < routine->workspace || (bytes && (!holds((uintptr_t)workspace, bytes) || (uintptr_t)workspace % WORKSPACE_ALIGNMENT)))
        REFUSE(INVALID_VALUE, "workspace of %zu bytes at %p for %lu", bytes, workspace, routine->workspace);
    if (!has_stream(stream)) REFUSE(INVALID_VALUE, "%p is no stream", stream);
    if (of_c != of_d) REFUSE(NOT_SUPPORTED, "a result at another place than what is added to it");
    const struct { const struct layout *layout; const void *at; } all[] = {{a, of_a}, {b, of_b}, {d, of_d}};
    for (int i = 0; i < 3; i++) {
        uintptr_t at = (uintptr_t)all[i].at;
        size_t length = span(all[i].layout);
        if (!holds(at, length)) REFUSE(INVALID_VALUE, "%zu bytes at %lx are not device memory", length, at);
        if (at % routine->alignments[i]) REFUSE(INVALID_VALUE, "%lx is no multiple of %u", at, routine->alignments[i]);
        if (i < 2 && at < (uintptr_t)of_d + span(d) && (uintptr_t)of_d < at + length) REFUSE(INVALID_VALUE, "the result overlaps a factor");
    }
    char text[96];
    snprintf(text, sizeof text, "%lu %lu %lu %d %d", d->rows, d->columns, columns_of(a, op->turn[0]), a->type, d->type);
    note('M', 0, text);
    if (getenv("FAKE_CUBLASLT_CHECKS")) return SUCCESS;
    struct product *it = malloc(sizeof *it);
    *it = (struct product){*op, *a, *b, *d, of_a, of_b, of_d, *alpha, *beta};
    enqueue(run, it);
    return SUCCESS;
}
