/* Figures: what is counted, how late messages were, and the lines that say so. */
#include "population.h"

#include <inttypes.h>

struct counts counts;
bool stamped;
static struct histogram latencies;
static uint64_t began_ns, began_cpu_ns;

uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static unsigned bucket_of(uint64_t ns)
{
    unsigned power = 63 - (unsigned)__builtin_clzll(ns | SUB_BUCKETS);
    unsigned shift = power - 5; /* SUB_BUCKETS is 2 to the 5th */
    return shift * SUB_BUCKETS + (unsigned)(ns >> shift);
}

static uint64_t bucket_floor_ns(unsigned bucket)
{
    if (bucket < 2 * SUB_BUCKETS)
        return bucket;
    unsigned shift = bucket / SUB_BUCKETS - 1;
    return (uint64_t)(bucket % SUB_BUCKETS + SUB_BUCKETS) << shift;
}

void note(struct histogram *histogram, uint64_t ns)
{
    histogram->buckets[bucket_of(ns)]++;
    histogram->count++;
    histogram->total_ns += ns;
    if (ns > histogram->worst_ns)
        histogram->worst_ns = ns;
}

static double percentile_us(const struct histogram *histogram, double share)
{
    uint64_t below = 0, wanted = (uint64_t)(share * (double)histogram->count);
    for (unsigned i = 0; i < BUCKETS; i++) {
        below += histogram->buckets[i];
        if (below > wanted)
            return (double)bucket_floor_ns(i) / 1000;
    }
    return (double)histogram->worst_ns / 1000;
}

void print_times(const char *name, const struct histogram *times)
{
    double mean_us = times->count ? (double)times->total_ns / (double)times->count / 1000 : 0;
    printf("\"%s\":%" PRIu64 ",\"mean_us\":%.1f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f,\"max_us\":%.1f",
           name, times->count, mean_us, percentile_us(times, 0.5), percentile_us(times, 0.99),
           percentile_us(times, 0.999), (double)times->worst_ns / 1000);
}

void reset(void)
{
    memset(&counts, 0, sizeof counts);
    memset(&latencies, 0, sizeof latencies);
    for (uint32_t i = 0; i < options.connections; i++)
        clients[i].received = 0;
    reset_ticks();
    began_ns = clock_ns(CLOCK_MONOTONIC);
    began_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

void report(const char *event)
{
    double seconds = (double)(clock_ns(CLOCK_MONOTONIC) - began_ns) / 1e9;
    double cpu_seconds = (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - began_cpu_ns) / 1e9;
    uint32_t least = UINT32_MAX, most = 0;
    for (uint32_t i = stalled; i < options.connections; i++) {
        least = clients[i].received < least ? clients[i].received : least;
        most = clients[i].received > most ? clients[i].received : most;
    }
    printf("{\"event\":\"%s\",\"connections\":%u,\"ready\":%u,\"seconds\":%.6f,\"cpu_seconds\":%.6f,"
           "\"messages\":%" PRIu64 ",\"least\":%u,\"most\":%u,\"excess\":%" PRIu64 ",\"payload_bytes\":%" PRIu64
           ",\"wire_bytes\":%" PRIu64 ",\"reads\":%" PRIu64 ",\"pings\":%" PRIu64 ",",
           event, options.connections, ready_now, seconds, cpu_seconds, counts.messages, least, most, counts.excess,
           counts.payload_bytes, counts.wire_bytes, counts.reads, counts.pings);
    print_times("latencies", &latencies);
    puts("}");
    fflush(stdout);
}

void write_stamp(char *digits, uint64_t ns)
{
    for (int i = STAMP_DIGITS; i--; ns /= 10)
        digits[i] = (char)('0' + ns % 10);
}

/* The text after MARKER as a time; where it stood last time is looked at first. */
void measure_latency(const char *payload, size_t length, uint64_t now_ns)
{
    static size_t last;
    const size_t marker = sizeof MARKER - 1;
    const char *found = NULL;
    if (!stamped)
        return; /* a search in vain in each of very many messages would be the population's largest cost */
    if (length >= last + marker + STAMP_DIGITS && !memcmp(payload + last, MARKER, marker))
        found = payload + last;
    else if (!(found = memmem(payload, length, MARKER, marker)))
        return;
    last = (size_t)(found - payload);
    if (last + marker + STAMP_DIGITS > length)
        return;
    uint64_t sent_ns = 0;
    for (const char *digit = found + marker; digit < found + marker + STAMP_DIGITS; digit++)
        sent_ns = sent_ns * 10 + (uint64_t)(*digit - '0');
    note(&latencies, now_ns > sent_ns ? now_ns - sent_ns : 0);
}
