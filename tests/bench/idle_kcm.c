/*
 * idle_kcm.c - what a process with KCM sockets costs while nothing happens.
 *
 * One thread blocks in recv on a KCM socket, another in epoll_wait on a clone; a message has passed, then all is quiet.
 * Reports processor time and how often any thread was put on or taken off a processor, without the two switches of
 * the sleep that measures.
 */
#include "kcm_user.h"

#include <dirent.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>

#define SETTLE_MS 200
#define OWN_SWITCHES 1 /* going to sleep once */

static int kcm, clone_fd;

static void *block_in_recv(void *unused)
{
	char message[WIRE_MSG_MIN_BYTES];

	(void)unused;
	while (recv(kcm, message, sizeof message, 0) > 0)
		;
	return NULL;
}

static void *block_in_epoll(void *unused)
{
	struct epoll_event event = { .events = EPOLLIN };
	char message[WIRE_MSG_MIN_BYTES];
	int epfd = epoll_create1(0);

	(void)unused;
	if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, clone_fd, &event) < 0)
		die("epoll");
	while (epoll_wait(epfd, &event, 1, -1) == 1)
		recv(clone_fd, message, sizeof message, MSG_DONTWAIT);
	return NULL;
}

static void sleep_ms(unsigned ms)
{
	struct timespec pause = { ms / 1000, (long)(ms % 1000) * 1000000 };

	nanosleep(&pause, NULL);
}

/* Voluntary and involuntary context switches of every thread of this process. */
static long context_switches(void)
{
	long total = 0;
	DIR *tasks = opendir("/proc/self/task");
	struct dirent *task;

	if (!tasks)
		die("/proc/self/task");
	while ((task = readdir(tasks))) {
		char path[300], line[128];
		FILE *status;
		long switches;

		snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
		if (task->d_name[0] == '.' || !(status = fopen(path, "r")))
			continue;
		while (fgets(line, sizeof line, status))
			if (sscanf(line, "voluntary_ctxt_switches: %ld", &switches) == 1)
				total += switches;
		fclose(status);
	}
	closedir(tasks);
	return total;
}

int main(int argc, char **argv)
{
	struct options opt = parse_options(argc, argv, "idle");
	int fds[WIRE_CONNS_MAX], parser = load_parser();
	pthread_t receiver, poller;

	if (opt.conns > WIRE_CONNS_MAX)
		return 2;
	struct peer peer = connect_peer(argv[0], "peer", "quiet", &opt, fds);

	kcm = kcm_open();
	clone_fd = kcm_clone(kcm);
	for (int i = 0; i < opt.conns; i++)
		kcm_attach(kcm, fds[i], parser);
	if (pthread_create(&receiver, NULL, block_in_recv, NULL) || pthread_create(&poller, NULL, block_in_epoll, NULL))
		die("pthread_create");
	write_all(fds[0], "", 1);
	sleep_ms(SETTLE_MS);

	long switches_before = context_switches();
	double cpu_before = cpu_seconds();

	sleep_ms(opt.duration_ms);
	double cpu_ms = (cpu_seconds() - cpu_before) * 1e3;
	long switches = context_switches() - switches_before - OWN_SWITCHES;

	printf("{\"wakeups\": %ld, \"cpu_ms\": %.3f, \"seconds\": %.3f}\n", switches, cpu_ms, opt.duration_ms * 1e-3);
	fflush(stdout);
	for (int i = 0; i < opt.conns; i++)
		shutdown(fds[i], SHUT_WR);
	reap_peer(&peer);
	_exit(0);
}
