/* traced.c - a small TCP echo in one process with two threads: what strace and gdb look at. `wait`: sleeps instead. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROUNDS 3

struct request {
	int round;
	char text[16];
};

int answer(int fd, struct request request)
{
	snprintf(request.text, sizeof request.text, "answer %d", request.round);
	return (int)send(fd, &request, sizeof request, 0);
}

static void *serve(void *arg)
{
	int fd = accept4(*(int *)arg, NULL, NULL, SOCK_CLOEXEC);
	struct request request;

	while (recv(fd, &request, sizeof request, 0) == sizeof request)
		answer(fd, request);
	close(fd);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof at;
	int listener, fd;
	pthread_t thread;

	if (argc > 1 && !strcmp(argv[1], "wait"))
		for (;;)
			pause();
	listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&at, len) < 0 || listen(listener, 1) < 0 ||
	    getsockname(listener, (struct sockaddr *)&at, &len) < 0)
		return 1;
	fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&at, len) < 0) {
		printf("connect: %s\n", strerror(errno));
		return 3;
	}
	pthread_create(&thread, NULL, serve, &listener);
	for (int round = 0; round < ROUNDS; round++) {
		struct request request = { round, "request" };

		if (send(fd, &request, sizeof request, 0) < 0 || recv(fd, &request, sizeof request, 0) < 0)
			return 2;
		printf("echoed %d: %s\n", request.round, request.text);
	}
	shutdown(fd, SHUT_WR);
	pthread_join(thread, NULL);
	close(fd);
	close(listener);
	return 0;
}
