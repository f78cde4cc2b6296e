/* ctl_guest.c: a KCM socket for kcmctl to look at. Receives three messages, sends one, is refused
 * some calls, and prints the numbers of its KCM and its TCP descriptor. Then obeys standard input, a
 * letter each, until it ends:
 *     m  three messages and an answer again
 *     b  a burst of BURST messages
 *     f  a child that uses the socket; prints its process number
 * and prints "done" after each. */
#include <sys/prctl.h>
#include "check.h"

#define BURST 40000
#define IO_URING_SETUP 425

static char got[64];

static void messages(int k, int peer)
{
	put(peer, "message1message2message3", 24);
	for (int i = 0; i < 3; i++)
		CHECK(recv(k, got, sizeof got, 0) == 8);
	CHECK(send(k, "answer", 6, 0) == 6);
	CHECK(recv(peer, got, 6, MSG_WAITALL) == 6);
}

static void burst(int k, int peer)
{
	for (int i = 0; i < BURST / 100; i++) {
		char lot[800];
		memset(lot, 'b', sizeof lot);
		put(peer, lot, sizeof lot);
		for (int j = 0; j < 100; j++)
			CHECK(recv(k, got, sizeof got, 0) == 8);
	}
}

static void child(int k)
{
	pid_t parent = getpid();
	pid_t pid = fork();
	CHECK(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		CHECK(recv(k, got, sizeof got, MSG_DONTWAIT) == -1);
		printf("%d\n", getpid());
		fflush(stdout);
		for (;;)
			pause();
	}
}

int main(void)
{
	int k = kcm(SOCK_DGRAM);
	struct pair ends = pair();
	int parser = prog_const(8);
	CHECK(k >= 0 && attach(k, ends.a, parser) == 0);
	struct sockaddr address = {.sa_family = AF_UNIX};
	FAILS(bind(k, &address, sizeof address), EOPNOTSUPP);
	FAILS(bind(k, &address, sizeof address), EOPNOTSUPP);
	int on = 1, both[2];
	FAILS(setsockopt(k, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on), EOPNOTSUPP);
	FAILS(socketpair(AF_KCM, SOCK_DGRAM, 0, both), EOPNOTSUPP);
	FAILS(syscall(IO_URING_SETUP, 0, 0), ENOSYS);
	messages(k, ends.p);
	printf("%d %d\n", k, ends.a);
	fflush(stdout);
	char command;
	while (read(0, &command, 1) == 1) {
		switch (command) {
		case 'm':
			messages(k, ends.p);
			break;
		case 'b':
			burst(k, ends.p);
			break;
		case 'f':
			child(k);
			continue;
		default:
			continue;
		}
		puts("done");
		fflush(stdout);
	}
	return 0;
}
