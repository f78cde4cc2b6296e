/* check.h: for programs that check themselves: the first thing that is not as it should be is
 * printed, and the program ends with 1. */
#ifndef CHECK_H
#define CHECK_H

#include "guest.h"
#include "guard.h"

#define CHECK(condition)                                                                           \
	do {                                                                                           \
		if (!(condition)) {                                                                        \
			printf("%s:%d: %s (errno %s)\n", __FILE__, __LINE__, #condition, errno_name(errno));   \
			exit(1);                                                                               \
		}                                                                                          \
	} while (0)

/* The call fails with this errno. */
#define FAILS(call, error)                                                                         \
	do {                                                                                           \
		errno = 0;                                                                                 \
		long result_ = (long)(call);                                                               \
		if (result_ != -1 || errno != (error)) {                                                   \
			printf("%s:%d: %s = %ld, %s instead of %s\n", __FILE__, __LINE__, #call, result_,      \
			       errno_name(errno), #error);                                                     \
			exit(1);                                                                               \
		}                                                                                          \
	} while (0)

#endif
