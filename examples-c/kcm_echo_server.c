/* SPDX-License-Identifier: MIT */
/*
 * kcm_echo_server - echoes messages from any number of TCP connections on N threads.
 *
 *     cc -O2 kcm_echo_server.c -o kcm_echo_server -pthread
 *     ./kcm_echo_server [-p port] [-t threads]      defaults: a free port, 4 threads
 *
 * Expected output; the last lines come on SIGINT or SIGTERM:
 *
 *     kcm_echo_server: listening on 127.0.0.1:4000, 4 threads
 *     thread 0: 25012 messages
 *     thread 1: 24996 messages
 *     ...
 *
 * A message is a 32-bit big-endian length and that many bytes (kcm_load speaks it).
 *
 * All connections share one multiplexor, and each thread owns a clone of the KCM
 * socket: a message that completes on any connection wakes one idle thread.  No
 * thread ever sees half a message, and no queue or lock of ours lies between them.
 * The price: a KCM socket knows no connections, so an echo leaves on whichever is
 * free.  That suits a peer that treats its connections as one pool and matches
 * answers by id, as kcm_load and kcm_client_pool do.  Where answers must return on
 * the connection of the question, use one multiplexor each: see kcm_dns_server.
 */
#define _GNU_SOURCE
#include "../c-header/kcm.h"
#include "../c-header/kcm_parser.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>

/* KCM takes no message longer than SO_RCVBUF of its TCP socket, 128 KiB where nobody set it. */
enum { HEADER = 4, MESSAGE_MAX = 65536, THREADS_MAX = 256, EVENTS = 64, BATCH_MAX = 64 };

struct worker {
	pthread_t thread;
	int kcm; /* this thread's own clone */
	atomic_ulong messages;
};

struct acceptor {
	int kcm; /* any KCM socket of the multiplexor */
	int bpf;
	int listener;
};

static void die(const char *what)
{
	fprintf(stderr, "kcm_echo_server: %s: %s (errno %d)\n", what, strerror(errno), errno);
	exit(1);
}

static int listen_on(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket(AF_INET)");
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

/* Sends one message, or with none ends the batch, waiting for room as it needs to. */
static void send_message(int kcm, const char *message, size_t size, int flags)
{
	/* On SOCK_SEQPACKET it is MSG_EOR that ends a message. */
	while (send(kcm, message, size, MSG_EOR | flags) < 0)
		if (errno != EINTR)
			die("send(KCM)");
}

/*
 * One worker.  While messages wait, echoes gather under MSG_BATCH and leave in one
 * write; when none is left an empty send lets them go and the thread sleeps.
 */
static void *echo(void *argument)
{
	struct worker *self = argument;
	char *message = malloc(MESSAGE_MAX); /* the parser refuses longer ones */
	int batched = 0;

	if (!message)
		die("malloc");
	for (;;) {
		ssize_t size = recv(self->kcm, message, MESSAGE_MAX, batched ? MSG_DONTWAIT : 0);

		if (size >= 0) {
			send_message(self->kcm, message, (size_t)size, MSG_BATCH);
			atomic_fetch_add_explicit(&self->messages, 1, memory_order_relaxed);
			batched++;
		} else if (errno != EAGAIN && errno != EINTR) {
			die("recv(KCM)");
		}
		if (batched && (size < 0 || batched == BATCH_MAX)) {
			send_message(self->kcm, NULL, 0, 0);
			batched = 0;
		}
	}
	return NULL; /* the loop ends with the process */
}

/* Puts every waiting connection under the multiplexor. */
static void accept_all(const struct acceptor *self, int epoll)
{
	struct epoll_event event = { .events = EPOLLRDHUP };
	struct kcm_attach attach = { .bpf_fd = self->bpf };
	int one = 1;

	while ((attach.fd = accept4(self->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		if (setsockopt(attach.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
			die("setsockopt(TCP_NODELAY)");
		if (ioctl(self->kcm, SIOCKCMATTACH, &attach)) {
			close(attach.fd); /* the peer has reset it already */
			continue;
		}
		event.data.fd = attach.fd;
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, attach.fd, &event))
			die("epoll_ctl");
	}
	if (errno == EMFILE || errno == ENFILE)
		usleep(10000); /* connections wait in the backlog until others end */
	else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
		die("accept4");
}

/*
 * Accepts and retires connections.  A KCM socket never reports the end of a
 * stream: the TCP descriptors do, so they stay open and are watched here.
 */
static void *look_after_connections(void *argument)
{
	struct acceptor *self = argument;
	struct epoll_event events[EVENTS], event = { .events = EPOLLIN, .data.fd = self->listener };
	int i, count, epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0)
		die("epoll_create1");
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, self->listener, &event))
		die("epoll_ctl");
	for (;;) {
		count = epoll_wait(epoll, events, EVENTS, -1);
		if (count < 0 && errno != EINTR)
			die("epoll_wait");
		for (i = 0; i < count; i++) {
			struct kcm_unattach gone = { .fd = events[i].data.fd };

			if (gone.fd == self->listener) {
				accept_all(self, epoll);
				continue;
			}
			if (ioctl(self->kcm, SIOCKCMUNATTACH, &gone))
				die("ioctl(SIOCKCMUNATTACH)");
			close(gone.fd);
		}
	}
	return NULL; /* the loop ends with the process */
}

static struct worker *start_workers(int kcm, int threads)
{
	struct worker *workers = calloc((size_t)threads, sizeof *workers);
	int i;

	if (!workers)
		die("calloc");
	for (i = 0; i < threads; i++) {
		struct kcm_clone clone = { .fd = -1 };

		if (i > 0 && ioctl(kcm, SIOCKCMCLONE, &clone))
			die("ioctl(SIOCKCMCLONE)");
		workers[i].kcm = i > 0 ? clone.fd : kcm;
		errno = pthread_create(&workers[i].thread, NULL, echo, &workers[i]);
		if (errno)
			die("pthread_create");
	}
	return workers;
}

int main(int argc, char **argv)
{
	struct kcm_length field = { .width = HEADER, .adjust = HEADER, .most = MESSAGE_MAX };
	/* Static: threads still use it while main() has returned and exit() runs. */
	static struct acceptor acceptor;
	struct worker *workers;
	pthread_t thread;
	sigset_t ending;
	int option, signal_number, i, port = 0, threads = 4;

	while ((option = getopt(argc, argv, "p:t:")) != -1) {
		if (option == 'p')
			port = atoi(optarg);
		else if (option == 't')
			threads = atoi(optarg);
		else
			return 2;
	}
	if (threads < 1 || threads > THREADS_MAX) {
		fprintf(stderr, "kcm_echo_server: -t takes 1 to %d\n", THREADS_MAX);
		return 2;
	}

	/* Blocked before any thread exists, so that only sigwait() below sees them. */
	sigemptyset(&ending);
	sigaddset(&ending, SIGINT);
	sigaddset(&ending, SIGTERM);
	pthread_sigmask(SIG_BLOCK, &ending, NULL);
	signal(SIGPIPE, SIG_IGN); /* a kernel may raise it when a connection dies under a send */

	acceptor.kcm = socket(AF_KCM, SOCK_SEQPACKET, KCMPROTO_CONNECTED);
	if (acceptor.kcm < 0)
		die("socket(AF_KCM)");
	acceptor.bpf = kcm_parser_open_length(&field);
	if (acceptor.bpf < 0)
		die("bpf(BPF_PROG_LOAD)");
	acceptor.listener = listen_on(port);

	workers = start_workers(acceptor.kcm, threads);
	errno = pthread_create(&thread, NULL, look_after_connections, &acceptor);
	if (errno)
		die("pthread_create");
	printf("kcm_echo_server: listening on 127.0.0.1:%d, %d threads\n", port_of(acceptor.listener), threads);
	fflush(stdout);

	sigwait(&ending, &signal_number);
	for (i = 0; i < threads; i++)
		printf("thread %d: %lu messages\n", i, atomic_load(&workers[i].messages));
	return 0;
}
