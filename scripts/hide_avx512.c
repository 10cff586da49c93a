// Makes Rust programs take the code paths of a processor without AVX-512, at full speed:
//
//   cc -O2 -shared -fPIC -o hide_avx512.so scripts/hide_avx512.c
//   LD_PRELOAD=$PWD/hide_avx512.so cargo test --workspace --lib --bins --tests
//
// Kernels are chosen by `is_x86_feature_detected!`, whose answers std keeps in a static. Before main
// this finds that static in the program's symbol table, has it filled, and clears the bit of
// avx512f. Where the bit lies is the toolchain's affair, so check it (as .ci/run does): a program that prints
// `is_x86_feature_detected!("avx512f")` must print false. Not for rustdoc and rustc themselves. A program without its symbol table
// is left as it is; one that has it, but not these two symbols, ends with code 99.
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int base_of(struct dl_phdr_info *info, size_t size, void *out) {
    *(uintptr_t *)out = info->dlpi_addr;
    return 1; // the first is the program itself
}

__attribute__((constructor)) static void hide(void) {
    int fd = open("/proc/self/exe", O_RDONLY);
    struct stat st;
    if (fd < 0 || fstat(fd, &st) || st.st_size < (off_t)sizeof(Elf64_Ehdr)) return;
    char *file = mmap(NULL, st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (file == MAP_FAILED) return;
    Elf64_Ehdr *head = (Elf64_Ehdr *)file;
    uintptr_t base = 0, cache = 0, init = 0;
    int detects = 0;
    dl_iterate_phdr(base_of, &base);
    Elf64_Shdr *sections = (Elf64_Shdr *)(file + head->e_shoff);
    for (int i = 0; head->e_shoff && i < head->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        Elf64_Sym *symbols = (Elf64_Sym *)(file + sections[i].sh_offset);
        char *names = file + sections[sections[i].sh_link].sh_offset;
        for (size_t n = 0; n < sections[i].sh_size / sizeof *symbols; n++) {
            char *name = names + symbols[n].st_name;
            if (!strstr(name, "std_detect")) continue;
            detects = 1;
            if (strstr(name, "5cache5CACHE")) cache = base + symbols[n].st_value;
            if (strstr(name, "21detect_and_initialize")) init = base + symbols[n].st_value;
        }
    }
    munmap(file, st.st_size);
    if (detects && (!cache || !init)) {
        fprintf(stderr, "hide_avx512: std keeps its answers elsewhere in this program\n");
        _exit(99);
    }
    if (!detects) return;
    ((void (*)(void))init)();
    *(uint64_t *)cache &= ~(1ull << 19); // of rustc 1.95
}
