/* Counts, per translated block and per phase, how often a guest program runs each block of its code.
 *
 * A QEMU TCG plugin (user mode, plugin API version 1, QEMU 7.2). The guest divides its run into phases with the system
 * call prctl(MARK, label): the executions since the previous mark belong to `label`; label 0 throws them away.
 *
 * Output file (native byte order), after the eight bytes "PLNSBLK1":
 *   phase:  u32 'P', u32 label, u64 entries, then entries x (u64 block, u64 executions)
 *   block:  u32 'B', u32 instructions, u64 address, then instructions x u32 machine words; numbered from 0 in order
 */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* QEMU's plugin interface; Debian packages no header for it. */
#define EXPORTED __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
enum { QEMU_PLUGIN_INLINE_ADD_U64 = 0 };
typedef void (*translated_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*syscall_cb)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                           uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
typedef void (*exit_cb)(qemu_plugin_id_t, void *);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_cb);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb);
extern void qemu_plugin_register_atexit_cb(qemu_plugin_id_t, exit_cb, void *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *counter, uint64_t step);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
EXPORTED int qemu_plugin_version = 1;

enum { SYS_PRCTL = 167, MARK = 0x504c4e53, BUCKETS = 1 << 16, MAX_INSNS = 512 };

struct block {
    struct block *next_in_bucket, *next;
    uint64_t index, address, executions, at_last_mark, in_phase;
    uint32_t instructions;
    uint32_t words[];
};

static struct block *buckets[BUCKETS], *first, **last = &first;
static uint64_t blocks;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *out;

static void die(const char *what)
{
    fprintf(stderr, "blocks plugin: %s: %s\n", what, strerror(errno));
    _Exit(70);
}

static void put(const void *data, size_t size)
{
    if (fwrite(data, size, 1, out) != 1)
        die("cannot write the counts");
}

/* The record of a block; QEMU may translate the same code again, and other code may take its address later. */
static struct block *find_or_add(uint64_t address, uint32_t n, const uint32_t *words)
{
    struct block **bucket = &buckets[(address >> 2) % BUCKETS];
    for (struct block *b = *bucket; b; b = b->next_in_bucket)
        if (b->address == address && b->instructions == n && !memcmp(b->words, words, 4 * (size_t)n))
            return b;
    struct block *b = calloc(1, sizeof *b + 4 * (size_t)n);
    if (!b)
        die("out of memory");
    b->index = blocks++;
    b->address = address;
    b->instructions = n;
    memcpy(b->words, words, 4 * (size_t)n);
    b->next_in_bucket = *bucket;
    *bucket = b;
    *last = b;
    last = &b->next;
    return b;
}

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
    (void)id;
    uint32_t words[MAX_INSNS];
    size_t n = qemu_plugin_tb_n_insns(tb);
    if (n > MAX_INSNS)
        die("a block is longer than QEMU makes them");
    for (size_t i = 0; i < n; i++)
        memcpy(&words[i], qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, i)), 4);
    pthread_mutex_lock(&lock);
    struct block *b = find_or_add(qemu_plugin_tb_vaddr(tb), (uint32_t)n, words);
    pthread_mutex_unlock(&lock);
    qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, &b->executions, 1);
}

/* Counters are read once: another thread of the guest may be counting meanwhile. */
static void end_phase(uint32_t label)
{
    uint64_t entries = 0;
    for (struct block *b = first; b; b = b->next) {
        uint64_t now = b->executions;
        b->in_phase = now - b->at_last_mark;
        b->at_last_mark = now;
        entries += b->in_phase != 0;
    }
    if (!label)
        return;
    put(&(uint32_t){'P'}, 4);
    put(&label, 4);
    put(&entries, 8);
    for (struct block *b = first; b; b = b->next)
        if (b->in_phase) {
            put(&b->index, 8);
            put(&b->in_phase, 8);
        }
}

static void on_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)vcpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != SYS_PRCTL || a1 != MARK)
        return;
    pthread_mutex_lock(&lock);
    end_phase((uint32_t)a2);
    pthread_mutex_unlock(&lock);
}

static void on_exit_write_blocks(qemu_plugin_id_t id, void *data)
{
    (void)id, (void)data;
    for (struct block *b = first; b; b = b->next) {
        put(&(uint32_t){'B'}, 4);
        put(&b->instructions, 4);
        put(&b->address, 8);
        put(b->words, 4 * (size_t)b->instructions);
    }
    if (fclose(out))
        die("cannot write the counts");
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "out=", 4))
            out = fopen(argv[i] + 4, "wb");
    if (!out)
        return fprintf(stderr, "blocks plugin: out=FILE is missing or cannot be written\n"), -1;
    put("PLNSBLK1", 8);
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_atexit_cb(id, on_exit_write_blocks, NULL);
    return 0;
}
