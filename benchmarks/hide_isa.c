/* Hides vector extensions from a process: every CPUID instruction traps, and is answered without them.
 *
 *     cc -shared -fPIC -O2 -o hide_isa.so hide_isa.c
 *     LD_PRELOAD=./hide_isa.so HIDE_ISA=avx512 python ...      # avx512: AVX-512 and AMX; amx: AMX alone
 *
 * x86-64 Linux on a CPU that can fault on CPUID (cpuid_fault in /proc/cpuinfo). What is hidden still runs if code uses
 * it unasked; libraries that choose kernels by CPUID choose those of an older CPU.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef ARCH_SET_CPUID
#define ARCH_SET_CPUID 0x1012
#endif

static int hide_avx512;
static struct sigaction before;

static long arch_prctl_(int code, unsigned long value) { return syscall(SYS_arch_prctl, code, value); }

static void answer(greg_t *registers) {
    uint32_t leaf = (uint32_t)registers[REG_RAX], part = (uint32_t)registers[REG_RCX], a, b, c, d;
    arch_prctl_(ARCH_SET_CPUID, 1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(part));
    arch_prctl_(ARCH_SET_CPUID, 0);
    if (leaf == 7 && part == 0) {
        d &= ~((1u << 22) | (1u << 24) | (1u << 25)); /* amx_bf16, amx_tile, amx_int8 */
        if (hide_avx512) {
            b &= ~((1u << 16) | (1u << 17) | (1u << 21) | (1u << 26) | (1u << 27) | (1u << 28) | (1u << 30) | (1u << 31));
            c &= ~((1u << 1) | (1u << 6) | (1u << 11) | (1u << 12) | (1u << 14));
            d &= ~((1u << 2) | (1u << 3) | (1u << 8) | (1u << 23));
        }
    } else if (leaf == 7 && part == 1) {
        a &= ~(1u << 21); /* amx_fp16 */
        if (hide_avx512) a &= ~((1u << 4) | (1u << 5)); /* avx_vnni, avx512_bf16 */
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

static void trapped(int number, siginfo_t *info, void *context) {
    ucontext_t *at = context;
    const uint8_t *code = (const uint8_t *)at->uc_mcontext.gregs[REG_RIP];
    if (info->si_code == SI_KERNEL && code[0] == 0x0f && code[1] == 0xa2) {
        answer(at->uc_mcontext.gregs);
        return;
    }
    sigaction(SIGSEGV, &before, NULL); /* a fault of another kind: as if this library were not there */
}

__attribute__((constructor)) static void start(void) {
    const char *wanted = getenv("HIDE_ISA");
    if (wanted == NULL) return;
    hide_avx512 = strcmp(wanted, "avx512") == 0;
    struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (sigaction(SIGSEGV, &action, &before) != 0 || arch_prctl_(ARCH_SET_CPUID, 0) != 0) {
        fprintf(stderr, "hide_isa: this CPU or kernel cannot trap CPUID\n");
        _exit(3);
    }
}
