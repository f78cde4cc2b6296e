/* SPDX-License-Identifier: MIT */
/*
 * framing.c - messages of every ready-made parser, through a KCM socket and back in pieces.
 *
 *     framing single     one message a write, each read before the next: a kernel's KCM
 *     framing stream     all of them as one stream, written in pieces of random size
 *
 * "stream" needs a KCM that parses from the message's first byte.  A kernel parses
 * from the first byte of the buffer a message begins in, and loses its way there.
 *
 * Expected output, a line per protocol; exit status 1 with a line on what differs:
 *
 *     dns: 200 messages, 303412 bytes
 */
#define _GNU_SOURCE
#include "kcm.h"
#include "kcm_parser.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>

enum { MESSAGES = 200, BODY_MAX = 3000, OVERHEAD_MAX = 128, STREAM_MAX = MESSAGES * (BODY_MAX + OVERHEAD_MAX) };

static const char *const names[] = {
	"dns", "tls", "http2", "memcached", "postgres", "kafka", "mqtt", "sunrpc", "9p", "netstring",
};

struct stream {
	uint8_t bytes[STREAM_MAX];
	size_t size;
	size_t end[MESSAGES]; /* of each message */
	int peer, tcp, kcm;
};

static void die(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static uint32_t draw(uint64_t *seed)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*seed >> 32);
}

static uint8_t *put_be(uint8_t *p, unsigned width, uint32_t value)
{
	while (width-- > 0)
		*p++ = (uint8_t)(value >> (8 * width));
	return p;
}

static uint8_t *put_bytes(uint8_t *p, const void *bytes, size_t size)
{
	memcpy(p, bytes, size);
	return p + size;
}

/* Each writes the header of message `n` for a body of `size` bytes and returns its end. */

static uint8_t *head_http2(uint8_t *p, int n, uint32_t size)
{
	if (n == 0) /* the preface is a message and has no body */
		return put_bytes(p, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24);
	return put_be(put_be(put_be(p, 3, size), 2, 0), 4, (uint32_t)n);
}

static uint8_t *head_postgres(uint8_t *p, int n, uint32_t size)
{
	if (n == 0) /* SSLRequest, then a start-up packet: no type byte */
		return put_be(put_be(p, 4, 8), 4, 80877103);
	if (n == 1)
		return put_be(put_be(p, 4, size + 8), 4, 0x00030000);
	return put_be(put_bytes(p, "Q", 1), 4, size + 4);
}

static uint8_t *head_mqtt(uint8_t *p, uint32_t size)
{
	*p++ = 0x30;
	for (; size > 127; size >>= 7)
		*p++ = (uint8_t)(size | 0x80);
	*p++ = (uint8_t)size;
	return p;
}

/* Up to four fragments in front, the body is the last one. */
static uint8_t *head_sunrpc(uint8_t *p, int n, uint32_t size)
{
	int i;

	for (i = 0; i < n % 5; i++)
		p = put_bytes(put_be(p, 4, (uint32_t)i), "abcd", (size_t)i);
	return put_be(p, 4, 0x80000000 | size);
}

static uint8_t *head(enum kcm_protocol protocol, uint8_t *p, int n, uint32_t size)
{
	switch (protocol) {
	case KCM_PARSER_DNS: return put_bytes(put_be(p, 2, size + 12), "abcdefghijkl", 12);
	case KCM_PARSER_TLS: return put_be(put_bytes(p, "\x17\3\3", 3), 2, size);
	case KCM_PARSER_HTTP2: return head_http2(p, n, size);
	case KCM_PARSER_MEMCACHED: return put_be(put_be(put_be(put_be(p, 4, 0x80000003), 4, 0), 4, size), 4, 0x12345678);
	case KCM_PARSER_POSTGRES: return head_postgres(p, n, size);
	case KCM_PARSER_KAFKA: return put_be(put_be(p, 4, size + 4), 4, (uint32_t)n);
	case KCM_PARSER_MQTT: return head_mqtt(p, size);
	case KCM_PARSER_SUNRPC: return head_sunrpc(p, n, size);
	case KCM_PARSER_9P: return put_bytes(put_be(p, 4, __builtin_bswap32(size + 7)), "\x64\1\2", 3);
	case KCM_PARSER_NETSTRING: return p + sprintf((char *)p, "%u:", (unsigned)size);
	}
	abort();
}

static void generate(enum kcm_protocol protocol, struct stream *s)
{
	uint64_t seed = 41 + (uint64_t)protocol;
	int n;

	s->size = 0;
	for (n = 0; n < MESSAGES; n++) {
		uint32_t i, size = draw(&seed) % 4 ? draw(&seed) % 100 : draw(&seed) % BODY_MAX;
		uint8_t *start = s->bytes + s->size, *p;

		if (n == 0 && (protocol == KCM_PARSER_HTTP2 || protocol == KCM_PARSER_POSTGRES))
			size = 0;
		p = head(protocol, start, n, size);
		if (protocol == KCM_PARSER_MEMCACHED)
			p = put_be(put_be(p, 4, 0), 4, 0); /* the CAS */
		for (i = 0; i < size; i++)
			*p++ = (uint8_t)draw(&seed);
		if (protocol == KCM_PARSER_NETSTRING)
			*p++ = ',';
		s->size += (size_t)(p - start);
		s->end[n] = s->size;
	}
}

static void open_pair(enum kcm_protocol protocol, struct stream *s)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t size = sizeof address;
	struct timeval patience = { 10, 0 };
	struct kcm_attach attach;
	int one = 1, listener = socket(AF_INET, SOCK_STREAM, 0);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&address, &size))
		die("listen");
	s->peer = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(s->peer, (struct sockaddr *)&address, size))
		die("connect");
	if (setsockopt(s->peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one))
		die("setsockopt(TCP_NODELAY)");
	s->tcp = accept(listener, NULL, NULL);
	close(listener);

	s->kcm = socket(AF_KCM, SOCK_SEQPACKET, KCMPROTO_CONNECTED);
	if (s->kcm < 0)
		die("socket(AF_KCM)");
	if (setsockopt(s->kcm, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience))
		die("setsockopt(SO_RCVTIMEO)");
	attach.fd = s->tcp;
	attach.bpf_fd = kcm_parser_open(protocol);
	if (attach.bpf_fd < 0)
		die("bpf(BPF_PROG_LOAD)");
	if (ioctl(s->kcm, SIOCKCMATTACH, &attach))
		die("ioctl(SIOCKCMATTACH)");
	close(attach.bpf_fd);
}

static void write_all(int fd, const uint8_t *bytes, size_t size)
{
	if (send(fd, bytes, size, 0) != (ssize_t)size)
		die("send");
}

static void *write_in_pieces(void *argument)
{
	struct stream *s = argument;
	uint64_t seed = s->size;
	size_t at = 0, piece;

	while (at < s->size) {
		piece = draw(&seed) % 3 ? 1 + draw(&seed) % 40 : 1 + draw(&seed) % 8000;
		if (piece > s->size - at)
			piece = s->size - at;
		write_all(s->peer, s->bytes + at, piece);
		at += piece;
	}
	return NULL;
}

static void expect(const struct stream *s, int n, const char *name)
{
	static uint8_t got[STREAM_MAX];
	size_t start = n ? s->end[n - 1] : 0;
	struct iovec iov = { got, sizeof got };
	struct msghdr message;
	ssize_t size;
	int error = 0;
	socklen_t error_size = sizeof error;

	memset(&message, 0, sizeof message);
	message.msg_iov = &iov;
	message.msg_iovlen = 1;
	size = recvmsg(s->kcm, &message, 0);
	if (size == (ssize_t)(s->end[n] - start) && message.msg_flags == MSG_EOR &&
	    memcmp(got, s->bytes + start, (size_t)size) == 0)
		return;
	printf("%s: message %d: %zd bytes, not %zu; flags %x; %s; ", name, n, size, s->end[n] - start,
	       (unsigned)message.msg_flags, size < 0 ? strerror(errno) : "");
	getsockopt(s->tcp, SOL_SOCKET, SO_ERROR, &error, &error_size);
	printf("TCP: %s\n", strerror(error));
	exit(1);
}

int main(int argc, char **argv)
{
	static struct stream s;
	int single = argc == 2 && strcmp(argv[1], "single") == 0, protocol, n;

	if (argc != 2 || (!single && strcmp(argv[1], "stream") != 0))
		return 2;
	for (protocol = 0; protocol <= KCM_PARSER_NETSTRING; protocol++) {
		pthread_t writer;

		generate((enum kcm_protocol)protocol, &s);
		open_pair((enum kcm_protocol)protocol, &s);
		if (!single && pthread_create(&writer, NULL, write_in_pieces, &s))
			die("pthread_create");
		for (n = 0; n < MESSAGES; n++) {
			size_t start = n ? s.end[n - 1] : 0;

			if (single)
				write_all(s.peer, s.bytes + start, s.end[n] - start);
			expect(&s, n, names[protocol]);
		}
		if (!single)
			pthread_join(writer, NULL);
		close(s.kcm);
		close(s.tcp);
		close(s.peer);
		printf("%s: %d messages, %zu bytes\n", names[protocol], MESSAGES, s.size);
	}
	return 0;
}
