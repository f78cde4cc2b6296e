/* ctl_stack.c: a listener and a connection of the stack, both ends in this process, for kcmctl to look
 * at. To be run with KCMSHIM_STACK='mem: ADDRESS/24' and ADDRESS, not 10.77.0.9. Prints the numbers of the listener and the
 * connection; then, for each letter of standard input, asks for a neighbour that is not there, which
 * makes a frame, and prints "done". */
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
	printf("%d %d\n", listener, client);
	fflush(stdout);
	while (read(0, got, 1) == 1) {
		close(to("10.77.0.9", SOCK_NONBLOCK));
		puts("done");
		fflush(stdout);
	}
	return 0;
}
