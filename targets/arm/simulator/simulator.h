/* What the parts of the timing simulation know of one another. Times are cycles of the emulated core.
 *
 * plugin.c hears from QEMU which block of code runs and which memory it touches; caches.c says when a line is there,
 * memory.c turns misses into stalls, branches.c foresees branches, schedule.c lets the guest's threads take turns in the
 * order of their simulated time.
 */
#ifndef SIMULATOR_H
#define SIMULATOR_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    LINE_SHIFT = 6,
    PAGE_SHIFT = 12,
    LINES_A_PAGE = 1 << (PAGE_SHIFT - LINE_SHIFT),
    MAX_CORES = 16,
    MAX_FILLS = 128,
    MAX_STREAMS = 64,
    MAX_PENDING = 256,
    RECENT = 1024,
    RECENT_PAGES = 256,
};
enum cause { BRANCH, L2_HIT, L3_HIT, DRAM_ACCESS, CAUSES };

/* The emulated chip, as planish sends it: doubles in this order, then in this order the levels. */
struct machine {
    double mispredict;   /* cycles to refill behind a mispredicted branch */
    double line_fills;   /* lines a core's first cache waits for at a time */
    double l2_fills;     /* lines a core's prefetcher waits for at a time on their way to L2 */
    double streams;      /* that the prefetcher follows at a time */
    double ahead;        /* lines the prefetcher runs ahead */
    double crosses_pages; /* whether the prefetcher follows a stream into the next page */
    double stream_l1;    /* whole lines written in a row after which writes pass by L1; 0: never */
    double stream_l2;    /* ... pass by L2 */
    double store_buffer; /* stores of 16 bytes that wait for their line */
    double handover;     /* a line from another core's caches */
    double wake;         /* from a thread's wake-up call to the other's first instruction */
    double tlb_entries, l2_tlb_entries, l2_tlb_latency;
    double l1_kib, l1_ways;
    double l2_kib, l2_ways, l2_latency, l2_shared, l2_interval; /* interval: between two lines of a shared port */
    double l3_kib, l3_ways, l3_latency;                         /* kib 0: none */
    double dram_latency, dram_interval;
};
extern struct machine machine;

struct way {
    uint64_t tag;   /* line number */
    uint64_t used;  /* for the least recently used */
    double ready;   /* time its data is there */
    uint8_t valid, dirty, prefetched, source, owner;
};
struct cache {
    uint32_t sets, ways;
    uint64_t clock;
    struct way *way;
};
struct tlb {
    uint32_t sets, ways;
    uint64_t clock, *tags, *used;
    uint32_t recent[RECENT_PAGES]; /* where a page was last found */
};
struct pending {
    double deadline, ready;
    enum cause cause;
};
struct stream {
    uint64_t next, head, used;
    uint32_t confidence;
};

/* One core runs one guest thread. Its time is `program + stalled`. */
struct core {
    double program;         /* cycles of its blocks as if nothing ever stalled */
    double stalled;         /* cycles added by misses and branches, and by waiting for another thread to start it */
    double stalls[CAUSES];
    uint64_t instructions, unpriced, accesses, branches, mispredicted, lines[CAUSES];
    struct cache l1, l2;
    struct tlb tlb, l2_tlb;
    uint64_t last_page, walks;
    struct way *recent[RECENT]; /* where in L1 a line was last found */
    uint64_t last_line, last_store; /* line of the last access, 16 bytes of the last store */
    double last_ready;
    bool last_dirty;
    uint64_t written, streamed, passing; /* line being written, whole lines before it in a row, line written past L1 */
    uint32_t written_bytes;
    struct pending loads[MAX_PENDING], stores[MAX_PENDING];
    uint32_t load_head, load_tail, store_head, store_tail;
    double fills[MAX_FILLS], l2_fills[MAX_FILLS];
    uint32_t next_fill, next_l2_fill;
    struct stream streams[MAX_STREAMS];
    uint64_t history; /* directions of the last branches */
};
extern struct core cores[MAX_CORES];
extern uint32_t n_cores;
static inline double now(const struct core *core) { return core->program + core->stalled; }

/* Caches are indexed by physical address. Which page of memory a page of the program gets is hashed, but fixed. */
static inline struct way *set_of(const struct cache *cache, uint64_t line)
{
    uint64_t page = line / LINES_A_PAGE;
    page = (page ^ page >> 15) * 0x9E3779B97F4A7C15ull >> 20;
    return cache->way + (page * LINES_A_PAGE + line % LINES_A_PAGE) % cache->sets * cache->ways;
}

/* The line's place, if it is there. Looking is no use of the line, finding it is. */
static inline struct way *look(const struct cache *cache, uint64_t line)
{
    struct way *way = set_of(cache, line);
    for (uint32_t i = 0; i < cache->ways; i++)
        if (way[i].tag == line && way[i].valid)
            return &way[i];
    return NULL;
}

static inline struct way *find(struct cache *cache, uint64_t line)
{
    struct way *way = look(cache, line);
    if (way)
        way->used = ++cache->clock;
    return way;
}

void caches_start(void);
void caches_add_core(struct core *core);
struct way *put_l1(struct core *core, uint64_t line, double ready, double time, enum cause source);
bool snooped(struct core *core, uint64_t line, bool invalidate);
double fetched(struct core *core, uint64_t line, double time, bool alone, enum cause *source);
bool fetched_ahead(struct core *core, uint64_t line, double time);
double written_past(struct core *core, uint64_t line, bool past_l2, double time);
void memory_add_core(struct core *core);
void memory_access(struct core *core, double offset, double hide, uint64_t address, uint32_t bytes, bool store);
void memory_settle(struct core *core, double program);
bool foreseen(struct core *core, uint64_t branch, uint64_t next, bool taken, bool indirect);
void schedule_start(uint32_t first);
void schedule_stop(void);
void schedule(uint32_t me);
void schedule_syscall(uint32_t me, int64_t number, uint64_t operation);
void schedule_return(uint32_t me, int64_t result);
void schedule_exit(uint32_t me);
_Noreturn void die(const char *what);
#endif
