/*
 * start_cost.c LIBRARY PROGRAM [ARGS] - what preloading LIBRARY adds to running PROGRAM, from spawn to exit status:
 * alternated runs with and without, medians in milliseconds.
 */
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

#define RUNS 200

extern char **environ;

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double run_ms(char **command, char **environment)
{
	double start = now_seconds();
	pid_t child;
	int status;

	if (posix_spawn(&child, command[0], NULL, NULL, command, environment) || waitpid(child, &status, 0) < 0 || status)
		die(command[0]);
	return (now_seconds() - start) * 1e3;
}

int main(int argc, char **argv)
{
	static double with[RUNS], without[RUNS];
	char preload[4096], *hooked[] = { preload, NULL }, *bare[] = { NULL };

	if (argc < 3)
		return 2;
	snprintf(preload, sizeof preload, "LD_PRELOAD=%s", argv[1]);
	for (int i = 0; i < RUNS; i++) {
		without[i] = run_ms(argv + 2, bare);
		with[i] = run_ms(argv + 2, hooked);
	}
	qsort(with, RUNS, sizeof *with, by_value);
	qsort(without, RUNS, sizeof *without, by_value);
	printf("{\"without_ms\": %.3f, \"with_ms\": %.3f, \"added_ms\": %.3f}\n", without[RUNS / 2], with[RUNS / 2],
	       with[RUNS / 2] - without[RUNS / 2]);
	return 0;
}
