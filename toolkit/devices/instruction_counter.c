/* A plugin for QEMU's user mode that counts the instructions of an AArch64 program by class, between marks.

   A mark is the system call sched_get_priority_max with an argument from MARK on, which changes nothing. At each one a
   line of JSON with the counts since the last is written to the file that the plugin is given: out=FILE.

   cc -O2 -shared -fPIC -o instruction_counter.so instruction_counter.c

   Declared here is all of QEMU's plugin interface (version 1) that is used, so that no header of QEMU is needed. */

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t plugin_id;
struct block;
struct instruction;

int qemu_plugin_version = 1;
size_t qemu_plugin_tb_n_insns(const struct block *);
struct instruction *qemu_plugin_tb_get_insn(const struct block *, size_t);
const void *qemu_plugin_insn_data(const struct instruction *);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int operation, void *counter, uint64_t added);
void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t));
#define ADD_TO_COUNTER 0

#define SCHED_GET_PRIORITY_MAX 125
#define MARK 770000
#define MARKS 100000

enum { TOTAL, LOAD, STORE, BRANCH, FMA_FP32, FMA_FP16, WIDENING_INT, DOT_INT8, MATRIX_INT8, CLASSES };
static const char *const NAMES[CLASSES] = {
    "total", "load", "store", "branch", "fma_fp32", "fma_fp16", "widening_int", "dot_int8", "matrix_int8"};

static uint64_t counts[CLASSES], before[CLASSES];
static FILE *output;

/* The vector products: an instruction belongs to a class if its bits under the mask are these. */
static const struct {
    uint32_t mask, bits;
    int class;
} PRODUCTS[] = {
    {0xBFA0FC00, 0x0E20CC00, FMA_FP32},     /* fmla vector */
    {0xBF80F400, 0x0F801000, FMA_FP32},     /* fmla by element */
    {0xBFE0FC00, 0x0E400C00, FMA_FP16},     /* fmla vector, half */
    {0xBFC0F400, 0x0F001000, FMA_FP16},     /* fmla by element, half */
    {0x9F20FC00, 0x0E208000, WIDENING_INT}, /* smlal, umlal vector */
    {0x9F00F400, 0x0F002000, WIDENING_INT}, /* smlal, umlal by element */
    {0x9F20FC00, 0x0E20C000, WIDENING_INT}, /* smull, umull vector */
    {0x9FE0FC00, 0x0E809400, DOT_INT8},     /* sdot, udot vector */
    {0x9FC0F400, 0x0F80E000, DOT_INT8},     /* sdot, udot by element */
    {0xBFE0FC00, 0x0E809C00, DOT_INT8},     /* usdot vector */
    {0xBF40F400, 0x0F00F000, DOT_INT8},     /* sudot, usdot by element */
    {0xDFE0FC00, 0x4E80A400, MATRIX_INT8},  /* smmla, ummla */
    {0xFFE0FC00, 0x4E80AC00, MATRIX_INT8},  /* usmmla */
};

/* Whether a load or store (of which the caller knows that it is one) loads. */
static int loads(uint32_t word) {
    if ((word & 0xBE000000) == 0x0C000000) /* ld1 … st4 of structures */
        return (word >> 22) & 1;
    if ((word & 0x3A000000) == 0x28000000) /* pairs */
        return (word >> 22) & 1;
    if ((word & 0x3B000000) == 0x18000000) /* literals */
        return 1;
    if ((word & 0x3A000000) == 0x38000000) { /* one register: opc says which, bit 26 that it is of vectors */
        unsigned opc = (word >> 22) & 3;
        return (word >> 26) & 1 ? opc & 1 : opc != 0;
    }
    return (word >> 22) & 1;
}

/* Adds one instruction to the counts of a block. */
void classify(uint32_t word, uint64_t *into) {
    unsigned group = (word >> 25) & 15;
    into[TOTAL]++;
    if ((group & 5) == 4)
        into[loads(word) ? LOAD : STORE]++;
    else if ((group & 14) == 10)
        into[BRANCH] += (word & 0xFE000000) != 0xD4000000; /* those are exceptions, barriers and hints */
    else
        for (size_t i = 0; i < sizeof PRODUCTS / sizeof *PRODUCTS; i++)
            if ((word & PRODUCTS[i].mask) == PRODUCTS[i].bits) {
                into[PRODUCTS[i].class]++;
                return;
            }
}

static void on_block(plugin_id id, struct block *block) {
    uint64_t found[CLASSES] = {0};
    (void)id;
    for (size_t i = 0; i < qemu_plugin_tb_n_insns(block); i++) {
        uint32_t word;
        memcpy(&word, qemu_plugin_insn_data(qemu_plugin_tb_get_insn(block, i)), sizeof word);
        classify(word, found);
    }
    for (int class = 0; class < CLASSES; class++)
        if (found[class])
            qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_TO_COUNTER, &counts[class], found[class]);
}

static void on_system_call(plugin_id id, unsigned cpu, int64_t number, uint64_t first, uint64_t b, uint64_t c,
                           uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    if (number != SCHED_GET_PRIORITY_MAX || first < MARK || first >= MARK + MARKS)
        return;
    fprintf(output, "{\"mark\": %" PRIu64, first - MARK);
    for (int class = 0; class < CLASSES; class++)
        fprintf(output, ", \"%s\": %" PRIu64, NAMES[class], counts[class] - before[class]);
    fprintf(output, "}\n");
    fflush(output);
    memcpy(before, counts, sizeof counts);
}

int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments) {
    (void)info;
    for (int i = 0; i < count; i++)
        if (!strncmp(arguments[i], "out=", 4))
            output = fopen(arguments[i] + 4, "w");
    if (!output)
        return -1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_block);
    qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
    return 0;
}
