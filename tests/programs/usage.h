/* usage.h: what a program that runs for long must not have ever more of. */
#ifndef USAGE_H
#define USAGE_H

#include "check.h"

struct usage {
	long memory_kib, mappings, fds;
};

static inline struct usage usage(void)
{
	struct usage now = {.fds = open_fd_count()};
	long pages[2] = {0};
	FILE *f = fopen("/proc/self/statm", "r");
	CHECK(f && fscanf(f, "%ld %ld", &pages[0], &pages[1]) == 2);
	fclose(f);
	now.memory_kib = pages[1] * 4;
	CHECK((f = fopen("/proc/self/maps", "r")));
	for (int c; (c = fgetc(f)) != EOF;)
		now.mappings += c == '\n';
	fclose(f);
	return now;
}

/* Prints both, and checks that `last` is no more than `warm` but for a slack, in memory for so much as
 * bursts leave behind in spare chunks and buffers, one by one. */
static inline void check_steady(struct usage warm, struct usage last, long slack_kib)
{
	enum { SLACK_FDS = 8, SLACK_MAPPINGS = 32 };
	printf("%ld KiB, then %ld; %ld mappings, then %ld; %ld descriptors, then %ld\n", warm.memory_kib, last.memory_kib,
	       warm.mappings, last.mappings, warm.fds, last.fds);
	CHECK(last.memory_kib - warm.memory_kib < slack_kib);
	CHECK(last.mappings - warm.mappings < SLACK_MAPPINGS && last.fds - warm.fds < SLACK_FDS);
}

#endif
