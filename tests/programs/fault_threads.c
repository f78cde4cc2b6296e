/* fault_threads [SECONDS]: threads that receive on shared sockets and on clones they make and close,
 * poll, wait in epoll sets, attach and unattach, all at once, while four connections bring numbered
 * messages. Each message arrives once. With SECONDS it goes on in rounds, and memory and descriptors
 * must not grow. */
#include "check.h"
#include <stdatomic.h>

#ifndef EACH
#define EACH 10000 /* messages a connection and round */
#endif
enum { CONNECTIONS = 4, RECEIVERS = 4 };

static int k, program;
static struct pair conns[CONNECTIONS];
static atomic_uchar seen[CONNECTIONS][EACH];
static atomic_int received;

static int all_here(void)
{
	return atomic_load(&received) >= CONNECTIONS * EACH;
}

static void *bring(void *arg)
{
	unsigned c = (intptr_t)arg;
	for (unsigned i = 0; i < EACH; i++) {
		unsigned data[3] = {htonl(8), c, i};
		CHECK(write(conns[c].p, data, sizeof data) == sizeof data);
	}
	return NULL;
}

static void receive_some(int fd, unsigned *seed, int count)
{
	struct epoll_event e = {.events = EPOLLIN};
	int set = -1;
	while (count-- && !all_here()) {
		unsigned data[3];
		struct pollfd p = {.fd = fd, .events = POLLIN};
		switch (rand_r(seed) % 8) {
		case 0:
			poll(&p, 1, 5);
			break;
		case 1:
			if (set < 0) {
				set = epoll_create1(EPOLL_CLOEXEC);
				CHECK(set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, fd, &e) == 0);
			}
			epoll_wait(set, &e, 1, 5);
			break;
		}
		ssize_t got = recv(fd, data, sizeof data, rand_r(seed) % 2 ? DW : 0);
		if (got < 0) {
			CHECK(errno == EAGAIN);
			continue;
		}
		CHECK(got == sizeof data && data[1] < CONNECTIONS && data[2] < EACH);
		CHECK(atomic_exchange(&seen[data[1]][data[2]], 1) == 0);
		atomic_fetch_add(&received, 1);
	}
	if (set >= 0)
		close(set);
}

static void *receive(void *arg)
{
	unsigned seed = (intptr_t)arg;
	while (!all_here()) {
		int shared = rand_r(&seed) % 4 == 0, fd = shared ? k : clone_kcm(k);
		CHECK(fd >= 0 && set_timeout(fd, SO_RCVTIMEO, 2) == 0);
		receive_some(fd, &seed, shared ? 500 : 30);
		if (!shared)
			close(fd);
	}
	return NULL;
}

static void *attach_and_unattach(void *arg)
{
	struct pair idle = pair();
	while (!all_here()) {
		CHECK(attach(k, idle.a, program) == 0);
		usleep(200);
		CHECK(unattach(k, idle.a) == 0);
	}
	close(idle.a);
	close(idle.p);
	return arg;
}

static void *look(void *arg)
{
	while (!all_here()) {
		fd_set set;
		struct timeval soon = {.tv_usec = 2000};
		FD_ZERO(&set);
		FD_SET(k, &set);
		FD_SET(conns[0].a, &set);
		CHECK(select(FD_SETSIZE, &set, NULL, NULL, &soon) >= 0);
		usleep(500);
	}
	return arg;
}

static void one_round(unsigned round)
{
	pthread_t threads[CONNECTIONS + RECEIVERS + 2];
	size_t count = 0;
	memset(seen, 0, sizeof seen);
	received = 0;
	k = kcm(SOCK_DGRAM);
	for (int c = 0; c < CONNECTIONS; c++)
		conns[c] = attached(k, program);
	for (intptr_t c = 0; c < CONNECTIONS; c++)
		threads[count++] = spawn(bring, (void *)c);
	for (intptr_t r = 0; r < RECEIVERS; r++)
		threads[count++] = spawn(receive, (void *)(r + 1 + round * RECEIVERS));
	threads[count++] = spawn(attach_and_unattach, NULL);
	threads[count++] = spawn(look, NULL);
	while (count)
		pthread_join(threads[--count], NULL);
	for (int c = 0; c < CONNECTIONS; c++) {
		close(conns[c].a);
		close(conns[c].p);
	}
	close(k);
}

static long resident_kib(void)
{
	long pages[2] = {0};
	FILE *f = fopen("/proc/self/statm", "r");
	CHECK(f && fscanf(f, "%ld %ld", &pages[0], &pages[1]) == 2);
	fclose(f);
	return pages[1] * 4;
}

/* Rounds until doorbells, chunks and arenas are as many as they will be, and what may still come. */
enum { WARM_ROUNDS = 20, SLACK_KIB = 4096, SLACK_FDS = 8 };

int main(int argc, char **argv)
{
	long end = now_ms() + (argc > 1 ? atol(argv[1]) : 0) * 1000, memory = 0;
	int fds = 0;
	unsigned round = 0;
	program = prog_p4();
	do {
		hang_guard("fault_threads");
		one_round(round++);
		if (round == WARM_ROUNDS)
			memory = resident_kib(), fds = open_fd_count();
	} while (now_ms() < end);
	if (round > WARM_ROUNDS) {
		printf("%u rounds: %ld KiB, then %ld; %d descriptors, then %d\n", round, memory, resident_kib(), fds, open_fd_count());
		CHECK(resident_kib() - memory < SLACK_KIB && open_fd_count() - fds < SLACK_FDS);
	}
	return 0;
}
