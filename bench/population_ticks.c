/* Ticks: what each client holds of the symbols that it watches, and how old that is.
 *
 * A tick is data of the shape {"symbol":"S17",…,"seq":4,"time_ns":"123"}, its time that of CLOCK_MONOTONIC. Every one
 * that reaches a client is compared with what the client has of that symbol: a lower `seq` is an older value after a
 * newer one, the same a repeated one, a jump has been merged. Nothing is sampled.
 *
 * --symbols N: how many there are. --watches FILE: for each client the numbers of those that it watches, ended by NUL;
 * behind them one more, its spare, which it does not watch yet (population_changes.c).
 */
#include "population.h"

#include <inttypes.h>

enum { MOST_WATCHED = 254 };
static const char SYMBOL[] = "\"symbol\":\"S", SEQ[] = "\"seq\":", TIME[] = "\"time_ns\":\"";

struct holding {
    uint64_t seq, time_ns; /* time_ns 0: nothing since the last reset */
    uint32_t symbol;
    bool watched;
    bool fresh; /* just added: its newest value comes at once, which may be the one held from before */
};
struct watcher {
    struct holding *holdings;
    uint8_t *places;     /* of each symbol: its holding's number + 1 */
    uint32_t count;      /* of the holdings, the spare included */
    uint64_t newest_ns;  /* of all that it has received since the last reset */
};

static struct watcher *watchers;
static struct {
    uint64_t delivered, merged, added, older, repeated, foreign;
} seen;
static struct {
    struct histogram late, held, newest;
} times[2]; /* of the fast, and of those behind thin links */

static void read_list(struct watcher *watcher, const char *list)
{
    static uint32_t symbols[MOST_WATCHED];
    char *end;
    for (watcher->count = 0; *list; list = *end ? end + 1 : end) {
        unsigned long symbol = strtoul(list, &end, 10);
        if (end == list || symbol >= options.symbols || watcher->count == MOST_WATCHED)
            die("--watches: found %.20s; allowed: %d numbers below --symbols", list, MOST_WATCHED);
        symbols[watcher->count++] = (uint32_t)symbol;
    }
    if (watcher->count < 2)
        die("--watches: found a list of %u; allowed: a symbol and the spare, or more", watcher->count);
    watcher->holdings = calloc(watcher->count, sizeof *watcher->holdings);
    watcher->places = calloc(options.symbols, 1);
    for (uint32_t i = 0; i < watcher->count; i++) {
        watcher->holdings[i].symbol = symbols[i];
        watcher->holdings[i].watched = i + 1 < watcher->count;
        watcher->places[symbols[i]] = (uint8_t)(i + 1);
    }
}

void prepare_ticks(void)
{
    if (!options.symbols)
        return;
    if (!options.watches)
        die("--symbols needs --watches");
    watchers = calloc(options.connections, sizeof *watchers);
    for (uint32_t i = 0; i < options.connections; i++)
        read_list(&watchers[i], watches_of(i));
}

/* The spare and the first of the list change places; returns what is added, and tells what is taken away. */
uint32_t swap_spare(uint32_t index, uint32_t *removed)
{
    struct watcher *watcher = &watchers[index];
    struct holding *first = watcher->holdings, *spare = first + watcher->count - 1;
    struct holding *in = first->watched ? spare : first, *out = first->watched ? first : spare;
    in->watched = in->fresh = true;
    out->watched = false;
    *removed = out->symbol;
    return in->symbol;
}

static void take_tick(struct client *client, uint32_t symbol, uint64_t seq, uint64_t time_ns, uint64_t now_ns)
{
    uint32_t index = (uint32_t)(client - clients);
    struct watcher *watcher = &watchers[index];
    uint8_t place = symbol < options.symbols ? watcher->places[symbol] : 0;
    if (!place) {
        seen.foreign++;
        return;
    }
    struct holding *holding = &watcher->holdings[place - 1];
    bool thin = is_thin(index);
    /* A value of what was just taken away may have been on its way; behind the answer there must be none. */
    if (!holding->watched && !client->asked_ns)
        seen.foreign++;
    if (seq < holding->seq)
        seen.older++;
    else if (seq == holding->seq && !holding->fresh)
        seen.repeated++;
    if (holding->fresh || !now_ns) {
        seen.added++;
    } else {
        seen.delivered++;
        seen.merged += seq > holding->seq ? seq - holding->seq - 1 : 0;
        note(&times[thin].late, now_ns - time_ns);
        if (holding->time_ns)
            note(&times[thin].held, now_ns - holding->time_ns);
        if (watcher->newest_ns)
            note(&times[thin].newest, now_ns - watcher->newest_ns);
        if (time_ns > watcher->newest_ns)
            watcher->newest_ns = time_ns;
    }
    holding->fresh = false;
    holding->time_ns = time_ns;
    if (seq > holding->seq)
        holding->seq = seq;
}

static const char *behind(const char *at, const char *end, const char *marker)
{
    const char *found = memmem(at, (size_t)(end - at), marker, strlen(marker));
    if (!found)
        die("a tick without %.*s: %.*s", (int)strcspn(marker + 1, "\""), marker + 1, (int)strcspn(at, "\"\n"), at);
    return found + strlen(marker);
}

static uint64_t number_at(const char *at, const char *end)
{
    uint64_t value = 0;
    for (; at < end && *at >= '0' && *at <= '9'; at++)
        value = value * 10 + (uint64_t)(*at - '0');
    return value;
}

uint32_t take_ticks(struct client *client, const char *text, size_t length, uint64_t now_ns)
{
    uint32_t found = 0;
    const char *at = text, *end = text + length;
    for (; (at = memmem(at, (size_t)(end - at), SYMBOL, sizeof SYMBOL - 1)); found++) {
        uint32_t symbol = (uint32_t)number_at(at += sizeof SYMBOL - 1, end);
        uint64_t seq = number_at(at = behind(at, end, SEQ), end);
        take_tick(client, symbol, seq, number_at(at = behind(at, end, TIME), end), now_ns);
    }
    return found;
}

void take_lines(struct client *client, const char *payload, size_t length, uint64_t now_ns)
{
    const char *at = payload, *end = payload + length, *next;
    for (; at < end; at = next) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        next = newline ? newline + 1 : end;
        size_t size = (size_t)((newline ? newline : end) - at);
        if (take_answer(client, at, size, now_ns))
            continue;
        if (!take_ticks(client, at, size, now_ns))
            die("connection %td: no tick: %.*s", client - clients, (int)strcspn(at, "\"\n"), at);
    }
}

void reset_ticks(void)
{
    memset(&seen, 0, sizeof seen);
    memset(times, 0, sizeof times);
    for (uint32_t i = 0; watchers && i < options.connections; i++) {
        watchers[i].newest_ns = 0;
        for (uint32_t k = 0; k < watchers[i].count; k++)
            watchers[i].holdings[k].time_ns = 0;
    }
}

static void print_group(const char *name, int thin)
{
    const struct histogram *all[] = {&times[thin].late, &times[thin].held, &times[thin].newest};
    const char *names[] = {"late", "held", "newest"};
    printf(",\"%s\":{", name);
    for (int i = 0; i < 3; i++) {
        printf("%s\"%s\":{", i ? "," : "", names[i]);
        print_times("count", all[i]);
        printf("}");
    }
    printf("}");
}

void report_ticks(void)
{
    printf("{\"event\":\"ticks\",\"delivered\":%" PRIu64 ",\"merged\":%" PRIu64 ",\"added\":%" PRIu64
           ",\"older\":%" PRIu64 ",\"repeated\":%" PRIu64 ",\"foreign\":%" PRIu64,
           seen.delivered, seen.merged, seen.added, seen.older, seen.repeated, seen.foreign);
    print_group("fast", 0);
    print_group("thin", 1);
    puts("}");
    fflush(stdout);
}

/* LENGTH bytes of numbers: each symbol's newest `seq`, which all who watch it should hold. */
void compare_held(size_t length)
{
    char *text = calloc(1, length + 1), *at = text;
    uint64_t *last = calloc(options.symbols + 1, sizeof *last), behind = 0, ahead = 0, held = 0;
    uint32_t lacking = 0;
    if (!watchers || fread(text, 1, length, stdin) != length)
        die("held needs --symbols, and a list as long as announced");
    for (uint32_t i = 0; i < options.symbols; i++)
        last[i] = strtoull(at, &at, 10);
    for (uint32_t i = 0; i < options.connections; i++) {
        uint64_t before = behind;
        for (uint32_t k = 0; k < watchers[i].count; k++) {
            const struct holding *holding = &watchers[i].holdings[k];
            if (!holding->watched)
                continue;
            held += holding->seq == last[holding->symbol];
            behind += holding->seq < last[holding->symbol];
            ahead += holding->seq > last[holding->symbol];
        }
        lacking += behind > before;
    }
    free(text);
    free(last);
    printf("{\"event\":\"held\",\"held\":%" PRIu64 ",\"behind\":%" PRIu64 ",\"ahead\":%" PRIu64 ",\"clients\":%u}\n",
           held, behind, ahead, lacking);
    fflush(stdout);
}
