/* A core's accesses: TLB, stream prefetcher, and the rule by which a miss becomes stall cycles.
 *
 * A load that misses L1 gets the time its line is there. The core goes on without it until it cannot: an out-of-order
 * core until its window behind the load is full, an in-order core until the first instruction that reads the register;
 * the price of the load says after how many cycles that is (`hide`). If the line is not there by then, the difference
 * is a stall. Loads in between were sent out meanwhile, so misses overlap as far as window and line fills allow. Stores
 * wait in a buffer and stall the core when it is full.
 */
#include <math.h>
#include <stdlib.h>
#include "simulator.h"

enum { TRAINED = 2, NEXT_LINES = 2, TLB_WAYS = 4, STORE_BYTES = 16 };
static const uint64_t PAGE_TABLE = 1ull << 52; /* where the simulated page table lies: past any program's memory */
static void make_tlb(struct tlb *tlb, double entries, double ways)
{
    tlb->ways = (uint32_t)ways;
    tlb->sets = (uint32_t)(entries / ways);
    tlb->tags = calloc((size_t)(tlb->sets * tlb->ways), 2 * sizeof *tlb->tags);
    if (!tlb->tags)
        die("out of memory");
    tlb->used = tlb->tags + tlb->sets * tlb->ways;
}

void memory_add_core(struct core *core)
{
    caches_add_core(core);
    make_tlb(&core->tlb, machine.tlb_entries, machine.tlb_entries);
    make_tlb(&core->l2_tlb, machine.l2_tlb_entries, TLB_WAYS);
    core->last_line = core->written = core->passing = core->last_page = ~0ull;
}

static void fill(struct core *core, uint64_t line, double ready, double time, enum cause source)
{
    core->fills[core->next_fill] = ready;
    core->next_fill = (core->next_fill + 1) % (uint32_t)machine.line_fills;
    core->recent[line % RECENT] = put_l1(core, line, ready, time, source);
}

/* Whether the TLB knew the page; it does now. */
static bool known(struct tlb *tlb, uint64_t page)
{
    uint32_t *guess = &tlb->recent[page % RECENT_PAGES];
    if (tlb->tags[*guess] == page + 1) {
        tlb->used[*guess] = ++tlb->clock;
        return true;
    }
    uint32_t first = (uint32_t)(page % tlb->sets) * tlb->ways, oldest = first;
    for (uint32_t i = first; i < first + tlb->ways; i++) {
        if (tlb->tags[i] == page + 1) {
            tlb->used[*guess = i] = ++tlb->clock;
            return true;
        }
        if (tlb->used[i] < tlb->used[oldest])
            oldest = i;
    }
    tlb->tags[oldest] = page + 1;
    tlb->used[*guess = oldest] = ++tlb->clock;
    return false;
}

/* Cycles until the address is translated. A walk reads one entry of the last level of the page table from L2, L3 or
 * DRAM; the levels above it are taken as cached. */
static double translation(struct core *core, uint64_t page, double time, enum cause *source)
{
    *source = L2_HIT;
    if (page == core->last_page || known(&core->tlb, page)) {
        core->last_page = page;
        return 0;
    }
    core->last_page = page;
    if (known(&core->l2_tlb, page))
        return machine.l2_tlb_latency;
    core->walks++;
    return machine.l2_tlb_latency + fetched(core, (PAGE_TABLE + page * 8) >> LINE_SHIFT, time, false, source) - time;
}

/* The prefetcher sees a line touched that was missing, or that it had fetched itself. It brings the lines ahead into L2
 * and the next ones into L1, and waits when nothing is free to keep what it would fetch. */
static void prefetch(struct core *core, uint64_t line, double time)
{
    struct stream *stream = NULL, *oldest = core->streams;
    for (uint32_t i = 0; i < (uint32_t)machine.streams && !stream; i++) {
        struct stream *s = &core->streams[i];
        if (s->used && (line == s->next || line == s->next + 1))
            stream = s;
        else if (s->used < oldest->used)
            oldest = s;
    }
    if (!stream) {
        *oldest = (struct stream){.next = line + 1, .head = line, .used = core->l1.clock + 1, .confidence = 1};
        return;
    }
    if (!machine.crosses_pages && line % LINES_A_PAGE == 0)
        stream->confidence = 0;
    stream->next = line + 1;
    stream->used = core->l1.clock + 1;
    if (stream->head < line)
        stream->head = line;
    if (++stream->confidence <= TRAINED)
        return;
    enum cause source;
    uint64_t last = machine.crosses_pages ? ~0ull : line | (LINES_A_PAGE - 1);
    for (uint64_t l = stream->head + 1; l <= line + (uint64_t)machine.ahead && l <= last; l++) {
        if (!fetched_ahead(core, l, time))
            break;
        stream->head = l;
    }
    for (uint64_t l = line + 1; l <= line + NEXT_LINES && l <= stream->head; l++)
        if (!look(&core->l1, l)) {
            if (core->fills[core->next_fill] > time)
                break;
            double ready = fetched(core, l, time, false, &source);
            fill(core, l, ready, time, source);
            core->recent[l % RECENT]->prefetched = 1;
        }
}

static void stall(struct core *core, double cycles, enum cause cause)
{
    if (cycles > 0) {
        core->stalled += cycles;
        core->stalls[cause] += cycles;
    }
}

/* Stalls for every load whose deadline has come by program time `program`. */
void memory_settle(struct core *core, double program)
{
    for (; core->load_head != core->load_tail; core->load_head++) {
        struct pending *p = &core->loads[core->load_head % MAX_PENDING];
        if (p->deadline > program)
            break;
        stall(core, p->ready - (p->deadline + core->stalled), p->cause);
    }
}

static void wait_later(struct core *core, double program, double hide, double ready, enum cause source, bool store)
{
    if (store) {
        if (core->store_tail - core->store_head == (uint32_t)machine.store_buffer) {
            struct pending *p = &core->stores[core->store_head++ % MAX_PENDING];
            stall(core, p->ready - (program + core->stalled), p->cause);
        }
        core->stores[core->store_tail++ % MAX_PENDING] = (struct pending){program, ready, source};
    } else {
        if (core->load_tail - core->load_head == MAX_PENDING)
            memory_settle(core, core->loads[core->load_head % MAX_PENDING].deadline);
        uint32_t at = core->load_tail++; /* in the order of their deadlines */
        for (; at != core->load_head && core->loads[(at - 1) % MAX_PENDING].deadline > program + hide; at--)
            core->loads[at % MAX_PENDING] = core->loads[(at - 1) % MAX_PENDING];
        core->loads[at % MAX_PENDING] = (struct pending){program + hide, ready, source};
    }
}

/* Whole lines written one after the other pass by the caches without being read first (write streaming). */
static bool passes_by(struct core *core, uint64_t line, uint32_t bytes)
{
    if (line == core->written)
        core->written_bytes += bytes;
    else {
        bool whole = line == core->written + 1 && core->written_bytes >= 1 << LINE_SHIFT;
        core->streamed = whole ? core->streamed + 1 : 0;
        core->written = line;
        core->written_bytes = bytes;
    }
    return machine.stream_l1 && (double)core->streamed >= machine.stream_l1;
}

static void write_past(struct core *core, uint64_t line, double program)
{
    double time = program + core->stalled;
    bool past_l2 = machine.stream_l2 && (double)core->streamed >= machine.stream_l2;
    wait_later(core, program, 0, written_past(core, line, past_l2, time), DRAM_ACCESS, true);
    core->passing = line;
}

/* One access of the instruction that is `offset` cycles into its block.
 *
 * hide: cycles of program time that the core goes on without the data
 */
void memory_access(struct core *core, double offset, double hide, uint64_t address, uint32_t bytes, bool store)
{
    uint64_t line = address >> LINE_SHIFT;
    core->accesses++;
    bool past = store && passes_by(core, line, bytes);
    bool again = line == core->last_line && (!store || (core->last_dirty && core->last_ready <= now(core)));
    if (again || (store && line == core->passing))
        return;
    struct way *way = core->recent[line % RECENT];
    bool remembered = way && way->tag == line && way->valid;
    double program = core->program + offset;
    uint64_t page = line / LINES_A_PAGE;
    uint32_t entry = core->tlb.recent[page % RECENT_PAGES];
    if (remembered && core->tlb.tags[entry] == page + 1 && way->ready <= program + core->stalled && !way->prefetched &&
        (!store || way->dirty)) { /* most accesses */
        way->used = ++core->l1.clock;
        core->tlb.used[entry] = ++core->tlb.clock;
        return;
    }
    memory_settle(core, program);
    double time = program + core->stalled;
    enum cause source;
    double translated = translation(core, page, time, &source);
    if (translated)
        wait_later(core, program, hide, time + translated, source, store);
    time += translated;
    if (remembered)
        way->used = ++core->l1.clock;
    else
        core->recent[line % RECENT] = way = find(&core->l1, line);
    if (!way && past) {
        write_past(core, line, program);
        return;
    }
    if (store && n_cores > 1 && way && !way->dirty)
        snooped(core, line, true);
    if (!way) {
        double ready = fetched(core, line, fmax(time, core->fills[core->next_fill]), store, &source);
        fill(core, line, ready, time, source);
        core->lines[source]++;
        prefetch(core, line, time);
        way = core->recent[line % RECENT];
    } else if (way->prefetched) {
        way->prefetched = 0;
        core->lines[way->source]++;
        if (!past) /* what is written past the caches is not fetched ahead of the writes */
            prefetch(core, line, time);
    }
    if (way->ready > time && !(store && address / STORE_BYTES == core->last_store))
        wait_later(core, program, hide, way->ready, (enum cause)way->source, store);
    if (store)
        core->last_store = address / STORE_BYTES;
    way->dirty |= store;
    core->last_line = line;
    core->last_dirty = way->dirty;
    core->last_ready = way->ready;
}
