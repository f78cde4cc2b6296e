/* SPDX-License-Identifier: MIT */
/*
 * kcm_load - load generator and latency probe for a server that echoes messages.
 *
 *     cc -O2 kcm_load.c -o kcm_load -pthread
 *     ./kcm_load -p port [-c connections] [-s bytes] [-n messages] [-w window] [-r rate]
 *
 *     -c  TCP connections, all under one multiplexor       4
 *     -s  message size with its 4-byte header, 20 to 65536 64
 *     -n  messages to send                                 100000
 *     -w  messages in flight; 1 makes it a ping-pong       64
 *     -r  messages a second; 0: as fast as the window lets 0
 *
 * Expected output, figures apart; exit status 1 if an echo is missing or wrong:
 *
 *     kcm_load: 100000 messages of 64 bytes, 4 connections, window 64
 *     100000 echoed in 0.402 s: 248756 msg/s, 15.9 MB/s each way
 *     latency: p50 231.0 us, p90 280.1 us, p99 401.7 us, max 1204.3 us
 *
 * Works against kcm_echo_server and, since connections are echoed byte for byte
 * there, against legacy_server.  With -r, latency counts from the moment a message
 * was due, so that a stalled server cannot hide behind the sends it delayed.
 */
#define _GNU_SOURCE
#include "../c-header/kcm.h"
#include "../c-header/kcm_parser.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

/* KCM takes no message longer than SO_RCVBUF of its TCP socket, 128 KiB where nobody set it. */
enum { HEADER = 4, STAMPED = HEADER + 16, MESSAGE_MAX = 65536, CONNECTIONS_MAX = 1000 };

/* An echo that takes longer is counted as lost. */
enum { PATIENCE_MS = 5000 };

static const uint64_t SECOND = 1000000000;

/* A message: its length, then who it is and when it was due; filler follows. */
struct stamp {
	uint64_t id;
	uint64_t due; /* CLOCK_MONOTONIC, ns */
};

struct load {
	int connections, port;
	size_t size;
	uint64_t messages, window, rate;

	int kcm;
	uint64_t start, sent, echoed;
	uint32_t *latency; /* by id, ns; 0: no echo yet */
	char *message;
};

static void die(const char *what)
{
	fprintf(stderr, "kcm_load: %s: %s (errno %d)\n", what, strerror(errno), errno);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static int connect_to(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket(AF_INET)");
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&address, sizeof address))
		die("connect");
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("setsockopt(TCP_NODELAY)");
	return fd;
}

/* One KCM socket over all connections. */
static int open_multiplexor(const struct load *load)
{
	struct kcm_length field = { .width = HEADER, .adjust = HEADER, .most = MESSAGE_MAX };
	struct kcm_attach attach;
	int i, kcm = socket(AF_KCM, SOCK_SEQPACKET, KCMPROTO_CONNECTED);

	if (kcm < 0)
		die("socket(AF_KCM)");
	attach.bpf_fd = kcm_parser_open_length(&field);
	if (attach.bpf_fd < 0)
		die("bpf(BPF_PROG_LOAD)");
	for (i = 0; i < load->connections; i++) {
		attach.fd = connect_to(load->port);
		if (ioctl(kcm, SIOCKCMATTACH, &attach))
			die("ioctl(SIOCKCMATTACH)");
	}
	close(attach.bpf_fd); /* each attached connection holds the program */
	return kcm;
}

/* When the next message is to leave; with no rate, at once. */
static uint64_t due_time(const struct load *load)
{
	return load->rate ? load->start + load->sent * SECOND / load->rate : now();
}

/* What may follow a message at once is announced, so that both leave in one write. */
static int batch_flag(const struct load *load)
{
	int more = load->sent + 1 < load->messages && load->sent + 1 - load->echoed < load->window;

	return more && !load->rate ? MSG_BATCH : 0;
}

/* Sends what is due and fits.  Returns when the next one is due, or 0: when an echo makes room. */
static uint64_t send_due(struct load *load)
{
	while (load->sent < load->messages && load->sent - load->echoed < load->window) {
		struct stamp stamp = { load->sent, due_time(load) };
		ssize_t sent;

		if (load->rate && stamp.due > now())
			return stamp.due;
		memcpy(load->message + HEADER, &stamp, sizeof stamp);
		sent = send(load->kcm, load->message, load->size, MSG_EOR | MSG_DONTWAIT | batch_flag(load));
		if (sent < 0 && errno == EAGAIN && load->sent > load->echoed) {
			/* SO_SNDBUF is full: read echoes first, or both ends could wait for ever. */
			send(load->kcm, NULL, 0, MSG_EOR | MSG_DONTWAIT); /* ends the batch */
			return 0;
		}
		if (sent != (ssize_t)load->size)
			die("send(KCM)");
		load->sent++;
	}
	return 0;
}

/* Waits for an echo until `until` at most (0: as long as patience lasts). */
static int wait_for_echo(const struct load *load, uint64_t until)
{
	struct pollfd kcm = { .fd = load->kcm, .events = POLLIN };
	struct timespec timeout = { PATIENCE_MS / 1000, 0 };
	int ready;

	if (until) {
		uint64_t t = now(), left = until > t ? until - t : 0;

		timeout.tv_sec = (time_t)(left / SECOND);
		timeout.tv_nsec = (long)(left % SECOND);
	}
	ready = ppoll(&kcm, 1, &timeout, NULL);
	if (ready < 0 && errno != EINTR)
		die("ppoll");
	return ready > 0;
}

static void check_echo(struct load *load, const char *echo, size_t size)
{
	struct stamp stamp = { UINT64_MAX, 0 };
	uint64_t took;

	if (size >= STAMPED)
		memcpy(&stamp, echo + HEADER, sizeof stamp);
	if (size != load->size || stamp.id >= load->sent || load->latency[stamp.id]) {
		fprintf(stderr, "kcm_load: a wrong or repeated echo: %zu bytes, id %" PRIu64 "\n", size, stamp.id);
		exit(1);
	}
	took = now() - stamp.due;
	load->latency[stamp.id] = took == 0 ? 1 : took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
	load->echoed++;
}

/* Takes all echoes that are there.  Returns how many. */
static int take_echoes(struct load *load, char *echo)
{
	int count = 0;
	ssize_t size;

	while ((size = recv(load->kcm, echo, MESSAGE_MAX, MSG_DONTWAIT)) >= 0) {
		check_echo(load, echo, (size_t)size);
		count++;
	}
	if (errno != EAGAIN)
		die("recv(KCM)");
	return count;
}

/* Sends and receives until every message is back.  Returns 0 if some stay away. */
static int run(struct load *load)
{
	char *echo = malloc(MESSAGE_MAX);

	if (!echo)
		die("malloc");
	load->start = now();
	while (load->echoed < load->messages) {
		uint64_t next = send_due(load);

		if (!take_echoes(load, echo) && !wait_for_echo(load, next) && !next)
			break;
	}
	free(echo);
	return load->echoed == load->messages;
}

static int ascending(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void report(struct load *load)
{
	double seconds = (double)(now() - load->start) / (double)SECOND;
	double rate = (double)load->echoed / seconds;
	uint32_t *us = load->latency;
	uint64_t n = load->echoed;

	qsort(us, load->messages, sizeof *us, ascending);
	us += load->messages - n; /* the lost ones are zeros in front */
	printf("%" PRIu64 " echoed in %.3f s: %.0f msg/s, %.1f MB/s each way\n", n, seconds, rate,
	       rate * (double)load->size / 1e6);
	if (n)
		printf("latency: p50 %.1f us, p90 %.1f us, p99 %.1f us, max %.1f us\n", us[n / 2] / 1e3,
		       us[n * 9 / 10] / 1e3, us[n * 99 / 100] / 1e3, us[n - 1] / 1e3);
}

static int usage(void)
{
	fprintf(stderr, "usage: kcm_load -p port [-c connections] [-s bytes] [-n messages] [-w window] [-r rate]\n");
	return 2;
}

int main(int argc, char **argv)
{
	struct load load = { .connections = 4, .size = 64, .messages = 100000, .window = 64 };
	uint32_t length;
	int option, complete;

	while ((option = getopt(argc, argv, "p:c:s:n:w:r:")) != -1) {
		switch (option) {
		case 'p': load.port = atoi(optarg); break;
		case 'c': load.connections = atoi(optarg); break;
		case 's': load.size = strtoul(optarg, NULL, 10); break;
		case 'n': load.messages = strtoull(optarg, NULL, 10); break;
		case 'w': load.window = strtoull(optarg, NULL, 10); break;
		case 'r': load.rate = strtoull(optarg, NULL, 10); break;
		default: return usage();
		}
	}
	if (!load.port || load.connections < 1 || load.connections > CONNECTIONS_MAX || load.size < STAMPED ||
	    load.size > MESSAGE_MAX || !load.messages || !load.window)
		return usage();

	signal(SIGPIPE, SIG_IGN);
	load.message = calloc(1, load.size);
	load.latency = calloc(load.messages, sizeof *load.latency);
	if (!load.message || !load.latency)
		die("calloc");
	length = htonl((uint32_t)load.size - HEADER);
	memcpy(load.message, &length, HEADER);
	load.kcm = open_multiplexor(&load);

	printf("kcm_load: %" PRIu64 " messages of %zu bytes, %d connections, window %" PRIu64 "\n", load.messages,
	       load.size, load.connections, load.window);
	fflush(stdout);
	complete = run(&load);
	report(&load);
	if (!complete)
		fprintf(stderr, "kcm_load: %" PRIu64 " of %" PRIu64 " messages came back\n", load.echoed, load.sent);
	free(load.latency);
	free(load.message);
	return !complete;
}
