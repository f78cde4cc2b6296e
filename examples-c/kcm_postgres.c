/* SPDX-License-Identifier: MIT */
/*
 * kcm_postgres - speaks enough of the PostgreSQL v3 protocol for psql to talk to it.
 *
 *     cc -O2 kcm_postgres.c -o kcm_postgres -pthread
 *     ./kcm_postgres [-p port]                      default: a free port
 *
 * Expected output, then what psql shows:
 *
 *     kcm_postgres: listening on 127.0.0.1:5433
 *
 *     $ psql -h 127.0.0.1 -p 5433 -U anyone -d any -At -c 'select 1' -c 'hello'
 *     1|select 1
 *     2|hello
 *
 * Every query returns one row: its number on this connection, and its own text.
 *
 * A session has state and its answers belong to its connection, so each one gets a
 * thread and a multiplexor of its own, and KCM is the framing: one recv() is one
 * protocol message.  A client's first packets have no type byte; KCM_PARSER_POSTGRES
 * knows them by their first byte, 0, and so does this program.
 */
#define _GNU_SOURCE
#include "../c-header/kcm.h"
#include "../c-header/kcm_parser.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

enum { MESSAGE_MAX = 1 << 18, REPLY_ROOM = 4096 };

/* The second word of a packet without type byte. */
enum { PROTOCOL_3 = 0x00030000, CANCEL_REQUEST = 80877102, SSL_REQUEST = 80877103, GSSENC_REQUEST = 80877104 };

enum { TYPE_INT4 = 23, TYPE_TEXT = 25 };

struct session {
	int tcp, kcm;
	unsigned queries;
	size_t used; /* bytes of the reply so far */
	char message[MESSAGE_MAX];
	char reply[MESSAGE_MAX + REPLY_ROOM];
};

static void die(const char *what)
{
	fprintf(stderr, "kcm_postgres: %s: %s (errno %d)\n", what, strerror(errno), errno);
	exit(1);
}

/* ---- Building replies ------------------------------------------------------ */

static uint32_t get32(const char *p)
{
	uint32_t value;

	memcpy(&value, p, sizeof value);
	return ntohl(value);
}

static void put(struct session *s, const void *data, size_t size)
{
	memcpy(s->reply + s->used, data, size);
	s->used += size;
}

static void put16(struct session *s, unsigned value)
{
	uint16_t big = htons((uint16_t)value);

	put(s, &big, sizeof big);
}

static void put32(struct session *s, uint32_t value)
{
	uint32_t big = htonl(value);

	put(s, &big, sizeof big);
}

static void put_string(struct session *s, const char *text)
{
	put(s, text, strlen(text) + 1);
}

/* Opens a message.  Returns where its length goes, for end(). */
static size_t begin(struct session *s, char type)
{
	put(s, &type, 1);
	put32(s, 0);
	return s->used - 4;
}

static void end(struct session *s, size_t length_at)
{
	uint32_t length = htonl((uint32_t)(s->used - length_at));

	memcpy(s->reply + length_at, &length, sizeof length);
}

static void put_parameter(struct session *s, const char *name, const char *value)
{
	size_t at = begin(s, 'S');

	put_string(s, name);
	put_string(s, value);
	end(s, at);
}

static void put_ready(struct session *s)
{
	size_t at = begin(s, 'Z');

	put(s, "I", 1); /* idle: in no transaction */
	end(s, at);
}

static void put_error(struct session *s, const char *sqlstate, const char *words)
{
	size_t at = begin(s, 'E');

	put(s, "S", 1);
	put_string(s, "ERROR");
	put(s, "C", 1);
	put_string(s, sqlstate);
	put(s, "M", 1);
	put_string(s, words);
	put(s, "", 1);
	end(s, at);
}

static void put_column(struct session *s, const char *name, uint32_t type, int size)
{
	put_string(s, name);
	put32(s, 0); /* of no table */
	put16(s, 0);
	put32(s, type);
	put16(s, (unsigned)size);
	put32(s, 0xffffffff); /* no type modifier */
	put16(s, 0);          /* as text */
}

static void put_value(struct session *s, const char *text)
{
	put32(s, (uint32_t)strlen(text));
	put(s, text, strlen(text));
}

/* ---- The conversation -------------------------------------------------------- */

static void welcome(struct session *s)
{
	size_t at = begin(s, 'R');

	put32(s, 0); /* AuthenticationOk: anyone may come in */
	end(s, at);
	put_parameter(s, "server_version", "15.0 (kcm)");
	put_parameter(s, "server_encoding", "UTF8");
	put_parameter(s, "client_encoding", "UTF8");
	put_parameter(s, "standard_conforming_strings", "on");
	put_ready(s);
}

/* A packet without type byte.  Returns 0 to end the session. */
static int start_up(struct session *s)
{
	switch (get32(s->message + 4)) {
	case PROTOCOL_3:
		welcome(s);
		return 1;
	case SSL_REQUEST:
	case GSSENC_REQUEST:
		put(s, "N", 1); /* no encryption here; the client goes on in clear or leaves */
		return 1;
	case CANCEL_REQUEST:
	default:
		return 0;
	}
}

static void answer_query(struct session *s, const char *query)
{
	char number[16];
	size_t at;

	snprintf(number, sizeof number, "%u", ++s->queries);
	at = begin(s, 'T');
	put16(s, 2);
	put_column(s, "n", TYPE_INT4, 4);
	put_column(s, "query", TYPE_TEXT, -1);
	end(s, at);
	at = begin(s, 'D');
	put16(s, 2);
	put_value(s, number);
	put_value(s, query);
	end(s, at);
	at = begin(s, 'C');
	put_string(s, "SELECT 1");
	end(s, at);
	put_ready(s);
}

/* Acts on one message and builds the reply.  Returns 0 to end the session. */
static int act(struct session *s, size_t size)
{
	s->message[size] = 0;
	switch (s->message[0]) {
	case 0:
		return start_up(s);
	case 'Q':
		answer_query(s, s->message + 5);
		return 1;
	case 'X': /* Terminate */
		return 0;
	case 'S': /* Sync, behind the extended-query messages refused below */
		put_ready(s);
		return 1;
	case 'P':
		put_error(s, "0A000", "only simple queries are answered here");
		return 1;
	case 'B': case 'C': case 'D': case 'E': case 'F': case 'H':
		return 1; /* skipped until Sync, as after any error */
	default:
		put_error(s, "08P01", "unknown message type");
		return 0;
	}
}

/* Waits for a message, or the end of the connection, which only the TCP socket shows. */
static int wait_for_message(const struct session *s)
{
	struct pollfd fds[] = { { .fd = s->kcm, .events = POLLIN }, { .fd = s->tcp, .events = POLLRDHUP } };

	while (poll(fds, 2, -1) < 0)
		if (errno != EINTR)
			die("poll");
	return fds[0].revents & POLLIN;
}

static void *converse(void *argument)
{
	struct session *s = argument;
	int going = 1;

	while (going && wait_for_message(s)) {
		ssize_t size = recv(s->kcm, s->message, MESSAGE_MAX, MSG_DONTWAIT);

		if (size < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (size < 0)
			die("recv(KCM)");
		s->used = 0;
		if (size == MESSAGE_MAX) { /* perhaps cut short */
			put_error(s, "54000", "the message is too long");
			going = 0;
		} else {
			going = act(s, (size_t)size);
		}
		if (s->used && send(s->kcm, s->reply, s->used, MSG_EOR) < 0)
			die("send(KCM)");
	}
	close(s->kcm); /* unattaches the TCP socket; what TCP has of our replies still goes out */
	close(s->tcp);
	free(s);
	return NULL;
}

/* A thread and a multiplexor for one connection. */
static void start_session(int tcp, int bpf)
{
	struct session *s = malloc(sizeof *s);
	struct kcm_attach attach = { tcp, bpf };
	pthread_t thread;
	int one = 1;

	if (!s)
		die("malloc");
	s->tcp = tcp;
	s->queries = 0;
	s->kcm = socket(AF_KCM, SOCK_SEQPACKET | SOCK_CLOEXEC, KCMPROTO_CONNECTED);
	if (s->kcm < 0)
		die("socket(AF_KCM)");
	if (ioctl(s->kcm, SIOCKCMATTACH, &attach)) { /* the peer has reset it already */
		close(s->kcm);
		close(tcp);
		free(s);
		return;
	}
	if (setsockopt(tcp, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("setsockopt(TCP_NODELAY)");
	errno = pthread_create(&thread, NULL, converse, s);
	if (errno)
		die("pthread_create");
	pthread_detach(thread);
}

static int listen_on(int port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	socklen_t size = sizeof address;
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		die("socket(AF_INET)");
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one))
		die("setsockopt(SO_REUSEADDR)");
	if (bind(fd, (struct sockaddr *)&address, sizeof address))
		die("bind");
	if (listen(fd, SOMAXCONN))
		die("listen");
	if (getsockname(fd, (struct sockaddr *)&address, &size))
		die("getsockname");
	printf("kcm_postgres: listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
	fflush(stdout);
	return fd;
}

int main(int argc, char **argv)
{
	int option, listener, bpf, tcp, probe, port = 0;

	while ((option = getopt(argc, argv, "p:")) != -1) {
		if (option != 'p')
			return 2;
		port = atoi(optarg);
	}
	signal(SIGPIPE, SIG_IGN);
	probe = socket(AF_KCM, SOCK_SEQPACKET, KCMPROTO_CONNECTED);
	if (probe < 0)
		die("socket(AF_KCM)"); /* now, not at the first connection */
	close(probe);
	bpf = kcm_parser_open(KCM_PARSER_POSTGRES);
	if (bpf < 0)
		die("bpf(BPF_PROG_LOAD)");
	listener = listen_on(port);
	for (;;) {
		tcp = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (tcp >= 0)
			start_session(tcp, bpf);
		else if (errno == EMFILE || errno == ENFILE)
			usleep(10000); /* connections wait in the backlog until others end */
		else if (errno != EINTR && errno != ECONNABORTED)
			die("accept4");
	}
}
