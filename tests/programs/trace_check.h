/* trace_check.h: checks of programs whose output is compared between two stacks: what does not hold is the
 * last line of the trace, and no failure by itself. */
#ifndef TRACE_CHECK_H
#define TRACE_CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(expression)                                                                 \
	do {                                                                                  \
		if (!(expression)) {                                                              \
			printf("line %d: %s\n", __LINE__, strerrorname_np(errno));                    \
			exit(0);                                                                      \
		}                                                                                 \
	} while (0)

#endif
