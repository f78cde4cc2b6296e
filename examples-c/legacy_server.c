/* SPDX-License-Identifier: MIT */
/*
 * legacy_server - a plain epoll echo server over TCP, with no idea of KCM.
 *
 *     cc -O2 legacy_server.c -o legacy_server -pthread
 *     ./legacy_server [-p port]                     default: a free port
 *
 * Expected output; bytes written to a connection come back on it:
 *
 *     legacy_server: listening on 127.0.0.1:4000
 *
 * It stands for the programs that exist: what they do must not change under a
 * preloaded library.  One thread, level-triggered, one buffer a connection: while
 * an echo is unsent it waits for room and reads no more, so that a peer that does
 * not read is slowed down by its own window and costs no memory here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 65536, EVENTS = 64 };

struct connection {
	int fd;
	size_t begin, end; /* the unsent part of the buffer */
	char buffer[BUFFER];
};

static void die(const char *what)
{
	fprintf(stderr, "legacy_server: %s: %s (errno %d)\n", what, strerror(errno), errno);
	exit(1);
}

static int listen_on(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket");
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one))
		die("setsockopt(SO_REUSEADDR)");
	if (bind(fd, (struct sockaddr *)&address, sizeof address))
		die("bind");
	if (listen(fd, SOMAXCONN))
		die("listen");
	return fd;
}

static int port_of(int fd)
{
	struct sockaddr_in address;
	socklen_t size = sizeof address;

	if (getsockname(fd, (struct sockaddr *)&address, &size))
		die("getsockname");
	return ntohs(address.sin_port);
}

static void watch(int epoll, int operation, int fd, uint32_t events, void *pointer)
{
	struct epoll_event event = { .events = events, .data.ptr = pointer };

	if (epoll_ctl(epoll, operation, fd, &event))
		die("epoll_ctl");
}

static void accept_all(int epoll, int listener)
{
	int fd, one = 1;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct connection *c = malloc(sizeof *c);

		if (!c)
			die("malloc");
		c->fd = fd;
		c->begin = c->end = 0;
		if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
			die("setsockopt(TCP_NODELAY)");
		watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, c);
	}
	if (errno == EMFILE || errno == ENFILE)
		usleep(10000); /* connections wait in the backlog until others end */
	else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
		die("accept4");
}

/* Moves bytes one step.  Returns 0 when the connection has ended. */
static int echo(int epoll, struct connection *c)
{
	ssize_t n;

	if (c->begin == c->end) {
		n = recv(c->fd, c->buffer, sizeof c->buffer, 0);
		if (n <= 0)
			return n < 0 && (errno == EAGAIN || errno == EINTR);
		c->begin = 0;
		c->end = (size_t)n;
	}
	n = send(c->fd, c->buffer + c->begin, c->end - c->begin, MSG_NOSIGNAL);
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return 0;
	if (n > 0)
		c->begin += (size_t)n;
	watch(epoll, EPOLL_CTL_MOD, c->fd, c->begin == c->end ? EPOLLIN : EPOLLOUT, c);
	return 1;
}

int main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];
	int option, epoll, listener, count, i, port = 0;

	while ((option = getopt(argc, argv, "p:")) != -1) {
		if (option != 'p')
			return 2;
		port = atoi(optarg);
	}
	listener = listen_on(port);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
	watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, NULL);
	printf("legacy_server: listening on 127.0.0.1:%d\n", port_of(listener));
	fflush(stdout);

	for (;;) {
		count = epoll_wait(epoll, events, EVENTS, -1);
		if (count < 0 && errno != EINTR)
			die("epoll_wait");
		for (i = 0; i < count; i++) {
			struct connection *c = events[i].data.ptr;

			if (!c) {
				accept_all(epoll, listener);
			} else if (!echo(epoll, c)) {
				close(c->fd);
				free(c);
			}
		}
	}
}
