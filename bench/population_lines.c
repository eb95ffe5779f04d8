/* Lines: texts that differ from client to client, such as a token, a room or a list of symbols, or its answer. */
#include "population.h"

#define PLACE "%LINE%"

static const char **lines, **answers, **watches;

static char *read_whole(const char *path, size_t *length)
{
    FILE *file = fopen(path, "r");
    char *text = NULL;
    size_t room = 0;
    if (!file)
        die("%s: %s", path, strerror(errno));
    for (*length = 0; !feof(file) && !ferror(file);) {
        text = realloc(text, room = 2 * room + 65536);
        *length += fread(text + *length, 1, room - *length, file);
    }
    fclose(file);
    return text;
}

/* NUL ends a line, because what clients say may have several. */
static const char **lines_of(const char *path)
{
    size_t length;
    char *text = read_whole(path, &length), *end = text + length;
    const char **found = calloc(options.connections, sizeof *found);
    for (uint32_t i = 0; i < options.connections; i++) {
        char *nul = memchr(text, 0, (size_t)(end - text));
        if (!nul)
            die("%s: found %u lines; allowed: one for each of %u clients", path, i, options.connections);
        found[i] = text;
        text = nul + 1;
    }
    return found;
}

void read_lines(void)
{
    if (options.lines)
        lines = lines_of(options.lines);
    if (options.answers)
        answers = lines_of(options.answers);
    if (options.watches)
        watches = lines_of(options.watches);
}

const char *answer_to(uint32_t index)
{
    return answers ? answers[index] : NULL;
}

const char *watches_of(uint32_t index)
{
    return watches[index];
}

static size_t put(char *to, size_t room, const char *text, size_t length)
{
    if (length > room)
        die("a text to send is too long");
    memcpy(to, text, length);
    return length;
}

size_t fill_in(char *to, size_t room, const char *text, uint32_t index)
{
    size_t size = 0;
    for (const char *place; lines && (place = strstr(text, PLACE)); text = place + sizeof PLACE - 1) {
        size += put(to + size, room - size, text, (size_t)(place - text));
        size += put(to + size, room - size, lines[index], strlen(lines[index]));
    }
    return size + put(to + size, room - size, text, strlen(text));
}
