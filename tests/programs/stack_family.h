/* stack_family.h: programs of several processes whose output is compared between two stacks, and the peer of
 * them, `stack_share peer ADDRESS`, which does with a connection what its first byte says. */
#ifndef STACK_FAMILY_H
#define STACK_FAMILY_H

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "guard.h"

enum { PORT = 7200 };

/* Address of the peer. */
static const char *ip;
static pid_t last_child;

static inline void die(const char *what)
{
	fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
	exit(1);
}

static inline void check(int good, const char *what)
{
	if (!good)
		die(what);
}

static inline struct sockaddr_in at(const char *host, int port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(port) };
	check(inet_pton(AF_INET, host, &a.sin_addr) == 1, "address");
	return a;
}

static inline const char *name(int err)
{
	return err ? strerrorname_np(err) : "-";
}

static inline void say(const char *what, long result)
{
	printf("%s: %ld %s\n", what, result, result < 0 ? name(errno) : "-");
	fflush(stdout);
}

/* A child that does what is in the parentheses and ends with 0; it is `last_child`. */
#define CHILD(...)                                                                 \
	do {                                                                       \
		fflush(stdout);                                                    \
		pid_t child_ = fork();                                             \
		check(child_ >= 0, "fork");                                        \
		if (child_ == 0) {                                                 \
			hang_guard("a child: " #__VA_ARGS__);                      \
			__VA_ARGS__;                                               \
			fflush(stdout);                                            \
			_exit(0);                                                  \
		}                                                                  \
		last_child = child_;                                               \
	} while (0)

static inline void join(const char *what)
{
	int status;
	check(waitpid(last_child, &status, 0) == last_child, "waitpid");
	printf("%s: child ended with %x\n", what, status);
	fflush(stdout);
}

static inline int dial(char what)
{
	struct sockaddr_in a = at(ip, PORT);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	check(connect(fd, (void *)&a, sizeof a) == 0, "connect");
	check(send(fd, &what, 1, 0) == 1, "first byte");
	return fd;
}

/* A reset goes once, and may be lost as any frame; whoever asks again whether the other end is there gets
 * another. */
static inline void probe(int fd)
{
	int one = 1;
	check(setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one) == 0, "SO_KEEPALIVE");
	check(setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &one, sizeof one) == 0, "TCP_KEEPIDLE");
	check(setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &one, sizeof one) == 0, "TCP_KEEPINTVL");
}

static inline void echoes(const char *what, int fd)
{
	char buf[100];
	size_t n = strlen(what);
	check(send(fd, what, n, MSG_NOSIGNAL) == (ssize_t)n, "send");
	check(recv(fd, buf, n, MSG_WAITALL) == (ssize_t)n && !memcmp(buf, what, n), "echo");
	printf("%s comes back\n", what);
	fflush(stdout);
}

static inline void text(const char *what, int fd, size_t most)
{
	char buf[100];
	ssize_t n = recv(fd, buf, most, 0);
	printf("%s: %zd %.*s %s\n", what, n, n > 0 ? (int)n : 0, buf, n < 0 ? name(errno) : "-");
	fflush(stdout);
}

#endif
