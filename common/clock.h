/* Clocks. Monotonic time for every timeout; wall time is only printed. Cores get their time as an argument.
 */
#ifndef COMMON_CLOCK_H
#define COMMON_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#define NS_PER_MS 1000000ull
#define NS_PER_S  1000000000ull

uint64_t clock_now_ns(void);                  /* monotonic */
void clock_wall_text(char *out, size_t size); /* UTC, ISO 8601 with milliseconds: 2026-01-31T12:00:00.123Z */
void clock_sleep_ms(unsigned ms);

#endif
