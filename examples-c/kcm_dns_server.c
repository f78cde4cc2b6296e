/* SPDX-License-Identifier: MIT */
/*
 * kcm_dns_server - answers DNS over TCP: pipelined queries on many connections.
 *
 *     cc -O2 kcm_dns_server.c -o kcm_dns_server -pthread
 *     ./kcm_dns_server [-p port]                    default: a free port
 *
 * Expected output; the last line comes on SIGINT or SIGTERM:
 *
 *     kcm_dns_server: listening on 127.0.0.1:5300
 *     kcm_dns_server: 20001 queries, 21 connections
 *
 *     dig @127.0.0.1 -p 5300 +tcp +short example.org         192.0.2.1
 *     dig @127.0.0.1 -p 5300 +tcp +short example.org AAAA    2001:db8::1
 *     dnsperf -s 127.0.0.1 -p 5300 -m tcp -c 20 -d queries   all NOERROR
 *
 * Every name has the addresses above, which RFC 5737 and RFC 3849 keep for such
 * use; other types exist and hold nothing.
 *
 * An answer must return on the connection of its query, and a KCM socket knows no
 * connections: it sends on whichever is free.  So each connection gets a KCM
 * socket, hence a multiplexor, of its own.  What KCM still does is the framing:
 * one recv() is one query, whole, however the bytes arrived; answers leave as
 * batches.  One epoll set watches both descriptors of a connection:
 *
 *     the KCM socket   EPOLLIN: a query is complete
 *     the TCP socket   EPOLLERR, EPOLLRDHUP: the connection ended or is not DNS;
 *                      a KCM socket reports neither, so these bits tell the two apart
 */
#define _GNU_SOURCE
#include "../c-header/kcm.h"
#include "../c-header/kcm_parser.h"

#include <arpa/inet.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>

enum {
	PREFIX = 2, /* DNS over TCP: 16-bit length before each message */
	HEADER = 12,
	MESSAGE_MAX = PREFIX + 65535,
	ANSWER_MAX = 64, /* the longest record and an OPT record */
	EVENTS = 64,
	QUERIES_A_TURN = 64, /* then another connection has its turn */
	TTL = 60
};

enum { RCODE_NOERROR = 0, RCODE_FORMERR = 1, RCODE_NOTIMP = 4, RCODE_REFUSED = 5 };
enum { TYPE_A = 1, TYPE_AAAA = 28, TYPE_OPT = 41, CLASS_IN = 1, LABEL_MAX = 63, NAME_MAX_BYTES = 255 };

static const uint8_t address_a[] = { 192, 0, 2, 1 };
static const uint8_t address_aaaa[] = { 0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1 };

struct connection {
	int tcp, kcm;
	struct connection *next_closed;
};

struct server {
	int epoll, bpf, listener, signals;
	unsigned long queries, connections;
	struct connection *closed; /* freed when no event of this turn can name them */
	uint8_t message[MESSAGE_MAX + ANSWER_MAX];
};

static void die(const char *what)
{
	fprintf(stderr, "kcm_dns_server: %s: %s (errno %d)\n", what, strerror(errno), errno);
	exit(1);
}

/* ---- DNS ---------------------------------------------------------------- */

static unsigned get16(const uint8_t *p)
{
	return (unsigned)p[0] << 8 | p[1];
}

static uint8_t *put16(uint8_t *p, unsigned value)
{
	p[0] = (uint8_t)(value >> 8);
	p[1] = (uint8_t)value;
	return p + 2;
}

/* A resource record for the name of the question, which stands at offset 12. */
static uint8_t *put_address(uint8_t *p, unsigned type, const uint8_t *address, unsigned size)
{
	p = put16(p, 0xc000 | HEADER);
	p = put16(p, type);
	p = put16(p, CLASS_IN);
	p = put16(put16(p, 0), TTL);
	p = put16(p, size);
	memcpy(p, address, size);
	return p + size;
}

/* The end of the question at `p`, or NULL if it does not fit before `end`. */
static const uint8_t *skip_question(const uint8_t *p, const uint8_t *end)
{
	const uint8_t *name = p;

	while (p < end && *p != 0) {
		if (*p > LABEL_MAX)
			return NULL; /* a compression pointer: nothing stands before a question */
		p += 1 + *p;
	}
	if (p - name >= NAME_MAX_BYTES || end - p < 5)
		return NULL;
	return p + 5; /* the root label, type, class */
}

/* Turns the query in `dns` into its response, in place.  Returns the response's size. */
static size_t answer(uint8_t *dns, size_t size)
{
	const uint8_t *question_end = NULL, *end = dns + size;
	unsigned flags = get16(dns + 2), opcode = flags >> 11 & 15, rcode = RCODE_NOERROR;
	unsigned answers = 0, has_opt, type;
	uint8_t *p = dns + HEADER;

	if (opcode != 0)
		rcode = RCODE_NOTIMP;
	else if (get16(dns + 4) != 1 || !(question_end = skip_question(dns + HEADER, end)))
		rcode = RCODE_FORMERR;
	else if (get16(question_end - 2) != CLASS_IN)
		rcode = RCODE_REFUSED;

	/* EDNS, as dig sends it: one additional record, of the root and type OPT. */
	has_opt = question_end && get16(dns + 10) == 1 && end - question_end >= 11 && question_end[0] == 0 &&
		  get16(question_end + 1) == TYPE_OPT;

	if (question_end) {
		p += question_end - p;
		type = get16(question_end - 4);
		answers = rcode == RCODE_NOERROR && (type == TYPE_A || type == TYPE_AAAA);
		if (answers && type == TYPE_A)
			p = put_address(p, type, address_a, sizeof address_a);
		else if (answers)
			p = put_address(p, type, address_aaaa, sizeof address_aaaa);
	}
	if (has_opt) {
		*p++ = 0;
		p = put16(p, TYPE_OPT);
		p = put16(p, 1232); /* the UDP size of the DNS flag day, here a formality */
		p = put16(put16(p, 0), 0);
		p = put16(p, 0);
	}
	put16(dns + 2, 0x8400 | (flags & 0x7900) | rcode); /* a response, authoritative; opcode and RD stay */
	put16(dns + 4, question_end ? 1 : 0);
	put16(dns + 6, answers);
	put16(dns + 8, 0);
	put16(dns + 10, has_opt);
	return (size_t)(p - dns);
}

/* ---- Connections --------------------------------------------------------- */

static void watch(int epoll, int fd, uint32_t events, void *pointer)
{
	struct epoll_event event = { .events = events, .data.ptr = pointer };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

static void close_connection(struct server *server, struct connection *c)
{
	if (c->tcp < 0)
		return;
	close(c->kcm); /* the last KCM socket of its multiplexor: that unattaches the TCP socket */
	close(c->tcp);
	c->tcp = -1;
	c->next_closed = server->closed;
	server->closed = c;
}

static void free_closed(struct server *server)
{
	while (server->closed) {
		struct connection *c = server->closed;

		server->closed = c->next_closed;
		free(c);
	}
}

static void open_connection(struct server *server, int tcp)
{
	struct connection *c = calloc(1, sizeof *c);
	struct kcm_attach attach = { tcp, server->bpf };
	int one = 1;

	if (!c)
		die("calloc");
	c->tcp = tcp;
	c->kcm = socket(AF_KCM, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, KCMPROTO_CONNECTED);
	if (c->kcm < 0 && errno != EMFILE && errno != ENFILE)
		die("socket(AF_KCM)");
	if (c->kcm < 0 || ioctl(c->kcm, SIOCKCMATTACH, &attach)) {
		if (c->kcm >= 0)
			close(c->kcm); /* the peer has reset its connection already */
		close(tcp);
		free(c);
		return;
	}
	if (setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("setsockopt(TCP_NODELAY)");
	watch(server->epoll, c->kcm, EPOLLIN, c);
	watch(server->epoll, tcp, EPOLLRDHUP, c);
	server->connections++;
}

static void accept_all(struct server *server)
{
	int tcp;

	while ((tcp = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC)) >= 0)
		open_connection(server, tcp);
	if (errno == EMFILE || errno == ENFILE)
		usleep(10000); /* connections wait in the backlog until others end */
	else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED)
		die("accept4");
}

/*
 * Answers up to `most` queries that have arrived.  Returns 0 if the client takes
 * no more answers: with SO_SNDBUF full of them it has stopped reading.
 */
static int answer_queries(struct server *server, struct connection *c, int most)
{
	uint8_t *message = server->message;
	ssize_t size;
	size_t reply;
	int count;

	for (count = 0; count < most; count++) {
		size = recv(c->kcm, message, MESSAGE_MAX, 0);
		if (size < 0)
			break;
		reply = answer(message + PREFIX, (size_t)size - PREFIX);
		put16(message, (unsigned)reply);
		if (send(c->kcm, message, PREFIX + reply, MSG_EOR | MSG_BATCH) < 0)
			return 0;
		server->queries++;
	}
	if (count < most && errno != EAGAIN && errno != EINTR)
		die("recv(KCM)");
	/* An empty message ends the batch: all answers leave in one go. */
	return send(c->kcm, NULL, 0, MSG_EOR) == 0;
}

/*
 * The stream ended, broke, or is not DNS.  What came before is answered if it can be:
 * reading SO_ERROR takes back the error that would stop KCM from sending.  It is no
 * promise to a client that shuts down its sending side early, for KCM may have met
 * the error already, and close() on a KCM socket drops what is queued.  RFC 7766
 * has clients keep the connection until they have their answers.
 */
static void finish(struct server *server, struct connection *c)
{
	int error;
	socklen_t size = sizeof error;

	if (getsockopt(c->tcp, SOL_SOCKET, SO_ERROR, &error, &size))
		die("getsockopt(SO_ERROR)");
	answer_queries(server, c, INT_MAX);
	close_connection(server, c);
}

static void serve(struct server *server, struct connection *c, uint32_t events)
{
	if (c->tcp < 0)
		return; /* closed earlier in this turn */
	if (events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP))
		finish(server, c);
	else if (!answer_queries(server, c, QUERIES_A_TURN))
		close_connection(server, c);
}

/* ---- The process ---------------------------------------------------------- */

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

/* SIGINT and SIGTERM as a readable descriptor. */
static int catch_signals(void)
{
	sigset_t ending;
	int fd;

	sigemptyset(&ending);
	sigaddset(&ending, SIGINT);
	sigaddset(&ending, SIGTERM);
	sigprocmask(SIG_BLOCK, &ending, NULL);
	signal(SIGPIPE, SIG_IGN); /* a kernel may raise it when a connection dies under a send */
	fd = signalfd(-1, &ending, SFD_CLOEXEC);
	if (fd < 0)
		die("signalfd");
	return fd;
}

static void run(struct server *server)
{
	struct epoll_event events[EVENTS];
	int i, count;

	for (;;) {
		count = epoll_wait(server->epoll, events, EVENTS, -1);
		if (count < 0 && errno != EINTR)
			die("epoll_wait");
		for (i = 0; i < count; i++) {
			if (events[i].data.ptr == &server->signals)
				return;
			if (events[i].data.ptr == &server->listener)
				accept_all(server);
			else
				serve(server, events[i].data.ptr, events[i].events);
		}
		free_closed(server);
	}
}

int main(int argc, char **argv)
{
	struct server *server = calloc(1, sizeof *server);
	int option, probe, port = 0;

	while ((option = getopt(argc, argv, "p:")) != -1) {
		if (option != 'p')
			return 2;
		port = atoi(optarg);
	}
	if (!server)
		die("calloc");
	probe = socket(AF_KCM, SOCK_SEQPACKET, KCMPROTO_CONNECTED);
	if (probe < 0)
		die("socket(AF_KCM)"); /* now, not at the first connection */
	close(probe);
	server->bpf = kcm_parser_open(KCM_PARSER_DNS);
	if (server->bpf < 0)
		die("bpf(BPF_PROG_LOAD)");
	server->signals = catch_signals();
	server->listener = listen_on(port);
	server->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (server->epoll < 0)
		die("epoll_create1");
	watch(server->epoll, server->listener, EPOLLIN, &server->listener);
	watch(server->epoll, server->signals, EPOLLIN, &server->signals);
	printf("kcm_dns_server: listening on 127.0.0.1:%d\n", port_of(server->listener));
	fflush(stdout);

	run(server);
	printf("kcm_dns_server: %lu queries, %lu connections\n", server->queries, server->connections);
	return 0;
}
