/* Drives the timing simulation without QEMU: access patterns on simulated cores, one function a pattern.
 *
 * Each returns cycles of simulated time. An access costs `cost` cycles of program time; its data may be `hide` late.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "simulator.h"

struct machine machine;
struct core cores[MAX_CORES];
uint32_t n_cores;

void die(const char *what)
{
    fprintf(stderr, "%s\n", what);
    abort();
}

void open_chip(const struct machine *chip, uint32_t n)
{
    machine = *chip;
    caches_start();
    for (; n_cores < n; n_cores++)
        memory_add_core(&cores[n_cores]);
}

double touch(uint32_t core, double cost, double hide, uint64_t address, uint32_t bytes, bool store)
{
    double before = now(&cores[core]);
    memory_access(&cores[core], 0, hide, address, bytes, store);
    cores[core].program += cost;
    memory_settle(&cores[core], cores[core].program);
    return now(&cores[core]) - before;
}

static uint64_t random_state = 1;
static uint64_t random_below(uint64_t limit)
{
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (random_state >> 33) % limit;
}

/* A load a cycle of a random circle through `n` places, each waiting for the one before; the second time round. */
double chase(uint64_t start, uint32_t n, uint32_t apart)
{
    uint32_t *order = malloc(n * sizeof *order);
    if (!order)
        die("out of memory");
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    for (uint32_t i = n - 1; i; i--) {
        uint32_t j = (uint32_t)random_below(i + 1), kept = order[i];
        order[i] = order[j], order[j] = kept;
    }
    double cycles = 0;
    for (uint32_t i = 0; i < 2 * n; i++)
        cycles = (i == n ? 0 : cycles) + touch(0, 1, 0, start + (uint64_t)order[i % n] * apart, 8, false);
    free(order);
    return cycles / n;
}

/* Loads of lines all over `span` bytes, none waiting for another before `hide` cycles are over. */
double scatter(uint64_t span, uint32_t n, double hide)
{
    double cycles = 0;
    for (uint32_t i = 0; i < n; i++)
        cycles += touch(0, 1, hide, random_below(span >> LINE_SHIFT) << LINE_SHIFT, 8, false);
    return cycles / n;
}

/* 16 bytes at a time: read from `from` unless it is 0, written to `to` unless it is 0. */
double sweep(uint32_t core, uint64_t from, uint64_t to, uint64_t bytes, double cost, double hide)
{
    double cycles = 0;
    for (uint64_t at = 0; at < bytes; at += 16) {
        if (from)
            cycles += touch(core, to ? 0 : cost, hide, from + at, 16, false);
        if (to)
            cycles += touch(core, cost, hide, to + at, 16, true);
    }
    return cycles;
}

/* Several cores read `bytes` each at the same time, in the order of their time. */
double read_together(uint32_t n, uint64_t bytes, double cost, double hide)
{
    uint64_t done[MAX_CORES] = {0};
    for (;;) {
        uint32_t first = n;
        for (uint32_t i = 0; i < n; i++)
            if (done[i] < bytes && (first == n || now(&cores[i]) < now(&cores[first])))
                first = i;
        if (first == n)
            break;
        touch(first, cost, hide, ((first + 1ull) << 32) + done[first], 16, false);
        done[first] += 16;
    }
    double last = 0;
    for (uint32_t i = 0; i < n; i++)
        last = now(&cores[i]) > last ? now(&cores[i]) : last;
    return last;
}

uint64_t walks(uint32_t core) { return cores[core].walks; }
double stalled(uint32_t core) { return cores[core].stalled; }

/* Share of the last half of the branches that was not foreseen: a loop of `trips`, or random directions for 0 trips. */
double mispredicted_loop(uint32_t n, uint32_t trips)
{
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < n; i++) {
        bool taken = trips ? (i + 1) % trips != 0 : random_below(2);
        bool right = foreseen(&cores[0], 0x4000, taken ? 0x3f00 : 0x4004, taken, false);
        wrong += !right && i >= n / 2;
    }
    return (double)wrong / (n / 2);
}

/* The same of a branch to targets in turn, as an interpreter's or a table's. */
double mispredicted_targets(uint32_t n, uint32_t targets)
{
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < n; i++) {
        bool right = foreseen(&cores[0], 0x4000, 0x8000 + 16 * (i % targets), true, true);
        wrong += !right && i >= n / 2;
    }
    return (double)wrong / (n / 2);
}

struct runner {
    uint32_t me, steps;
    double cost, lead; /* cycles of a step; most that it was ahead of another thread that takes turns */
};
static volatile bool taking_turns[MAX_CORES];

static void *take_turns(void *data)
{
    struct runner *runner = data;
    for (uint32_t i = 0; i < runner->steps; i++) {
        schedule(runner->me);
        taking_turns[runner->me] = true;
        for (uint32_t other = 0; other < n_cores; other++) {
            double lead = now(&cores[runner->me]) - now(&cores[other]);
            if (taking_turns[other] && lead > runner->lead)
                runner->lead = lead;
        }
        cores[runner->me].program += runner->cost;
    }
    taking_turns[runner->me] = false;
    schedule_exit(runner->me);
    return NULL;
}

/* Threads of equal work of `cycles`, the steps of each longer than the last one's; the most that one was ahead. */
double run_threads(uint32_t n, double cycles)
{
    pthread_t threads[MAX_CORES];
    struct runner runners[MAX_CORES];
    double lead = 0;
    schedule_start(0);
    for (uint32_t i = 0; i < n; i++) {
        runners[i] = (struct runner){.me = i, .cost = 10 * (i + 1), .steps = (uint32_t)(cycles / (10 * (i + 1)))};
        pthread_create(&threads[i], NULL, take_turns, &runners[i]);
    }
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        lead = runners[i].lead > lead ? runners[i].lead : lead;
    }
    schedule_stop();
    return lead;
}
