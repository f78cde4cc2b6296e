/* ctl_stack.c: a listener and a connection of the stack, both ends in this process, for kcmctl to look
 * at. To be run with KCMSHIM_STACK='mem: ADDRESS/16' and ADDRESS, in 10.77.0.0/16 and not 10.77.0.9.
 * Prints the numbers of the listener and the connection; then obeys standard input, a letter each:
 *     r  a UDP socket bound to the wildcard, and connections to 127.0.0.1 and 192.0.2.1, which fail;
 *        prints their numbers
 * and for any other asks for a neighbour that is not there, which makes a frame, and prints "done". */
#include "check.h"

static int to(const char *host, int flags)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(8080)};
	inet_pton(AF_INET, host, &at.sin_addr);
	int fd = socket(AF_INET, SOCK_STREAM | flags, 0);
	CHECK(fd >= 0);
	if (connect(fd, (struct sockaddr *)&at, sizeof at) == -1)
		CHECK(flags && errno == EINPROGRESS);
	return fd;
}

/* Sockets that rules, or defaults, give to others than the stack. */
static void routed(void)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(20000 + getpid() % 10000)};
	int udp = socket(AF_INET, SOCK_DGRAM, 0);
	CHECK(udp >= 0 && bind(udp, (struct sockaddr *)&at, sizeof at) == 0);
	printf("%d", udp);
	for (int i = 0; i < 2; i++) {
		int fd = socket(AF_INET, SOCK_STREAM, 0);
		at.sin_port = htons(1);
		inet_pton(AF_INET, i ? "192.0.2.1" : "127.0.0.1", &at.sin_addr);
		CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&at, sizeof at) == -1);
		printf(" %d", fd);
	}
	printf("\n");
	fflush(stdout);
}

int main(int argc, char **argv)
{
	CHECK(argc == 2);
	struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(8080)};
	inet_pton(AF_INET, argv[1], &here.sin_addr);
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	CHECK(bind(listener, (struct sockaddr *)&here, sizeof here) == 0 && listen(listener, 5) == 0);
	int client = to(argv[1], 0);
	int server = accept(listener, NULL, NULL);
	char got[8];
	CHECK(server >= 0 && send(client, "hello", 5, 0) == 5);
	CHECK(recv(server, got, sizeof got, 0) == 5);
	CHECK(send(server, got, 3, 0) == 3);
	int low = 1;
	FAILS(setsockopt(client, SOL_SOCKET, SO_SNDLOWAT, &low, sizeof low), ENOPROTOOPT);
	printf("%d %d\n", listener, client);
	fflush(stdout);
	while (read(0, got, 1) == 1) {
		if (got[0] == 'r') {
			routed();
			continue;
		}
		close(to("10.77.0.9", SOCK_NONBLOCK));
		puts("done");
		fflush(stdout);
	}
	return 0;
}
