/* A branch predictor: tables over histories of rising length, the longest one that knows the branch decides (TAGE).
 *
 * Source of the method: Seznec and Michaud, "A case for (partially) tagged geometric history length branch prediction",
 * 2006, in small. Arm publishes no predictor; one design stands for all cores. Returns are taken as foreseen.
 */
#include "simulator.h"

enum { TABLES = 4, ENTRIES = 4096, SURE = 3 };
static const unsigned LENGTHS[TABLES] = {0, 8, 24, 64};
struct entry {
    uint64_t target;
    uint16_t tag;
    uint8_t confidence;
};
static struct entry tables[MAX_CORES][TABLES][ENTRIES];

static uint64_t mixed(uint64_t x)
{
    x = (x ^ x >> 31) * 0x9E3779B97F4A7C15ull;
    return x ^ x >> 29;
}

/* Whether the core foresees that the branch at `branch` goes to `next`; learns that it did. */
bool foreseen(struct core *core, uint64_t branch, uint64_t next, bool taken, bool indirect)
{
    struct entry *found[TABLES], *best = 0;
    uint16_t tags[TABLES];
    int provider = -1;
    for (int t = 0; t < TABLES; t++) {
        uint64_t past = LENGTHS[t] == 64 ? core->history : core->history & ((1ull << LENGTHS[t]) - 1);
        uint64_t hash = mixed(branch * 31 + mixed(past + (uint64_t)t));
        found[t] = &tables[core - cores][t][hash % ENTRIES];
        tags[t] = (uint16_t)(hash >> 40 | 1);
        if (found[t]->tag == tags[t])
            best = found[t], provider = t;
    }
    bool right = best ? best->target == next : !taken && !indirect; /* an unknown branch is taken to fall through */
    if (right) {
        if (best && best->confidence < SURE)
            best->confidence++;
    } else {
        if (best && best->confidence)
            best->confidence--;
        else if (best)
            best->target = next;
        for (int t = provider + 1; t < TABLES; t++) {
            if (!found[t]->confidence) {
                *found[t] = (struct entry){next, tags[t], 1};
                break;
            }
            found[t]->confidence--;
        }
    }
    core->history = core->history << 1 | (indirect ? (next >> 4 & 1) : taken);
    return right;
}
