/* A QEMU TCG plugin (user mode, plugin interface version 1, QEMU 7.2) that times a guest program on a named core.
 *
 * The guest speaks to it by prctl(MARK, command, first, second); planish by the socket `wire=FD`, in native byte order.
 *   HARNESS start, end  code that is not counted
 *   EXPLORE             from here on, learn which blocks of code run in windows and which follows which
 *   PRICE               send the blocks, wait for their prices; from here on, keep time in windows
 *   BEGIN               a window opens; threads take turns in the order of their time
 *   LAP label           send what the calling thread did since the last lap or BEGIN; not if the label is 0
 *   END                 the window closes
 * At start:          planish sends struct machine, u64 number of system calls that end a record, u64 each
 * PRICE:             u32 'B', u32 blocks; each: u64 address, u32 instructions, 4 x (u32 block, u32 times), words
 *                    and back, each: f64 cycles, then f32 for each instruction: cycles its data may be late
 * LAP, system call:  struct record
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "simulator.h"

/* QEMU's plugin interface; Debian packages no header for it. */
#define EXPORTED __attribute__((visibility("default")))
typedef uint64_t qemu_plugin_id_t;
typedef uint32_t qemu_plugin_meminfo_t;
typedef struct qemu_info qemu_info;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*simple_cb)(qemu_plugin_id_t);
typedef void (*vcpu_cb)(qemu_plugin_id_t, unsigned vcpu);
typedef void (*translated_cb)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*executed_cb)(unsigned vcpu, void *);
typedef void (*accessed_cb)(unsigned vcpu, qemu_plugin_meminfo_t, uint64_t address, void *);
typedef void (*syscall_cb)(qemu_plugin_id_t, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                           uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
typedef void (*return_cb)(qemu_plugin_id_t, unsigned vcpu, int64_t number, int64_t result);
extern void qemu_plugin_reset(qemu_plugin_id_t, simple_cb);
extern void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t, vcpu_cb);
extern void qemu_plugin_register_vcpu_exit_cb(qemu_plugin_id_t, vcpu_cb);
extern void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, syscall_cb);
extern void qemu_plugin_register_vcpu_syscall_ret_cb(qemu_plugin_id_t, return_cb);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, translated_cb);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed_cb, int flags, void *);
extern void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *, accessed_cb, int flags, int rw, void *);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern unsigned qemu_plugin_mem_size_shift(qemu_plugin_meminfo_t);
extern bool qemu_plugin_mem_is_store(qemu_plugin_meminfo_t);
EXPORTED int qemu_plugin_version = 1;

enum { SYS_PRCTL = 167, MARK = 0x504c4e53 };
enum command { HARNESS = 1, EXPLORE, PRICE, BEGIN, LAP, END };
enum { BUCKETS = 1 << 16, MAX_INSNS = 512, SUCCESSORS = 4, MAX_RANGES = 64, MAX_CALLS = 16 };
enum { READ = 1, WRITE = 2, NO_REGISTERS = 0 };

struct price {
    struct block *block;
    float offset, hide; /* cycles from the block's start; cycles the data of the load may be late */
};
struct block {
    struct block *next_in_bucket;
    uint64_t address, end, executions;
    uint32_t instructions, index;
    enum { OTHER, CONDITIONAL, INDIRECT } ending;
    bool harness, priced, sent;
    double cycles;
    struct { struct block *block; uint64_t times; } successors[SUCCESSORS];
    struct price *prices;
    uint32_t words[];
};
struct record {
    uint32_t kind, label;
    uint64_t call; /* system call that ended it; 0: LAP */
    double cycles, core_cycles, stalls[CAUSES];
    uint64_t instructions, unpriced, accesses, branches, mispredicted, lines[CAUSES];
};

struct machine machine;
struct core cores[MAX_CORES];
uint32_t n_cores;
static struct block *buckets[BUCKETS], **blocks, *last_blocks[MAX_CORES];
static uint32_t n_blocks, room;
static struct { uint64_t start, end; } harness[MAX_RANGES];
static uint64_t n_harness, n_calls, calls[MAX_CALLS];
static struct core at_last_record;
static int wire = -1;
static unsigned timed_thread;
static volatile bool window;
static enum { IDLE, EXPLORING, TIMING } mode;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void die(const char *what)
{
    fprintf(stderr, "timing plugin: %s%s%s\n", what, errno ? ": " : "", errno ? strerror(errno) : "");
    _Exit(70);
}

static void put(const void *data, size_t size)
{
    for (const char *at = data; size;) {
        ssize_t n = write(wire, at, size);
        if (n <= 0)
            die("cannot write to planish");
        at += n, size -= (size_t)n;
    }
}

static void get(void *data, size_t size)
{
    for (char *at = data; size;) {
        ssize_t n = read(wire, at, size);
        if (n <= 0)
            die("planish does not answer");
        at += n, size -= (size_t)n;
    }
}

/* How a block ends, from its last instruction; returns are foreseen by a stack of their own. */
static int ending_of(uint32_t word)
{
    if ((word & 0xff000010) == 0x54000000 || (word & 0x7e000000) == 0x34000000 || (word & 0x7e000000) == 0x36000000)
        return CONDITIONAL; /* B.cond, CBZ, CBNZ, TBZ, TBNZ */
    return (word & 0xffdffc1f) == 0xd61f0000 ? INDIRECT : OTHER; /* BR, BLR */
}

static bool may_access_memory(uint32_t word) { return (word & 0x0a000000) == 0x08000000; } /* loads and stores */

/* The record of a block; QEMU may translate the same code again, and other code may take its address later. */
static struct block *find_or_add(uint64_t address, uint32_t n, const uint32_t *words)
{
    struct block **bucket = &buckets[(address >> 2) % BUCKETS];
    for (struct block *b = *bucket; b; b = b->next_in_bucket)
        if (b->address == address && b->instructions == n && !memcmp(b->words, words, 4 * (size_t)n))
            return b;
    struct block *b = calloc(1, sizeof *b + 4 * (size_t)n);
    if (n_blocks == room)
        blocks = realloc(blocks, (room = room ? 2 * room : 4096) * sizeof *blocks);
    if (!b || !blocks || !(b->prices = calloc(n, sizeof *b->prices)))
        die("out of memory");
    *b = (struct block){.address = address, .end = address + 4ull * n, .instructions = n, .prices = b->prices,
                        .ending = ending_of(words[n - 1]), .cycles = n, .next_in_bucket = *bucket};
    memcpy(b->words, words, 4 * (size_t)n);
    for (uint32_t i = 0; i < n; i++)
        b->prices[i] = (struct price){b, (float)i, 0};
    for (uint64_t i = 0; i < n_harness; i++)
        b->harness |= harness[i].start <= address && address < harness[i].end;
    blocks[n_blocks++] = *bucket = b;
    return b;
}

static void explored(unsigned vcpu, void *data)
{
    if (!window)
        return;
    struct block *b = data, *before = last_blocks[vcpu];
    schedule(vcpu);
    if (!window)
        return;
    cores[vcpu].program += b->instructions;
    last_blocks[vcpu] = b;
    b->executions++;
    if (!before)
        return;
    int least = 0;
    for (int i = 0; i < SUCCESSORS; i++) {
        if (before->successors[i].block == b) {
            before->successors[i].times++;
            return;
        }
        if (before->successors[i].times < before->successors[least].times)
            least = i;
    }
    before->successors[least].block = b;
    before->successors[least].times = 1;
}

/* A block begins; the one before is over. */
static void timed(unsigned vcpu, void *data)
{
    if (!window)
        return;
    struct block *b = data, *before = last_blocks[vcpu];
    struct core *core = &cores[vcpu];
    last_blocks[vcpu] = b;
    if (before && !before->harness) {
        core->program += before->cycles;
        core->instructions += before->instructions;
        core->unpriced += before->priced ? 0 : before->instructions;
        if (before->ending != OTHER) {
            core->branches++;
            if (!foreseen(core, before->end, b->address, b->address != before->end, before->ending == INDIRECT)) {
                core->mispredicted++;
                core->stalled += machine.mispredict;
                core->stalls[BRANCH] += machine.mispredict;
            }
        }
        memory_settle(core, core->program);
    }
    schedule(vcpu);
}

static void accessed(unsigned vcpu, qemu_plugin_meminfo_t info, uint64_t address, void *data)
{
    const struct price *p = data;
    if (window && !p->block->harness)
        memory_access(&cores[vcpu], p->offset, p->hide, address, 1u << qemu_plugin_mem_size_shift(info),
                      qemu_plugin_mem_is_store(info));
}

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
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
    qemu_plugin_register_vcpu_tb_exec_cb(tb, mode == TIMING ? timed : explored, NO_REGISTERS, b);
    for (size_t i = 0; mode == TIMING && i < n; i++)
        if (may_access_memory(words[i]))
            qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), accessed, NO_REGISTERS, READ | WRITE,
                                             &b->prices[i]);
}

static void negotiate_prices(void)
{
    uint32_t sent = 0;
    pthread_mutex_lock(&lock); /* other threads may still run, and meet new code */
    uint32_t met = n_blocks;
    for (uint32_t i = 0; i < met; i++) {
        blocks[i]->sent = blocks[i]->executions && !blocks[i]->harness;
        if (blocks[i]->sent)
            blocks[i]->index = sent++;
    }
    put(&(uint32_t[]){'B', sent}, 8);
    for (uint32_t i = 0; i < met; i++) {
        struct block *b = blocks[i];
        uint32_t successors[2 * SUCCESSORS] = {0};
        if (!b->sent)
            continue;
        for (int s = 0; s < SUCCESSORS; s++)
            if (b->successors[s].block && b->successors[s].block->sent) {
                uint64_t times = b->successors[s].times;
                successors[2 * s] = b->successors[s].block->index;
                successors[2 * s + 1] = times > UINT32_MAX ? UINT32_MAX : (uint32_t)times;
            }
        put(&b->address, 8);
        put(&b->instructions, 4);
        put(successors, sizeof successors);
        put(b->words, 4 * (size_t)b->instructions);
    }
    for (uint32_t i = 0; i < met; i++) {
        struct block *b = blocks[i];
        float hide[MAX_INSNS];
        if (!b->sent)
            continue;
        get(&b->cycles, sizeof b->cycles);
        get(hide, sizeof *hide * b->instructions);
        b->priced = true;
        for (uint32_t k = 0; k < b->instructions; k++)
            b->prices[k] = (struct price){b, (float)(b->cycles * k / b->instructions), hide[k]};
    }
    pthread_mutex_unlock(&lock);
}

static void end_record(uint32_t label, uint64_t call)
{
    const struct core *core = &cores[timed_thread], *then = &at_last_record;
    struct record r = {
        .kind = 'P',
        .label = label,
        .call = call,
        .core_cycles = core->program - then->program,
        .cycles = now(core) - now(then),
        .instructions = core->instructions - then->instructions,
        .unpriced = core->unpriced - then->unpriced,
        .accesses = core->accesses - then->accesses,
        .branches = core->branches - then->branches,
        .mispredicted = core->mispredicted - then->mispredicted,
    };
    for (int i = 0; i < CAUSES; i++) {
        r.stalls[i] = core->stalls[i] - then->stalls[i];
        r.lines[i] = core->lines[i] - then->lines[i];
    }
    if (label || call)
        put(&r, sizeof r);
    at_last_record = *core;
}

static void instrument(qemu_plugin_id_t);
static void command(qemu_plugin_id_t id, unsigned vcpu, enum command what, uint64_t first, uint64_t second)
{
    switch (what) {
    case HARNESS:
        if (n_harness == MAX_RANGES)
            die("too many ranges of code that is not counted");
        harness[n_harness].start = first;
        harness[n_harness++].end = second;
        break;
    case EXPLORE:
        mode = EXPLORING;
        qemu_plugin_reset(id, instrument);
        break;
    case PRICE:
        negotiate_prices();
        mode = TIMING;
        qemu_plugin_reset(id, instrument);
        break;
    case BEGIN:
        memset(last_blocks, 0, sizeof last_blocks);
        timed_thread = vcpu;
        at_last_record = cores[vcpu];
        schedule_start(vcpu);
        window = true;
        break;
    case LAP:
        if (mode == TIMING)
            end_record((uint32_t)first, 0);
        break;
    case END:
        window = false;
        schedule_stop();
        break;
    }
}

static void on_syscall(qemu_plugin_id_t id, unsigned vcpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)a5, (void)a6, (void)a7, (void)a8;
    schedule_syscall(vcpu, number, a2);
    if (number == SYS_PRCTL && a1 == MARK)
        command(id, vcpu, (enum command)a2, a3, a4);
    else if (window && mode == TIMING && vcpu == timed_thread)
        for (uint64_t i = 0; i < n_calls; i++)
            if (calls[i] == (uint64_t)number)
                end_record(0, (uint64_t)number);
}

static void on_return(qemu_plugin_id_t id, unsigned vcpu, int64_t number, int64_t result)
{
    (void)id, (void)number;
    schedule_return(vcpu, result);
}

static void on_thread(qemu_plugin_id_t id, unsigned vcpu)
{
    (void)id;
    if (vcpu >= MAX_CORES) {
        errno = 0;
        die("the program has more threads than it can follow");
    }
    pthread_mutex_lock(&lock);
    for (; n_cores <= vcpu; n_cores++)
        memory_add_core(&cores[n_cores]);
    pthread_mutex_unlock(&lock);
}

static void on_thread_exit(qemu_plugin_id_t id, unsigned vcpu)
{
    (void)id;
    schedule_exit(vcpu);
}

static void listen(qemu_plugin_id_t id)
{
    qemu_plugin_register_vcpu_init_cb(id, on_thread);
    qemu_plugin_register_vcpu_exit_cb(id, on_thread_exit);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    qemu_plugin_register_vcpu_syscall_ret_cb(id, on_return);
}

static void instrument(qemu_plugin_id_t id)
{
    listen(id);
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
}

EXPORTED int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info *info, int argc, char **argv)
{
    (void)info;
    for (int i = 0; i < argc; i++)
        if (!strncmp(argv[i], "wire=", 5))
            wire = atoi(argv[i] + 5);
    get(&machine, sizeof machine);
    get(&n_calls, sizeof n_calls);
    if (n_calls > MAX_CALLS)
        return fprintf(stderr, "timing plugin: too many system calls to watch\n"), -1;
    get(calls, n_calls * sizeof *calls);
    caches_start();
    listen(id);
    return 0;
}
