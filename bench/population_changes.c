/* Changes: every client asks the server for something else, so many times a second, by the clock.
 *
 * The turns of all clients are spread evenly over the time. Who has not been answered when its next turn comes lets it
 * pass, and that is counted: the load was not what was asked for. Answers are timed from when their turn was due.
 *
 * A text of a change may hold %IN% and %OUT%: the client's spare symbol and the first of its list, which change places.
 */
#include "population.h"

#include <inttypes.h>
#include <sys/timerfd.h>

enum { MOST_TEXTS = 8, MAX_TEXT = 1024, TICK_NS = 2000000 };

static struct {
    bool active;
    uint64_t begin_ns, total, due, sent, missed, answered;
    double per_ns;
    struct histogram answers;
    const char *texts[MOST_TEXTS];
    uint32_t count;
} changes;
static int timer_fd = -1;
static char *texts;

static void set_timer(uint64_t period_ns)
{
    struct itimerspec times = {.it_interval = {0, (long)period_ns}, .it_value = {0, (long)period_ns}};
    if (timer_fd < 0) {
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        watch(timer_fd, EPOLLIN, WATCH_CHANGES, EPOLL_CTL_ADD);
    }
    timerfd_settime(timer_fd, 0, &times, NULL);
}

void start_changes(double per_second, double seconds, uint32_t count, size_t length)
{
    if (!(per_second > 0 && per_second <= 1000 && seconds > 0) || !count || count > MOST_TEXTS || !length)
        die("change: allowed: up to 1000 per second, and 1 to %d texts", MOST_TEXTS);
    texts = realloc(texts, length);
    if (fread(texts, 1, length, stdin) != length || texts[length - 1])
        die("the texts of the changes ended early");
    memset(&changes, 0, sizeof changes);
    const char *at = texts;
    for (uint32_t i = 0; i < count; i++, at += strlen(at) + 1) {
        if (at == texts + length)
            die("change: found %u texts; allowed: as many as announced", i);
        changes.texts[changes.count++] = at;
    }
    changes.total = (uint64_t)(per_second * seconds + 0.5) * options.connections;
    changes.per_ns = per_second * options.connections / 1e9;
    changes.begin_ns = clock_ns(CLOCK_MONOTONIC);
    changes.active = true;
    set_timer(TICK_NS);
}

static void end_if_done(void)
{
    if (!changes.active || changes.due < changes.total || changes.answered < changes.sent)
        return;
    changes.active = false;
    set_timer(0);
    printf("{\"event\":\"changes\",\"asked\":%" PRIu64 ",\"sent\":%" PRIu64 ",\"missed\":%" PRIu64 ",\"seconds\":%.6f,",
           changes.total, changes.sent, changes.missed, (double)(clock_ns(CLOCK_MONOTONIC) - changes.begin_ns) / 1e9);
    print_times("answers", &changes.answers);
    puts("}");
    fflush(stdout);
}

static size_t replace(char *text, const char *place, uint32_t symbol)
{
    char number[16], *found = strstr(text, place);
    if (found) {
        size_t size = (size_t)snprintf(number, sizeof number, "S%u", symbol);
        memmove(found + size, found + strlen(place), strlen(found + strlen(place)) + 1);
        memcpy(found, number, size);
    }
    return strlen(text);
}

static void send_change(struct client *client, uint64_t due_ns)
{
    static char text[MAX_TEXT];
    const char *wanted = changes.texts[client->turn++ % changes.count];
    if ((size_t)snprintf(text, sizeof text - 32, "%s", wanted) >= sizeof text - 32)
        die("the text of a change is too long");
    if (strstr(wanted, "%IN%")) {
        uint32_t out, in = swap_spare((uint32_t)(client - clients), &out);
        replace(text, "%IN%", in);
        replace(text, "%OUT%", out);
    }
    client->asked_ns = due_ns;
    changes.sent++;
    send_text(client, text, strlen(text));
}

void on_changes_due(void)
{
    uint64_t expired, now_ns = clock_ns(CLOCK_MONOTONIC);
    if (read(timer_fd, &expired, sizeof expired) != sizeof expired)
        return;
    uint64_t due = (uint64_t)((double)(now_ns - changes.begin_ns) * changes.per_ns) + 1; /* the first one at once */
    for (; changes.due < due && changes.due < changes.total; changes.due++) {
        struct client *client = &clients[changes.due % options.connections];
        if (client->asked_ns)
            changes.missed++;
        else
            send_change(client, changes.begin_ns + (uint64_t)((double)changes.due / changes.per_ns));
    }
    end_if_done();
}

bool take_answer(struct client *client, const char *line, size_t length, uint64_t now_ns)
{
    if (length < 6 || memcmp(line, "{\"id\":", 6))
        return false;
    if (!client->asked_ns)
        die("connection %td: an answer to nothing", client - clients);
    if (memmem(line, length, "\"error\"", 7))
        die("connection %td: a change was refused", client - clients);
    note(&changes.answers, now_ns > client->asked_ns ? now_ns - client->asked_ns : 0);
    client->asked_ns = 0;
    changes.answered++;
    end_if_done();
    return true;
}
