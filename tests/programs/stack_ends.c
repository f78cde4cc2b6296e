/* Processes that end while their connections are in use: what the peer, `stack_share peer ADDRESS`, sees.
 *
 *   stack_ends tcp ADDRESS    a thread sleeps in recv(2)
 *   stack_ends kcm ADDRESS    the connection is attached; a thread sleeps in recv(2) on the KCM socket, or none does */
#define _GNU_SOURCE
#include "stack_family.h"

#include <fcntl.h>
#include <pthread.h>

/* Of guest.h, which has another say(). */
int kcm(int type);
int attach(int kcm_fd, int tcp_fd, int bpf_fd);
int prog_const(int value);

enum { ASLEEP = 1, CLOSED = 2 }; /* a thread sleeps; the TCP descriptor is closed before */

static void *sleeps(void *fd)
{
	char byte[64];
	printf("a call came back with %zd\n", recv((int)(long)fd, byte, sizeof byte, 0));
	fflush(stdout);
	return NULL;
}

/* Whether some other thread of this process sleeps in the kernel. */
static int is_asleep(pid_t thread)
{
	char path[64], state = 0;
	snprintf(path, sizeof path, "/proc/self/task/%d/stat", thread);
	FILE *f = fopen(path, "r");
	if (f && fscanf(f, "%*d %*s %c", &state) != 1)
		state = 0;
	if (f)
		fclose(f);
	return state == 'S';
}

static pid_t tid;

static void *starts(void *fd)
{
	__atomic_store_n(&tid, gettid(), __ATOMIC_RELEASE);
	return sleeps(fd);
}

static void sleep_on(int fd)
{
	pthread_t t;
	check(pthread_create(&t, NULL, starts, (void *)(long)fd) == 0, "thread");
	while (!__atomic_load_n(&tid, __ATOMIC_ACQUIRE))
		usleep(1000);
	for (int in_a_row = 0; in_a_row < 20; usleep(1000))
		in_a_row = is_asleep(tid) ? in_a_row + 1 : 0;
}

static void ends(char how)
{
	char *argv[] = { "/bin/true", NULL };
	if (how == '_')
		_exit(0);
	if (how == 'e')
		execv(argv[0], argv);
	exit(0);
}

/* The peer tells of the end: e if it was one, r if it was a reset. */
static void what_the_peer_saw(const char *what, char how)
{
	int fd = dial('L');
	char seen = '?';
	check(recv(fd, &seen, 1, 0) == 1, "what the peer saw");
	printf("%s, %c: %c\n", what, how, seen);
	fflush(stdout);
	close(fd);
}

static void by_tcp(char how)
{
	CHILD({
		char got[6];
		int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		struct sockaddr_in a = at(ip, PORT);
		check(connect(fd, (void *)&a, sizeof a) == 0 && send(fd, "S", 1, 0) == 1, "connect");
		check(recv(fd, got, 6, MSG_WAITALL) == 6, "greeting");
		sleep_on(fd);
		ends(how);
	});
	join("tcp");
	what_the_peer_saw("tcp", how);
}

static void by_kcm(char how, int flags)
{
	CHILD({
		int k = kcm(SOCK_DGRAM), fd = dial('S');
		check(attach(k, fd, prog_const(6)) == 0, "attach");
		fcntl(k, F_SETFD, FD_CLOEXEC);
		fcntl(fd, F_SETFD, FD_CLOEXEC);
		char got[64];
		check(recv(k, got, sizeof got, 0) == 6, "greeting");
		if (flags & CLOSED)
			close(fd);
		if (flags & ASLEEP)
			sleep_on(k);
		ends(how);
	});
	join("kcm");
	what_the_peer_saw(flags & ASLEEP ? "kcm, asleep" : "kcm", how);
}

int main(int argc, char **argv)
{
	check(argc == 3, "usage: stack_ends tcp|kcm ADDRESS");
	ip = argv[2];
	int is_kcm = !strcmp(argv[1], "kcm");
	for (const char *how = "_xe"; *how; how++) {
		if (!is_kcm)
			by_tcp(*how);
		for (int flags = 0; is_kcm && flags <= (ASLEEP | CLOSED); flags++)
			by_kcm(*how, flags);
	}
	return 0;
}
