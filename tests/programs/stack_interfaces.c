/* For each address of the kernel's that is named: listens there, connects from the stack, and says from
 * where; then the stack's side sleeps until a byte comes, and the kernel's until its bytes are
 * acknowledged, which nobody but the library can do. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/sockios.h>

#include "trace_check.h"
#include "guard.h"

/* The other side writes while this one sleeps; that it does is likely, and nothing hangs on it. */
static void *write_later(void *fd)
{
	usleep(20000);
	CHECK(write(*(int *)fd, "b", 1) == 1);
	return NULL;
}

static void wait_acknowledged(int fd)
{
	for (int left = 1; left != 0; usleep(1000))
		CHECK(ioctl(fd, SIOCOUTQ, &left) == 0);
}

int main(int argc, char **argv)
{
	hang_guard("stack_interfaces");
	int ours[8], theirs[8];
	for (int i = 1; i < argc && i < 8; i++) {
		struct sockaddr_in peer = { .sin_family = AF_INET, .sin_port = htons(7000) }, own;
		socklen_t length = sizeof own;
		char text[INET_ADDRSTRLEN], byte;
		inet_pton(AF_INET, argv[i], &peer.sin_addr);
		int listener = socket(AF_INET, SOCK_STREAM, 0);
		CHECK(bind(listener, (void *)&peer, sizeof peer) == 0);
		CHECK(listen(listener, 1) == 0);
		ours[i] = socket(AF_INET, SOCK_STREAM, 0);
		CHECK(connect(ours[i], (void *)&peer, sizeof peer) == 0);
		CHECK((theirs[i] = accept(listener, NULL, NULL)) >= 0);
		CHECK(getsockname(ours[i], (void *)&own, &length) == 0);
		CHECK(write(ours[i], "a", 1) == 1);
		CHECK(read(theirs[i], &byte, 1) == 1 && byte == 'a');
		printf("%s from %s\n", argv[i], inet_ntop(AF_INET, &own.sin_addr, text, sizeof text));
	}
	for (int i = 1; i < argc && i < 8; i++) {
		pthread_t thread;
		char byte;
		CHECK(pthread_create(&thread, NULL, write_later, &theirs[i]) == 0);
		CHECK(read(ours[i], &byte, 1) == 1 && byte == 'b');
		pthread_join(thread, NULL);
		CHECK(write(theirs[i], "c", 1) == 1);
		wait_acknowledged(theirs[i]);
		CHECK(read(ours[i], &byte, 1) == 1 && byte == 'c');
	}
	puts("done");
	return 0;
}
