#include "common/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static _Thread_local char sentence[1024];
static _Thread_local int kept_code;

int err_set(int code, const char *format, ...)
{
    char text[sizeof sentence]; /* the arguments may point into the old sentence */
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    memcpy(sentence, text, sizeof sentence);
    return kept_code = code;
}

int err_prefix(int code, const char *format, ...)
{
    char text[sizeof sentence] = "";
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text - 2, format, args);
    va_end(args);
    strcat(text, ": "); /* room for it was kept */
    size_t n = strlen(text), room = sizeof text - 1 - n, rest = strlen(sentence);
    memcpy(text + n, sentence, rest < room ? rest : room); /* what does not fit is cut */
    memcpy(sentence, text, sizeof sentence);
    sentence[sizeof sentence - 1] = 0;
    return kept_code = code;
}

const char *err_text(void)
{
    return sentence;
}

int err_code(void)
{
    return kept_code;
}

int err_exit_code(int code)
{
    if (code >= 0) return 0;
    if (code == ERR_INTERRUPTED) return 75;
    return code >= ERR_STORAGE ? -code : 1;
}

int err_report(const char *program, int code)
{
    if (code < 0) fprintf(stderr, "%s: %s\n", program, sentence[0] ? sentence : "failed");
    return err_exit_code(code);
}

void err_bug(const char *file, int line, const char *what)
{
    fprintf(stderr, "chorale: bug at %s:%d: %s does not hold; please report this line\n", file, line, what);
    abort();
}

void *xcalloc(unsigned long count, unsigned long size)
{
    void *p = calloc(count ? count : 1, size ? size : 1);
    if (!p) {
        fprintf(stderr, "chorale: out of memory asking for %lu x %lu bytes\n", count, size);
        exit(1);
    }
    return p;
}

#define LINE      64ul
#define HUGE_PAGE (2ul << 20)

/* A pass over a large vector is some tenth faster on huge pages; only whole ones, so that nothing more is
 * used than was asked for. */
void *xaligned(unsigned long bytes)
{
    unsigned long rounded = bytes ? (bytes + LINE - 1) / LINE * LINE : LINE;
    unsigned long huge = rounded / HUGE_PAGE * HUGE_PAGE;
    void *p = NULL;
    if (posix_memalign(&p, huge ? HUGE_PAGE : LINE, rounded)) {
        fprintf(stderr, "chorale: out of memory asking for %lu bytes\n", bytes);
        exit(1);
    }
    if (huge) madvise(p, huge, MADV_HUGEPAGE); /* a wish */
    memset(p, 0, rounded);
    return p;
}

char *xstrdup(const char *text)
{
    size_t n = strlen(text) + 1;
    return memcpy(xcalloc(1, n), text, n);
}

char *xprintf(const char *format, ...)
{
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    char probe[1]; /* gcc warns at NULL under the sanitizers */
    int n = vsnprintf(probe, sizeof probe, format, args);
    ASSERT(n >= 0);
    char *text = xcalloc(1, (size_t)n + 1);
    vsnprintf(text, (size_t)n + 1, format, again);
    va_end(args);
    va_end(again);
    return text;
}
