/* Guest threads take turns in the order of their simulated time, so that they share work as they would on real cores.
 *
 * One thread runs at a time. It goes on until it is a quantum ahead of the one that is furthest behind, then that one
 * runs. A thread in a system call that may block takes no turns; one that is woken starts no earlier than its waker.
 */
#include <pthread.h>
#include <time.h>
#include "simulator.h"

enum { NOBODY = -1, WAIT = 0, WAKE = 1, WAIT_BITSET = 9, WAKE_BITSET = 10, FUTEX_OPERATION = 0x7f };
enum { SYS_FUTEX = 98, SYS_CLOCK_GETTIME = 113, SYS_SCHED_YIELD = 124, SYS_PRCTL = 167, SYS_GETPID = 172 };
enum { SYS_GETCPU = 168, SYS_BRK = 214, SYS_MUNMAP = 215, SYS_MREMAP = 216, SYS_MMAP = 222, SYS_MPROTECT = 226 };
enum { SYS_MADVISE = 233, SYS_CLOSE = 57 };
static const double QUANTUM = 1000; /* cycles: less than a microsecond, more than a hand-over between cores takes */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turns[MAX_CORES], arrival = PTHREAD_COND_INITIALIZER;
static enum { RUNNING, WAKING, WAITING, BLOCKED } states[MAX_CORES];
static bool ready[MAX_CORES];
static volatile bool active;
static volatile int holder = NOBODY;
static volatile double limit;
static double start; /* time at which the threads began to take turns */
static int arrived;  /* woken threads whose waker has not yet seen them */

/* Gives the turn to the thread furthest behind. */
static void pick(void)
{
    int first = NOBODY, second = NOBODY;
    for (int i = 0; i < MAX_CORES; i++) {
        if (!ready[i])
            continue;
        if (first == NOBODY || now(&cores[i]) < now(&cores[first]))
            second = first, first = i;
        else if (second == NOBODY || now(&cores[i]) < now(&cores[second]))
            second = i;
    }
    holder = first;
    limit = second == NOBODY ? 1e300 : now(&cores[second]) + QUANTUM;
    if (first != NOBODY)
        pthread_cond_signal(&turns[first]);
}

static void not_before(int me, double time)
{
    if (now(&cores[me]) < time)
        cores[me].stalled += time - now(&cores[me]);
}

static void enter(int me)
{
    if (!ready[me])
        not_before(me, start);
    ready[me] = true;
    if (holder == NOBODY || holder == me)
        pick();
    else
        limit = -1; /* the holder looks again */
}

static void leave(int me)
{
    ready[me] = false;
    if (holder == me)
        pick();
}

void schedule_start(uint32_t first)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < MAX_CORES; i++) {
        ready[i] = false;
        if (!active && !start)
            pthread_cond_init(&turns[i], NULL);
    }
    start = now(&cores[first]) + 1;
    holder = NOBODY;
    active = true;
    enter((int)first);
    pthread_mutex_unlock(&lock);
}

void schedule_stop(void)
{
    pthread_mutex_lock(&lock);
    active = false;
    for (int i = 0; i < MAX_CORES; i++)
        pthread_cond_signal(&turns[i]);
    pthread_mutex_unlock(&lock);
}

/* Returns when it is the turn of `me`. */
void schedule(uint32_t me)
{
    if (holder == (int)me && now(&cores[me]) <= limit)
        return;
    pthread_mutex_lock(&lock);
    if (active) {
        enter((int)me);
        while (active && holder != (int)me) {
            pthread_cond_wait(&turns[me], &lock);
            if (active && !ready[me])
                enter((int)me); /* a window closed and another opened meanwhile */
        }
    }
    pthread_mutex_unlock(&lock);
}

void schedule_syscall(uint32_t me, int64_t number, uint64_t operation)
{
    switch (number) {
    case SYS_CLOCK_GETTIME: case SYS_SCHED_YIELD: case SYS_PRCTL: case SYS_GETPID: case SYS_GETCPU: case SYS_BRK:
    case SYS_MUNMAP: case SYS_MREMAP: case SYS_MMAP: case SYS_MPROTECT: case SYS_MADVISE: case SYS_CLOSE:
        return; /* these do not wait */
    }
    operation &= FUTEX_OPERATION;
    pthread_mutex_lock(&lock);
    if (number == SYS_FUTEX && (operation == WAKE || operation == WAKE_BITSET))
        states[me] = WAKING;
    else {
        states[me] = number == SYS_FUTEX && (operation == WAIT || operation == WAIT_BITSET) ? WAITING : BLOCKED;
        if (active)
            leave((int)me);
    }
    pthread_mutex_unlock(&lock);
}

void schedule_return(uint32_t me, int64_t result)
{
    if (states[me] == RUNNING)
        return;
    pthread_mutex_lock(&lock);
    if (states[me] == WAKING) {
        struct timespec patience;
        clock_gettime(CLOCK_REALTIME, &patience);
        patience.tv_sec += 1;
        while (arrived < result) /* they are about to return from their wait */
            if (pthread_cond_timedwait(&arrival, &lock, &patience))
                break; /* QEMU itself waited there, as for a thread's end */
        arrived = arrived > result && result > 0 ? arrived - (int)result : result > 0 ? 0 : arrived;
    } else {
        if (states[me] == WAITING && result == 0) {
            if (active && holder != NOBODY)
                not_before((int)me, now(&cores[holder]) + machine.wake); /* the holder is the waker */
            arrived++;
            pthread_cond_signal(&arrival);
        }
        if (active)
            enter((int)me);
    }
    states[me] = RUNNING;
    pthread_mutex_unlock(&lock);
}

void schedule_exit(uint32_t me)
{
    pthread_mutex_lock(&lock);
    if (active)
        leave((int)me);
    pthread_mutex_unlock(&lock);
}
