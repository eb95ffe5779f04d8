/* Lines: texts that differ from client to client, such as a token, a room or a list of symbols. */
#include "population.h"

#define PLACE "%LINE%"

static const char **lines;

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
void read_lines(void)
{
    size_t length;
    char *text = read_whole(options.lines, &length), *end = text + length;
    lines = calloc(options.connections, sizeof *lines);
    for (uint32_t i = 0; i < options.connections; i++) {
        char *nul = memchr(text, 0, (size_t)(end - text));
        if (!nul)
            die("%s: found %u lines; allowed: one for each of %u clients", options.lines, i, options.connections);
        lines[i] = text;
        text = nul + 1;
    }
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
