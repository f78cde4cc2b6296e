/* SPDX-License-Identifier: MIT */
/*
 * kcm_monitor - a thread that watches attached TCP sockets and retires broken ones.
 *
 *     cc -O2 kcm_monitor.c -o kcm_monitor -pthread
 *     ./kcm_monitor
 *
 * Expected output, the whole of it:
 *
 *     6 connections under one multiplexor, a message from each
 *     connection 1, FIN from the peer: Broken pipe, 0 bytes left, unattached
 *     connection 2, RST from the peer: Broken pipe, 0 bytes left, unattached
 *     connection 3, a length beyond all bounds: Message too long, 8 bytes left, unattached
 *     connection 4, a length of nothing: Bad message, 8 bytes left, unattached
 *     connection 5, half a message, then silence: Connection timed out, 0 bytes left, unattached
 *     connection 0 still works
 *
 * A KCM socket never shows what happens to its connections: no end of file, no
 * POLLERR, no failed send.  The TCP descriptors do.  The program keeps them open
 * and a thread of its own polls them; the events of interest need no asking for
 * (POLLERR) or are RDHUP, while POLLIN and POLLOUT belong to the multiplexor.
 * SO_ERROR says what happened:
 *
 *     EPIPE       the connection's state changed: FIN, RST, a time-out
 *     EMSGSIZE    a message longer than the parser or SO_RCVBUF allows
 *     ETIMEDOUT   SO_RCVTIMEO passed with half a message there
 *     others      what the parser returned: EBADMSG from those of kcm_parser.h
 *
 * After SIOCKCMUNATTACH the descriptor is an ordinary one, and the bytes KCM did not
 * consume can be read from it, say to log what the peer sent instead of a message.
 */
#define _GNU_SOURCE
#include "../c-header/kcm.h"
#include "../c-header/kcm_parser.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/time.h>

enum { CONNECTIONS = 6, MESSAGE = 8, MESSAGE_MAX = 1024, HALF_MESSAGE_MS = 300 };

/* What befalls each connection, in this order. */
enum fault { HEALTHY, PEER_CLOSES, PEER_RESETS, HUGE_LENGTH, NO_LENGTH, SILENCE };

static const char *const fault_names[] = {
	"nothing", "FIN from the peer", "RST from the peer", "a length beyond all bounds",
	"a length of nothing", "half a message, then silence",
};

struct monitor {
	int kcm;
	struct pollfd tcp[CONNECTIONS]; /* ours to read from the start, -1 once retired */
	pthread_mutex_t lock;           /* guards the next two */
	pthread_cond_t changed;
	int retired;
};

static void die(const char *what)
{
	fprintf(stderr, "kcm_monitor: %s: %s (errno %d)\n", what, strerror(errno), errno);
	exit(1);
}

/* ---- The monitor ------------------------------------------------------------- */

/* Reports one broken connection and takes it out of the multiplexor. */
static void retire(struct monitor *monitor, int index)
{
	struct kcm_unattach unattach = { .fd = monitor->tcp[index].fd };
	int error = 0, left = 0;
	socklen_t size = sizeof error;

	if (getsockopt(unattach.fd, SOL_SOCKET, SO_ERROR, &error, &size))
		die("getsockopt(SO_ERROR)");
	if (ioctl(monitor->kcm, SIOCKCMUNATTACH, &unattach))
		die("ioctl(SIOCKCMUNATTACH)");
	if (ioctl(unattach.fd, FIONREAD, &left))
		die("ioctl(FIONREAD)");
	printf("connection %d, %s: %s, %d bytes left, unattached\n", index, fault_names[index], strerror(error), left);
	close(unattach.fd);
	monitor->tcp[index].fd = -1; /* poll() skips negative descriptors */

	pthread_mutex_lock(&monitor->lock);
	monitor->retired++;
	pthread_cond_signal(&monitor->changed);
	pthread_mutex_unlock(&monitor->lock);
}

static void *watch_connections(void *argument)
{
	struct monitor *monitor = argument;
	int i;

	for (;;) {
		if (poll(monitor->tcp, CONNECTIONS, -1) < 0 && errno != EINTR)
			die("poll");
		for (i = 0; i < CONNECTIONS; i++)
			if (monitor->tcp[i].fd >= 0 && monitor->tcp[i].revents)
				retire(monitor, i);
	}
	return NULL; /* the loop ends with the process */
}

static void wait_until_retired(struct monitor *monitor, int count)
{
	pthread_mutex_lock(&monitor->lock);
	while (monitor->retired < count)
		pthread_cond_wait(&monitor->changed, &monitor->lock);
	pthread_mutex_unlock(&monitor->lock);
}

/* ---- The other end: peers that misbehave ---------------------------------------- */

static void write_word_and_filler(int peer, uint32_t length)
{
	char message[MESSAGE] = "....mess";
	uint32_t big = htonl(length);

	memcpy(message, &big, sizeof big);
	if (send(peer, message, sizeof message, 0) != sizeof message)
		die("send(peer)");
}

static void misbehave(int peer, enum fault fault)
{
	struct linger at_once = { 1, 0 };

	switch (fault) {
	case HEALTHY:
		break;
	case PEER_RESETS:
		if (setsockopt(peer, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once))
			die("setsockopt(SO_LINGER)");
		close(peer);
		break;
	case PEER_CLOSES:
		close(peer);
		break;
	case HUGE_LENGTH:
		write_word_and_filler(peer, 0xfffffff0);
		break;
	case NO_LENGTH:
		write_word_and_filler(peer, 0);
		break;
	case SILENCE:
		write_word_and_filler(peer, 100);
		break;
	}
}

/* ---- Both ends in one process ------------------------------------------------------ */

static int listen_somewhere(struct sockaddr_in *address)
{
	socklen_t size = sizeof *address;
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0)
		die("socket(AF_INET)");
	memset(address, 0, sizeof *address);
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(fd, (struct sockaddr *)address, size))
		die("bind");
	if (listen(fd, CONNECTIONS))
		die("listen");
	if (getsockname(fd, (struct sockaddr *)address, &size))
		die("getsockname");
	return fd;
}

static void open_connections(struct monitor *monitor, int peers[CONNECTIONS])
{
	/* The length word counts what follows it, at least one byte. */
	struct kcm_length field = { .width = 4, .adjust = 4, .least = 5, .most = MESSAGE_MAX };
	struct timeval half_message = { 0, HALF_MESSAGE_MS * 1000 };
	struct kcm_attach attach;
	struct sockaddr_in address;
	int i, listener = listen_somewhere(&address);

	attach.bpf_fd = kcm_parser_open_length(&field);
	if (attach.bpf_fd < 0)
		die("bpf(BPF_PROG_LOAD)");
	for (i = 0; i < CONNECTIONS; i++) {
		peers[i] = socket(AF_INET, SOCK_STREAM, 0);
		if (peers[i] < 0)
			die("socket(AF_INET)");
		if (connect(peers[i], (struct sockaddr *)&address, sizeof address))
			die("connect");
		attach.fd = accept(listener, NULL, NULL);
		if (attach.fd < 0)
			die("accept");
		if (setsockopt(attach.fd, SOL_SOCKET, SO_RCVTIMEO, &half_message, sizeof half_message))
			die("setsockopt(SO_RCVTIMEO)");
		if (ioctl(monitor->kcm, SIOCKCMATTACH, &attach))
			die("ioctl(SIOCKCMATTACH)");
		monitor->tcp[i].fd = attach.fd;
		monitor->tcp[i].events = POLLRDHUP;
	}
	close(attach.bpf_fd);
	close(listener);
}

static void expect_message(int kcm)
{
	char message[MESSAGE_MAX];

	if (recv(kcm, message, sizeof message, 0) != MESSAGE)
		die("recv(KCM)");
}

int main(void)
{
	/* Static: the other thread still looks at it while main() has returned and exit() runs. */
	static struct monitor monitor = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };
	int i, peers[CONNECTIONS];
	char echo[MESSAGE];
	pthread_t thread;

	signal(SIGPIPE, SIG_IGN);
	monitor.kcm = socket(AF_KCM, SOCK_SEQPACKET, KCMPROTO_CONNECTED);
	if (monitor.kcm < 0)
		die("socket(AF_KCM)");
	open_connections(&monitor, peers);
	errno = pthread_create(&thread, NULL, watch_connections, &monitor);
	if (errno)
		die("pthread_create");

	for (i = 0; i < CONNECTIONS; i++) {
		write_word_and_filler(peers[i], MESSAGE - 4);
		expect_message(monitor.kcm);
	}
	printf("%d connections under one multiplexor, a message from each\n", CONNECTIONS);
	for (i = PEER_CLOSES; i <= SILENCE; i++) {
		misbehave(peers[i], (enum fault)i);
		wait_until_retired(&monitor, i);
	}

	/* Only connection 0 is left, so what KCM sends must reach its peer. */
	write_word_and_filler(peers[0], MESSAGE - 4);
	expect_message(monitor.kcm);
	if (send(monitor.kcm, "\0\0\0\4echo", MESSAGE, MSG_EOR) != MESSAGE)
		die("send(KCM)");
	if (recv(peers[0], echo, sizeof echo, MSG_WAITALL) != MESSAGE || memcmp(echo + 4, "echo", 4) != 0)
		die("recv(peer)");
	printf("connection 0 still works\n");
	return 0;
}
