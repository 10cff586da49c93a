/* libnvrtc.so in front of the real one (libnvrtc.so.13), found first by cudarc; for tests.
 *
 * Passes every call on. Keeps each kernel's CUDA source, the time of its compilation and, where it
 * failed, NVRTC's log: CubeCL's autotune drops a candidate that does not compile without a word.
 *
 * Environment:
 *   TRACENVRTC_DIR   a folder: calls (one line a compilation asked for: FNV-1a of its source), HASH.cu
 *                    per kernel (HASH: FNV-1a of its PTX, as in null_cuda.c's trace) with ptxas -v's
 *                    report behind it (registers, spills), HASH.ptx, failed-N.cu with the log, and
 *                    compiled.tsv (hash, milliseconds, bytes of PTX, kernel); PTX found there is not
 *                    compiled again
 *   TRACENVRTC_REAL  the real library (default libnvrtc.so.13)
 *   TRACENVRTC_STUB  if set, nothing is compiled: the PTX is an entry with the right parameters and no
 *                    body. Autotune's hundreds of candidates then cost nothing; for null_cuda.c only.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

struct program { void *real; char *source, *ptx; };

static void *real(const char *name) {
    static void *library;
    if (!library) {
        const char *path = getenv("TRACENVRTC_REAL");
        library = dlopen(path ? path : "libnvrtc.so.13", RTLD_NOW | RTLD_LOCAL);
        if (!library) { fprintf(stderr, "tracenvrtc: %s\n", dlerror()); abort(); }
    }
    return dlsym(library, name);
}
#define REAL(parameters, name, ...) ((int (*) parameters)real(name))(__VA_ARGS__)

static uint64_t hash(const char *text) {
    uint64_t value = 14695981039346656037ull;
    for (const unsigned char *at = (const void *)text; *at; at++) value = (value ^ *at) * 1099511628211ull;
    return value;
}

/* The same for the same lines in any order: CubeCL writes a kernel's types in another one each time. */
static uint64_t hash_of_lines(const char *text) {
    uint64_t sum = 0;
    for (const char *end; *text; text = *end ? end + 1 : end) {
        end = strchrnul(text, '\n');
        char *line = strndup(text, end - text);
        sum += hash(line);
        free(line);
    }
    return sum;
}

static const char *folder(void) {
    const char *path = getenv("TRACENVRTC_DIR");
    if (path) mkdir(path, 0777);
    return path;
}

static void keep(const char *name, const char *suffix, const char *text, const char *more) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.%s", folder(), name, suffix);
    FILE *file = fopen(path, "w");
    if (!file) return;
    fputs(text, file);
    if (more) fprintf(file, "\n/* NVRTC:\n%s\n*/\n", more);
    fclose(file);
}

static char *read_all(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) return NULL;
    fseek(file, 0, SEEK_END);
    long bytes = ftell(file);
    rewind(file);
    char *text = calloc(1, bytes + 1);
    if (fread(text, 1, bytes, file) != (size_t)bytes) { free(text); text = NULL; }
    fclose(file);
    return text;
}

/* Bytes of a CUDA type that CubeCL writes, `name` or `name_LANES`. */
static size_t bytes_of(const char *type) {
    size_t lanes = 1, bytes = 4;
    const char *under = strrchr(type, '_');
    if (under && under[1] >= '1' && under[1] <= '9') lanes = strtoul(under + 1, NULL, 10);
    if (strstr(type, "64") || strstr(type, "double")) bytes = 8;
    else if (strstr(type, "bfloat16") || strstr(type, "half") || strstr(type, "int16")) bytes = 2;
    else if (strstr(type, "int8") || strstr(type, "bool")) bytes = 1;
    return bytes * lanes;
}

/* An entry with the parameters of the source's kernel. */
static char *stub(const char *source) {
    size_t info = 0, align = 1;
    const char *at = strstr(source, "struct info_st {"), *end;
    if (at) {
        end = strchr(at, '}');
        char type[128], name[128];
        unsigned long count;
        for (at += 16; at < end; at = strchr(at, ';') + 1) {
            if (sscanf(at, " %127s %127[a-z0-9A-Z_][%lu]", type, name, &count) != 3) break;
            size_t bytes = bytes_of(type);
            info = (info + bytes - 1) / bytes * bytes + bytes * count;
            if (bytes > align) align = bytes;
        }
        info = (info + align - 1) / align * align;
    }
    at = strstr(source, "extern \"C\" __global__");
    if (!at || !(end = strchr(at, '{')) || !(at = strstr(at, " (\n"))) return NULL;
    const char *name = at;
    while (name > source && (name[-1] == '_' || (name[-1] | 32) >= 'a' || (name[-1] >= '0' && name[-1] <= '9'))) name--;
    char *out = calloc(1, 1 << 18), *to = out;
    to += sprintf(to, "// stub %016lx\n.version 9.0\n.target sm_90a\n.visible .entry %.*s(\n", hash_of_lines(source), (int)(at - name), name);
    for (int n = 0; at && at < end; at = strchr(at + 1, ','), n++) {
        const char *stop = strchr(at + 1, ',');
        if (!stop || stop > end) stop = end;
        if (n) *to++ = ',';
        char *piece = strndup(at, stop - at);
        if (strstr(piece, "CUtensorMap")) to += sprintf(to, "\t.param .align 64 .b8 p%d[128]\n", n);
        else if (strstr(piece, "info_st")) to += sprintf(to, "\t.param .align 8 .b8 p%d[%zu]\n", n, info);
        else to += sprintf(to, "\t.param .u64 p%d\n", n);
        free(piece);
    }
    strcpy(to, ")\n{\n\tret;\n}\n");
    return out;
}

int nvrtcCreateProgram(struct program **out, const char *source, const char *name, int n, const char *const *headers, const char *const *names) {
    struct program *program = calloc(1, sizeof *program);
    program->source = strdup(source);
    *out = program;
    return REAL((void **, const char *, const char *, int, const char *const *, const char *const *), "nvrtcCreateProgram", &program->real, source, name, n, headers, names);
}

int nvrtcCompileProgram(struct program *program, int n, const char *const *options) {
    static int failed;
    char path[4096], name[64];
    if (folder()) {
        snprintf(path, sizeof path, "%s/calls", folder());
        FILE *calls = fopen(path, "a");
        if (calls) { fprintf(calls, "%016lx\n", hash_of_lines(program->source)); fclose(calls); }
        /* Compiled in an earlier run? */
        snprintf(path, sizeof path, "%s/by-source-%016lx", folder(), hash(program->source));
        char *of = read_all(path);
        if (of) {
            snprintf(path, sizeof path, "%s/%s.ptx", folder(), of);
            program->ptx = read_all(path);
            free(of);
            if (program->ptx) return 0;
        }
    }
    if (getenv("TRACENVRTC_STUB") && folder()) {
        program->ptx = stub(program->source);
        if (!program->ptx) { fprintf(stderr, "tracenvrtc: no kernel in\n%s\n", program->source); abort(); }
        snprintf(name, sizeof name, "%016lx", hash(program->ptx));
        keep(name, "cu", program->source, NULL);
        return 0;
    }
    struct timespec from, to;
    clock_gettime(CLOCK_MONOTONIC, &from);
    const char *more[n + 1];
    memcpy(more, options, n * sizeof *more);
    more[n] = "--ptxas-options=-v";
    int code = REAL((void *, int, const char *const *), "nvrtcCompileProgram", program->real, n + !!folder(), more);
    clock_gettime(CLOCK_MONOTONIC, &to);
    if (!folder()) return code;
    size_t bytes = 0;
    REAL((void *, size_t *), "nvrtcGetProgramLogSize", program->real, &bytes);
    char *log = calloc(1, bytes + 1);
    REAL((void *, char *), "nvrtcGetProgramLog", program->real, log);
    if (code) {
        snprintf(name, sizeof name, "failed-%d", ++failed);
        keep(name, "cu", program->source, log);
        fprintf(stderr, "tracenvrtc: compilation failed, see %s/%s.cu\n", folder(), name);
        free(log);
        return code;
    }
    REAL((void *, size_t *), "nvrtcGetPTXSize", program->real, &bytes);
    program->ptx = calloc(1, bytes + 1);
    REAL((void *, char *), "nvrtcGetPTX", program->real, program->ptx);
    snprintf(name, sizeof name, "%016lx", hash(program->ptx));
    keep(name, "cu", program->source, log);
    free(log);
    keep(name, "ptx", program->ptx, NULL);
    char key[64];
    snprintf(key, sizeof key, "by-source-%016lx", hash(program->source));
    snprintf(path, sizeof path, "%s/%s", folder(), key);
    FILE *file = fopen(path, "w");
    if (file) { fputs(name, file); fclose(file); }
    snprintf(path, sizeof path, "%s/compiled.tsv", folder());
    if ((file = fopen(path, "a"))) {
        const char *entry = strstr(program->ptx, ".entry ");
        int length = entry ? (int)strcspn(entry + 7, "(") : 0;
        fprintf(file, "%s\t%.1f\t%zu\t%.*s\n", name, (to.tv_sec - from.tv_sec) * 1e3 + (to.tv_nsec - from.tv_nsec) / 1e6, bytes, length, entry ? entry + 7 : "");
        fclose(file);
    }
    return 0;
}

int nvrtcGetPTXSize(struct program *program, size_t *out) {
    if (!program->ptx) return REAL((void *, size_t *), "nvrtcGetPTXSize", program->real, out);
    *out = strlen(program->ptx) + 1;
    return 0;
}

int nvrtcGetPTX(struct program *program, char *out) {
    if (!program->ptx) return REAL((void *, char *), "nvrtcGetPTX", program->real, out);
    strcpy(out, program->ptx);
    return 0;
}

int nvrtcGetProgramLogSize(struct program *program, size_t *out) { return REAL((void *, size_t *), "nvrtcGetProgramLogSize", program->real, out); }
int nvrtcGetProgramLog(struct program *program, char *out) { return REAL((void *, char *), "nvrtcGetProgramLog", program->real, out); }
int nvrtcDestroyProgram(struct program **program) {
    int code = REAL((void **), "nvrtcDestroyProgram", &(*program)->real);
    free((*program)->source);
    free((*program)->ptx);
    free(*program);
    *program = NULL;
    return code;
}

int nvrtcVersion(int *major, int *minor) { return REAL((int *, int *), "nvrtcVersion", major, minor); }
