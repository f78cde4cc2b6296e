/* guard.h: programs of the tests wait for what has to come, however long it takes. What never comes ends them
 * here, after more than the slowest machine needs, and says so. */
#ifndef GUARD_H
#define GUARD_H

#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { GUARD_S = 240 };

static const char *guarded;

static inline void hangs(int sig)
{
	char line[200] = "hangs: ";
	strncat(line, guarded, sizeof line - 20);
	strcat(line, "\n");
	if (write(2, line, strlen(line)) < 0)
		_exit(1);
	signal(sig, SIG_DFL);
	raise(sig); /* once this returns */
}

/* Ends this process by SIGALRM if it is still there after GUARD_S; says then what it was. */
static inline void hang_guard(const char *what)
{
	guarded = what;
	signal(SIGALRM, hangs);
	alarm(GUARD_S);
}

#endif
