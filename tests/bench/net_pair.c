/*
 * net_pair.c - the two ends of a TCP measurement.
 *
 *   net_pair serve ADDRESS PORT              one thread, blocking: echoes on each connection in turn
 *   net_pair pingpong ADDRESS PORT SECONDS   round trips of 64 bytes: p50 and p99 in microseconds
 *   net_pair connect ADDRESS PORT SECONDS    connect, one byte there and back, close: how many a second
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BYTES = 64, ROUNDS_MAX = 1000000 };

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;
	return (x > y) - (x < y);
}

static int dial(const struct sockaddr_in *to)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, (const void *)to, sizeof *to))
		die("connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	return fd;
}

static void exchange(int fd, size_t bytes)
{
	char buf[BYTES] = { 0 };
	if (send(fd, buf, bytes, 0) != (ssize_t)bytes || recv(fd, buf, bytes, MSG_WAITALL) != (ssize_t)bytes)
		die("exchange");
}

static void serve(const struct sockaddr_in *at)
{
	char buf[BYTES];
	int one = 1, s = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(s, (const void *)at, sizeof *at) || listen(s, 128))
		die("listen");
	for (;;) {
		int fd = accept(s, NULL, NULL);
		ssize_t n;
		if (fd < 0)
			die("accept");
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		while ((n = recv(fd, buf, sizeof buf, 0)) > 0)
			if (send(fd, buf, n, MSG_NOSIGNAL) != n)
				break;
		close(fd);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in a = { .sin_family = AF_INET };
	if (argc < 4 || inet_pton(AF_INET, argv[2], &a.sin_addr) != 1)
		return 2;
	a.sin_port = htons(atoi(argv[3]));
	if (!strcmp(argv[1], "serve"))
		serve(&a);
	double start = now(), stop = start + (argc > 4 ? atof(argv[4]) : 1);
	size_t rounds = 0;
	if (!strcmp(argv[1], "connect")) {
		/* The server closes last: no port here waits in TIME_WAIT. */
		struct linger reset = { 1, 0 };
		for (; now() < stop; rounds++) {
			int fd = dial(&a);
			exchange(fd, 1);
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
			close(fd);
		}
		printf("{\"per_second\": %.1f}\n", rounds / (now() - start));
		return 0;
	}
	float *micros = malloc(ROUNDS_MAX * sizeof *micros);
	int fd = dial(&a);
	while (now() < stop && rounds < ROUNDS_MAX) {
		double before = now();
		exchange(fd, BYTES);
		micros[rounds++] = (now() - before) * 1e6;
	}
	qsort(micros, rounds, sizeof *micros, by_value);
	printf("{\"p50_us\": %.2f, \"p99_us\": %.2f}\n", micros[rounds / 2], micros[rounds * 99 / 100]);
	return 0;
}
