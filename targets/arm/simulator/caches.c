/* L1, L2, L3 and DRAM, and who holds a line: when a line that is not in L1 is there.
 *
 * L2 holds what came into L1, L3 what L2 gave up. What L2's port and DRAM serve a cycle is limited, and so are the
 * fills that an L2 waits for at a time.
 */
#include <math.h>
#include <stdlib.h>
#include "simulator.h"

static struct cache shared_l2, l3;

/* Something that serves a line in an interval, shared by threads whose times differ by up to a quantum: what it serves
 * is counted in slots of time, so that a thread does not queue behind another's future. */
enum { SLOTS = 1 << 14 };
static const double SLOT = 256;
struct server {
    uint64_t slot[SLOTS];
    double used[SLOTS];
};
static struct server dram, ports[MAX_CORES];
static double shared_fills[MAX_FILLS];
static uint32_t next_shared_fill;

/* The slot, empty if it last stood for an earlier time. */
static double *used_in(struct server *server, uint64_t slot)
{
    uint64_t i = slot % SLOTS;
    if (server->slot[i] != slot)
        server->slot[i] = slot, server->used[i] = 0;
    return &server->used[i];
}

static double served(struct server *server, double time, double interval)
{
    uint64_t slot = (uint64_t)(time / SLOT);
    while (*used_in(server, slot) >= SLOT)
        slot++;
    *used_in(server, slot) += interval;
    for (uint64_t full = slot; *used_in(server, full) > SLOT; full++) { /* the rest is the next one's */
        *used_in(server, full + 1) += *used_in(server, full) - SLOT;
        *used_in(server, full) = SLOT;
    }
    return fmax(time, (double)slot * SLOT);
}

static void make_cache(struct cache *cache, double kib, double ways)
{
    cache->ways = (uint32_t)ways;
    cache->sets = (uint32_t)(kib * 1024 / (1 << LINE_SHIFT) / ways);
    cache->way = calloc((size_t)cache->sets * cache->ways, sizeof *cache->way);
    if (!cache->way)
        die("out of memory");
}

void caches_start(void)
{
    if (machine.l2_shared)
        make_cache(&shared_l2, machine.l2_kib, machine.l2_ways);
    if (machine.l3_kib)
        make_cache(&l3, machine.l3_kib, machine.l3_ways);
}

void caches_add_core(struct core *core)
{
    make_cache(&core->l1, machine.l1_kib, machine.l1_ways);
    if (!machine.l2_shared)
        make_cache(&core->l2, machine.l2_kib, machine.l2_ways);
}

static struct cache *l2_of(struct core *core) { return machine.l2_shared ? &shared_l2 : &core->l2; }

/* The way in and out of L2: every line that L1 reads or writes back, and every line that comes into L2, takes it. */
static double through_port(struct core *core, double time)
{
    return served(&ports[machine.l2_shared ? 0 : core - cores], time, machine.l2_interval);
}

static struct way *least_recent(struct cache *cache, uint64_t line)
{
    struct way *way = set_of(cache, line), *oldest = way;
    for (uint32_t i = 0; i < cache->ways; i++) {
        if (!way[i].valid)
            return &way[i];
        if (way[i].used < oldest->used)
            oldest = &way[i];
    }
    return oldest;
}

/* L3 holds what L2 gave up. */
static void put_l3(uint64_t line, bool dirty, double time)
{
    struct way *way = machine.l3_kib ? find(&l3, line) : NULL;
    if (!machine.l3_kib) {
        if (dirty)
            served(&dram, time, machine.dram_interval);
        return;
    }
    if (!way) {
        way = least_recent(&l3, line);
        if (way->valid && way->dirty)
            served(&dram, time, machine.dram_interval);
        *way = (struct way){.tag = line, .valid = 1, .ready = time, .used = ++l3.clock};
    }
    way->dirty |= dirty;
}

static void put_l2(struct core *core, uint64_t line, bool dirty, double ready, double time, enum cause source)
{
    struct cache *l2 = l2_of(core);
    struct way *way = find(l2, line);
    through_port(core, time);
    if (!way) {
        way = least_recent(l2, line);
        if (way->valid)
            put_l3(way->tag, way->dirty, time);
        *way = (struct way){.tag = line, .valid = 1, .ready = ready, .used = ++l2->clock, .source = (uint8_t)source,
                            .owner = (uint8_t)(core - cores)};
    }
    way->dirty |= dirty;
}

struct way *put_l1(struct core *core, uint64_t line, double ready, double time, enum cause source)
{
    struct way *way = least_recent(&core->l1, line);
    if (way->valid && way->dirty)
        put_l2(core, way->tag, true, time, time, L2_HIT);
    if (way->valid && way->tag == core->last_line)
        core->last_line = ~0ull;
    *way = (struct way){.tag = line, .valid = 1, .ready = ready, .used = ++core->l1.clock, .source = (uint8_t)source};
    return way;
}

/* Writes back other cores' copies of the line, or takes them away; true if there was one. */
bool snooped(struct core *core, uint64_t line, bool invalidate)
{
    bool found = false;
    for (struct core *other = cores; other < cores + n_cores; other++) {
        struct cache *held[] = {&other->l1, &other->l2};
        for (int level = 0; other != core && level < (machine.l2_shared ? 1 : 2); level++) {
            struct way *way = look(held[level], line);
            if (!way)
                continue;
            found = true;
            if (way->dirty)
                put_l2(core, line, true, machine.l2_shared ? 0 : now(core) + machine.handover, now(core), L3_HIT);
            way->dirty = 0;
            way->valid = !invalidate;
            if (level == 0 && other->last_line == line)
                other->last_line = ~0ull;
        }
    }
    return found;
}

/* Time at which a line that is not in L1 is there, if asked for at `time`. It is put into L2 on its way.
 *
 * alone: for a store, which takes the line from the other cores
 */
double fetched(struct core *core, uint64_t line, double time, bool alone, enum cause *source)
{
    bool elsewhere = n_cores > 1 && snooped(core, line, alone);
    struct way *way = find(l2_of(core), line);
    if (way) {
        double ready = way->ready;
        *source = ready > time ? way->source : L2_HIT;
        if (ready > time && way->owner != core - cores) /* asked for in another thread's future: no later than now */
            ready = fmin(ready, time + (*source == DRAM_ACCESS ? machine.dram_latency : machine.handover));
        return fmax(through_port(core, time) + machine.l2_latency, ready);
    }
    double ready;
    bool dirty = false;
    if (elsewhere) {
        *source = L3_HIT;
        ready = time + machine.handover;
    } else if (machine.l3_kib && (way = find(&l3, line))) {
        *source = L3_HIT;
        ready = fmax(time + machine.l3_latency, way->ready);
        dirty = way->dirty;
        way->valid = 0;
    } else {
        *source = DRAM_ACCESS;
        ready = served(&dram, time, machine.dram_interval) + machine.dram_latency;
    }
    put_l2(core, line, dirty, ready, time, *source);
    return ready;
}

/* Brings a line that is in neither L1 nor L2 into L2; false while the L2 waits for as many as it can keep. A shared L2
 * keeps them for all cores together. */
bool fetched_ahead(struct core *core, uint64_t line, double time)
{
    if (look(&core->l1, line) || look(l2_of(core), line))
        return true;
    double *fill = machine.l2_shared ? &shared_fills[next_shared_fill] : &core->l2_fills[core->next_l2_fill];
    uint32_t *next = machine.l2_shared ? &next_shared_fill : &core->next_l2_fill;
    if (*fill > time)
        return false;
    enum cause source;
    *fill = fetched(core, line, time, false, &source);
    *next = (*next + 1) % (uint32_t)machine.l2_fills;
    return true;
}

/* Time at which a whole line that passes by L1 is written: to L2, or by that as well to L3 or DRAM. */
double written_past(struct core *core, uint64_t line, bool past_l2, double time)
{
    struct way *way = find(l2_of(core), line);
    if (n_cores > 1)
        snooped(core, line, true);
    if (way)
        way->dirty = 1;
    else if (!past_l2)
        put_l2(core, line, true, time, time, L2_HIT);
    else if (machine.l3_kib)
        put_l3(line, true, time);
    else
        return served(&dram, time, machine.dram_interval) + machine.dram_interval;
    return time;
}
