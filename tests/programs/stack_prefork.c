/* A server whose children accept on the listener they inherit.
 *
 *   stack_prefork server ADDRESS    says "listening", ends when its standard input does
 *   stack_prefork wildcard ADDRESS  the same, listening on 0.0.0.0
 *   stack_prefork client ADDRESS    talks to it, and exits with 0 when all went well */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guard.h"

enum { PORT = 7100, CHILDREN = 3, CONNECTIONS = 60, BYTES = 300000 };

static void check(int good, const char *what)
{
	if (!good) {
		fprintf(stderr, "stack_prefork: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static struct sockaddr_in at(const char *ip)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(PORT) };
	check(inet_pton(AF_INET, ip, &a.sin_addr) == 1, "address");
	return a;
}

static void write_all(int fd, const char *bytes, size_t n)
{
	for (ssize_t done; n > 0; bytes += done, n -= done)
		check((done = send(fd, bytes, n, MSG_NOSIGNAL)) > 0, "send");
}

/* One child: waits by epoll, as servers do, and echoes what it reads. */
static void serve(int s, const char *own)
{
	static char buf[1 << 16];
	int ep = epoll_create1(0), one = 1, got;
	struct epoll_event e = { .events = EPOLLIN };
	struct sockaddr_in peer, name;
	socklen_t len;
	ssize_t n;
	check(epoll_ctl(ep, EPOLL_CTL_ADD, s, &e) == 0, "epoll_ctl");
	for (;;) {
		check(epoll_wait(ep, &e, 1, -1) == 1, "epoll_wait");
		len = sizeof peer;
		int fd = accept4(s, (void *)&peer, &len, 0);
		if (fd < 0) {
			check(errno == EAGAIN, "accept"); /* another child was faster */
			continue;
		}
		check(len == sizeof peer && peer.sin_family == AF_INET && peer.sin_port, "peer");
		len = sizeof name;
		check(getpeername(fd, (void *)&name, &len) == 0, "getpeername");
		check(!memcmp(&name.sin_addr, &peer.sin_addr, 4) && name.sin_port == peer.sin_port, "same peer");
		len = sizeof name;
		check(getsockname(fd, (void *)&name, &len) == 0, "getsockname");
		check(name.sin_addr.s_addr == at(own).sin_addr.s_addr && name.sin_port == htons(PORT), "name");
		check(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) == 0, "TCP_NODELAY");
		len = sizeof got;
		check(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &got, &len) == 0 && got == 1, "is on");
		check(getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &got, &len) == 0 && got == AF_INET, "SO_DOMAIN");
		while ((n = read(fd, buf, sizeof buf)) > 0) {
			if (n >= 3 && !memcmp(buf, "die", 3))
				kill(getpid(), SIGKILL);
			write_all(fd, buf, n);
		}
		close(fd);
	}
}

static void server(const char *own, const char *listens)
{
	struct sockaddr_in a = at(listens);
	int s = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	pid_t children[CHILDREN];
	check(bind(s, (void *)&a, sizeof a) == 0 && listen(s, 64) == 0, "listen");
	for (int i = 0; i < CHILDREN; i++) {
		children[i] = fork();
		check(children[i] >= 0, "fork");
		if (children[i] == 0)
			serve(s, own);
	}
	puts("listening");
	fflush(stdout);
	char c;
	while (read(0, &c, 1) > 0)
		;
	for (int i = 0; i < CHILDREN; i++)
		kill(children[i], SIGKILL);
	while (wait(NULL) > 0)
		;
}

static int dial(const char *ip)
{
	struct sockaddr_in a = at(ip);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
	return fd;
}

static void client(const char *ip)
{
	static char out[BYTES], in[BYTES];
	char c;
	for (int i = 0; i < BYTES; i++)
		out[i] = i * 31 >> 3;
	for (int i = 0; i < CONNECTIONS; i++) {
		int fd = dial(ip), half = i % 20 == 10;
		if (half) { /* a child dies with a connection open: its end shows, and nothing else */
			write_all(fd, "die", 3);
			check(recv(fd, &c, 1, 0) <= 0, "the dead child's connection ends");
			if (i / 20 == CHILDREN - 1)
				return;
			close(fd);
			continue;
		}
		size_t total = i % 20 == 5 ? BYTES : 100, got = 0, sent = 0;
		while (got < total) {
			struct pollfd p = { fd, POLLIN | (sent < total ? POLLOUT : 0), 0 };
			check(poll(&p, 1, -1) == 1, "poll");
			if (p.revents & POLLOUT) {
				ssize_t n = send(fd, out + sent, total - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
				check(n > 0 || errno == EAGAIN, "send");
				sent += n > 0 ? n : 0;
			}
			if (p.revents & POLLIN) {
				ssize_t n = recv(fd, in + got, total - got, MSG_DONTWAIT);
				check(n > 0, "recv");
				got += n;
			}
		}
		check(!memcmp(in, out, total), "the bytes are the same");
		check(shutdown(fd, SHUT_WR) == 0 && recv(fd, &c, 1, 0) == 0, "the end comes back");
		close(fd);
	}
}

int main(int argc, char **argv)
{
	check(argc == 3, "usage: stack_prefork server|wildcard|client ADDRESS");
	if (!strcmp(argv[1], "server")) {
		server(argv[2], argv[2]);
	} else if (!strcmp(argv[1], "wildcard")) {
		server(argv[2], "0.0.0.0");
	} else {
		hang_guard("client");
		client(argv[2]);
	}
	return 0;
}
